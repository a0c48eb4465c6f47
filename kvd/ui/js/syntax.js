// What a value is, and its colours: tokens of JSON and YAML, line by line.
//
// JSON is laid out by its tokens and never by what JSON.parse makes of them: 12345678901234567890 and 1.0 stay.

import { html } from "../vendor/lit-html.js";

/** Above this a text has no colours: browsers take long over so many elements. */
export const COLOURED_MAX = 200_000;

const JSON_TOKEN = /("(?:[^"\\]|\\.)*")(\s*:)?|(-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)(?![\w.])|\b(true|false|null)\b/g;
const YAML_LINE = /^(\s*(?:- +)*)([^\s#'"[\]{},&*!|>%@`-][^#:]*|"(?:[^"\\]|\\.)*"|'[^']*')(\s*:)(?=\s|$)/;
const YAML_NUMBER = /^[-+]?(?:\d[\d_]*(?:\.\d*)?(?:[eE][-+]?\d+)?|0x[\da-fA-F]+|\.inf|\.nan)$/;
const YAML_WORD = /^(?:true|false|null|yes|no|on|off|~)$/i;

/** JSON, YAML, text or empty; of what is meant for JSON also why it is none. */
export function kindOf(text, name = "") {
  if (text === "") return { kind: "empty", error: null };
  const start = text.trimStart()[0];
  if (start === "{" || start === "[" || name.endsWith(".json")) {
    const error = jsonError(text);
    if (!error) return { kind: "JSON", error };
    const end = text.trimEnd().at(-1);
    if (name.endsWith(".json") || (start === "{" ? end === "}" : end === "]" && /["{[\d]/.test(text[1] ?? ""))) {
      if (!looksLikeYaml(text)) return { kind: "JSON", error };
    }
  }
  if (/\.ya?ml$/.test(name) || looksLikeYaml(text)) return { kind: "YAML", error: null };
  return { kind: "text", error: null };
}

function looksLikeYaml(text) {
  const lines = text.slice(0, 4000).split("\n").filter(line => line.trim() && !line.trim().startsWith("#"));
  if (!lines.length || (lines.length < 2 && !text.includes("\n"))) return false;
  if (/^[{[]/.test(text.trimStart())) return false;
  const fitting = lines.filter(line => YAML_LINE.test(line) || /^\s*- /.test(line) || line.trim() === "---");
  return fitting.length >= 2 && fitting.length >= lines.length * 0.7;
}

const TOKEN = /[ \t\r\n]*(?:("(?:[^"\\\u0000-\u001f]|\\(?:["\\/bfnrt]|u[\da-fA-F]{4}))*")|(-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null)(?![\w.])|([{}[\],:]))/y;
const WANTED = {
  value: "a value", item: "a value or “]”", name: "a name in quotes", member: "a name in quotes or “}”", colon: "“:”",
  "next ]": "“,” or “]”", "next }": "“,” or “}”", end: "nothing more",
};

/** Why a text is no JSON: {line, message}; null if it is. Browsers do not all say where. */
export function jsonError(text) {
  try {
    JSON.parse(text);
    return null;
  } catch {
    const { at, wanted } = firstWrong(text);
    const found = /^(?:[\w.+-]+|[^]?)/u.exec(text.slice(at))[0];
    return { line: text.slice(0, at).split("\n").length, message: `${found ? `“${found.slice(0, 20)}”` : "the end"} where ${WANTED[wanted]} should be` };
  }
}

/** The first place at which a text is no JSON any more, and what should be there. */
function firstWrong(text) {
  const open = [];
  let wanted = "value";
  TOKEN.lastIndex = 0;
  for (;;) {
    const at = TOKEN.lastIndex;
    const match = TOKEN.exec(text);
    const next = match && step(open, wanted, match);
    if (!next) return { at: at + /^[ \t\r\n]*/.exec(text.slice(at))[0].length, wanted };
    wanted = next;
  }
}

const after = open => (open.length ? `next ${open.at(-1)}` : "end");

/** What may follow a token; undefined if the token is wrong. */
function step(open, wanted, [, string, literal, sign]) {
  if (string && (wanted === "name" || wanted === "member")) return "colon";
  const takesValue = wanted === "value" || wanted === "item";
  if (string || literal) return takesValue ? after(open) : undefined;
  if ((sign === "{" || sign === "[") && takesValue) {
    open.push(sign === "{" ? "}" : "]");
    return sign === "{" ? "member" : "item";
  }
  if (sign === ":") return wanted === "colon" ? "value" : undefined;
  if (sign === open.at(-1) && (wanted.startsWith("next") || wanted === (sign === "}" ? "member" : "item"))) {
    open.pop();
    return after(open);
  }
  if (sign === "," && wanted.startsWith("next")) return open.at(-1) === "}" ? "name" : "value";
  return undefined;
}

let yaml = null;

/** Why a text is no YAML, as `jsonError`. The parser is fetched when it is first needed. */
export async function yamlError(text) {
  yaml ??= import("../vendor/js-yaml.mjs");
  const { loadAll } = await yaml;
  try {
    loadAll(text);
    return null;
  } catch (error) {
    return { line: (error.mark?.line ?? 0) + 1, message: error.reason || error.message };
  }
}

export async function yamlModule() {
  yaml ??= import("../vendor/js-yaml.mjs");
  return yaml;
}

/** A JSON text with one member a line. */
export function formatted(text) {
  const tokens = text.match(/"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s{}[\],:"]+/g) || [];
  let out = "";
  let level = 0;
  const line = () => `\n${"  ".repeat(level)}`;
  tokens.forEach((token, at) => {
    const before = tokens[at - 1];
    if (token === "{" || token === "[") {
      out += token;
      level += 1;
      if (tokens[at + 1] !== "}" && tokens[at + 1] !== "]") out += line();
    } else if (token === "}" || token === "]") {
      level -= 1;
      out += before === "{" || before === "[" ? token : line() + token;
    } else if (token === ",") out += token + line();
    else if (token === ":") out += ": ";
    else out += token;
  });
  return out;
}

/** The pieces of a line: [class, text]. */
export function pieces(line, kind) {
  if (kind === "JSON") return jsonPieces(line);
  if (kind === "YAML") return yamlPieces(line);
  return [["", line]];
}

function jsonPieces(line) {
  const found = [];
  let end = 0;
  for (const match of line.matchAll(JSON_TOKEN)) {
    if (match.index > end) found.push(["", line.slice(end, match.index)]);
    const [whole, text, colon, number_, literal] = match;
    if (text) {
      found.push([colon ? "t-key" : "t-str", text]);
      if (colon) found.push(["", colon]);
    } else found.push([number_ ? "t-num" : literal ? "t-lit" : "", whole]);
    end = match.index + whole.length;
  }
  if (end < line.length) found.push(["", line.slice(end)]);
  return found;
}

function yamlPieces(line) {
  const comment = /(^|\s)#.*$/.exec(line);
  const body = comment ? line.slice(0, comment.index) : line;
  const found = [];
  const key = YAML_LINE.exec(body);
  let rest = body;
  if (key) {
    found.push(["", key[1]], ["t-key", key[2]], ["", key[3]]);
    rest = body.slice(key[0].length);
  }
  const value = /^(\s*(?:- +)*)(.*?)(\s*)$/.exec(rest);
  const kind = YAML_NUMBER.test(value[2]) ? "t-num" : YAML_WORD.test(value[2]) ? "t-lit" : /^[[{|>&*-]|^$/.test(value[2]) ? "" : "t-str";
  found.push(["", value[1]], [kind, value[2]], ["", value[3]]);
  if (comment) found.push(["t-com", line.slice(comment.index)]);
  return found.filter(([, text]) => text);
}

/** A line with its colours. */
export const coloured = (line, kind) =>
  pieces(line, kind).map(([kind_, text]) => (kind_ ? html`<span class=${kind_}>${text}</span>` : text));
