// Import: written key by key, each only if it is as the dry run saw it.

import { html, nothing } from "../vendor/lit-html.js";
import * as api from "./api.js";
import { clean, join, number, plural, shortened, visible } from "./format.js";
import { valueOf } from "./detail.js";
import { button, dialog, icon } from "./parts.js";
import { difference } from "./difference.js";
import { refusal, say, toast } from "./state.js";
import { yamlModule } from "./syntax.js";

const ASKED_AT_ONCE = 100;
const SHOWN = 200;
const OPEN_MAX = 20;
const DIFFERENCES = 20;

/** Import what is typed or in a file; with `given` ({title, note, keys}) keys that are known already. */
export function importAll(path, then, given = null) {
  const form = { text: "", file: null, problem: "", plan: null, isBusy: false, done: 0, left: [], isDone: false };
  const shown = dialog("Import", (redraw, close) => html`
    <div class="dialog-body"><h2>${given?.title ?? `Import into ${shortened(visible(path), 120)}`}</h2>
      ${given && !form.isDone ? html`<p>${given.note}</p>` : nothing}
      ${form.isDone ? result() : form.plan ? planView() : given ? nothing : html`
        <p>JSON or YAML, nested or with paths as names, or etcd's v2 JSON. Nothing is written before you have seen what changes.</p>
        <label class="field"><span>A file</span><input type="file" accept=".json,.yaml,.yml,.txt" @change=${async event => {
          [form.file = null] = event.target.files;
          form.problem = "";
          redraw();
        }}></label>
        ${form.file ? nothing : html`<label class="field"><span>Or its text</span><textarea class="mono" rows="9" spellcheck="false" autofocus .value=${form.text} @input=${event => {
          form.text = event.target.value;
          form.problem = "";
          redraw();
        }}></textarea></label>`}`}
      ${form.problem ? html`<p class="bad" role="alert">${form.problem}</p>` : nothing}
      ${form.isBusy ? html`<p role="status">${form.plan ? `${number(form.done)} of ${number(writes().length)} written …` : "Comparing …"}</p>` : nothing}</div>
    <div class="dialog-foot">${button(null, form.isDone ? "Close" : "Cancel", close)}
      ${form.isDone ? nothing : form.plan
        ? html`<button type="button" class="button primary" ?disabled=${form.isBusy || !writes().length} @click=${act}>Write ${counted(writes())}</button>`
        : given ? nothing : html`<button type="button" class="button primary" ?disabled=${form.isBusy || !(form.file ?? form.text.trim())} @click=${compareAll}>Compare</button>`}</div>`,
  { kind: "wide", onClose: () => {
    form.isStopped = true;
    if (form.plan && form.isBusy) toast(`Stopped: ${number(form.done)} of ${counted(writes())} written.`, { seconds: 12 });
  } });

  const writes = () => form.plan.filter(each => each.kind === "new" || each.kind === "changed");
  const done = () => (writes().some(each => each.isDir) ? plural(form.done, "entry", "entries") : plural(form.done, "key"));
  const counted = list => (list.some(each => each.isDir) ? plural(list.length, "entry", "entries") : plural(list.length, "key"));

  if (given) compareAll();

  async function compareAll() {
    form.isBusy = true;
    shown.redraw();
    try {
      form.plan = await planOf(given ? given.keys : keysOf(await parse(form.file ? await form.file.text() : form.text), path));
      form.rest = given ? 0 : await restOf(path, form.plan);
      if (!form.plan.length) throw new Error(given ? "The history has no key that was in it." : "There are no keys in it.");
    } catch (error) {
      form.plan = null;
      form.problem = error.message;
    }
    form.isBusy = false;
    shown.redraw();
  }

  function planView() {
    const of = kind => form.plan.filter(each => each.kind === kind);
    const list = (kind, title) => (of(kind).length ? html`<details ?open=${kind === "changed" || (kind === "new" && of(kind).length <= OPEN_MAX)}><summary><b>${number(of(kind).length)}</b> ${title}</summary>
      ${of(kind).slice(0, SHOWN).map((each, at) => html`<p class="mono wrap">${each.path}${each.isDir ? "/" : ""}${each.why ? html` <small class="bad">${each.why}</small>` : nothing}</p>
        ${kind === "changed" && at < DIFFERENCES && !each.isBinary ? difference(each.before, each.text, each.path) : nothing}`)}
      ${of(kind).length > SHOWN ? html`<p class="note">and ${number(of(kind).length - SHOWN)} more</p>` : nothing}</details>` : nothing);
    return html`${list("new", "new")}${list("changed", "changed")}${list("same", "the same")}${list("refused", "that cannot be written")}
      ${form.rest ? html`<p class="note">${plural(form.rest, "key")} below ${path} ${form.rest === 1 ? "is" : "are"} not in the file, and ${form.rest === 1 ? "stays" : "stay"}.</p>` : nothing}`;
  }

  function result() {
    return html`<div class="band ok">${icon("check")}<span>${done()} written.</span></div>
      ${form.left.length ? html`<div class="band warn">${icon("warn")}<span>${plural(form.left.length, "key")} left as they are:</span></div>
        ${form.left.slice(0, SHOWN).map(each => html`<p class="mono wrap">${each.path} <small>${each.why}</small></p>`)}` : nothing}`;
  }

  async function act() {
    form.isBusy = true;
    shown.redraw();
    for (const each of writes()) {
      if (form.isStopped) return;
      const query = each.index ? { prevIndex: each.index } : { prevExist: "false" };
      // A time that a key has, and that the file does not speak of, stays.
      const left = each.ttl || (each.ends ? Math.max(1, Math.ceil((each.ends - performance.now()) / 1000)) : 0);
      if (left) query.ttl = left;
      try {
        if (each.isDir) await api.write(each.path, { dir: "true", ...query });
        else await api.writeBytes(each.path, each.data, query);
        form.done += 1;
        if (form.done % 20 === 0) shown.redraw();
      } catch (error) {
        const changed = [100, 101, 105].includes(error.code);
        form.left.push({ path: each.path, why: changed ? "has changed meanwhile" : error.message });
        // A full disk, or none at all: the rest would fail as this did.
        if (!changed && !(error instanceof api.ApiError && error.status < 500)) {
          form.problem = `Stopped at ${each.path}: ${error.message}`;
          break;
        }
      }
    }
    form.isBusy = false;
    form.isDone = true;
    say(`${done()} written.`);
    shown.redraw();
    then();
  }
}

/** A document of JSON or YAML; numbers and words of it stay as they are written. */
async function parse(text) {
  try {
    if (JSON.rawJSON) return JSON.parse(text, (_, value, context) => (typeof value === "number" ? JSON.rawJSON(context.source) : value));
    JSON.parse(text); // an old browser: the reader of YAML keeps what is written
  } catch (error) {
    if (/^\s*[{[]/.test(text) && !/^\s*\{[^"]*:/.test(text)) throw new Error(`This is no JSON: ${error.message}`, { cause: error });
  }
  const module = await yamlModule();
  try {
    return module.load(text, { schema: writtenSchema(module) });
  } catch (error) {
    throw new Error(`This is no YAML: ${error.reason ?? error.message}`, { cause: error });
  }
}

const LITERAL = /^(?:-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null)$/;

/** YAML in which a number or a word of JSON is known as one, and stays as it is written; all else is a text. */
function writtenSchema({ FAILSAFE_SCHEMA, NOT_RESOLVED, defineScalarTag, mapTag }) {
  if (!JSON.rawJSON) return FAILSAFE_SCHEMA; // an old browser: items of lists are texts
  const written = defineScalarTag("tag:kvd,2026:written", {
    implicit: true,
    resolve: text => (LITERAL.test(text) ? JSON.rawJSON(text) : NOT_RESOLVED),
    identify: () => false,
  });
  const name = key => (isRaw(key) ? key.rawJSON : key);
  return FAILSAFE_SCHEMA.withTags(written, {
    ...mapTag,
    addPair: (map, key, value) => mapTag.addPair(map, name(key), value),
    has: (map, key) => mapTag.has(map, name(key)),
    get: (map, key) => mapTag.get(map, name(key)),
  });
}

/** The keys of a document, {path, text, data, ttl}, and of its directories those that no key brings into being, or that end. */
function keysOf(document, top) {
  if (document === null || typeof document !== "object" || Array.isArray(document)) throw new Error("The document is no object: it has no names of keys.");
  const node = document.node ?? document;
  if (document.action && Array.isArray(node.nodes)) return node.nodes.flatMap(child => v2Keys(child, node.key ?? "", top));
  return nestedKeys(document, top);
}

const isRaw = value => Boolean(JSON.isRawJSON?.(value));

/** The path that a name stands for in a directory. One that leads out of it is refused: a file may come from anybody. */
function placeBelow(dir, name) {
  const path = name.split("/").filter(Boolean).reduce(join, dir);
  if (clean(path) !== path) throw new Error(`“${name}” is no path of a key: it has “.” or “..” in it.`);
  return path;
}

function nestedKeys(object, at) {
  return Object.entries(object).flatMap(([name, value]) => {
    const path = placeBelow(at, name);
    if (isRaw(value)) return [ofText(path, value.rawJSON)];
    if (value !== null && typeof value === "object" && !Array.isArray(value)) {
      if (typeof value.$base64 === "string" && Object.keys(value).length === 1) return [ofBytes(path, unpack(value.$base64))];
      return Object.keys(value).length ? nestedKeys(value, path) : [ofDir(path)];
    }
    return [ofText(path, value === null ? "" : typeof value === "object" ? JSON.stringify(value) : String(value))];
  });
}

function v2Keys(node, below, top) {
  const ttl = Number(node.ttl?.rawJSON ?? node.ttl ?? 0);
  // Keys of an export of a directory are below another directory as they were below that one.
  const base = below && below !== "/" && node.key.startsWith(`${below}/`) ? node.key.slice(below.length) : commonless(node.key, top);
  const path = placeBelow(top, base);
  if (node.dir) {
    const children = (node.nodes ?? []).flatMap(child => v2Keys(child, below, top));
    return ttl || !children.length ? [{ ...ofDir(path), ttl }, ...children] : children;
  }
  const found = node.encoding === "base64" ? ofBytes(path, unpack(node.value)) : ofText(path, node.value ?? "");
  return [{ ...found, ttl }];
}

const commonless = (key, top) => (top !== "/" && key.startsWith(`${top}/`) ? key.slice(top.length) : key);
function unpack(text) {
  try {
    return Uint8Array.from(atob(text), unit => unit.charCodeAt(0));
  } catch {
    throw new Error(`“${text.slice(0, 40)}” is no base64.`);
  }
}

const base64 = data => btoa(Array.from(data, byte => String.fromCharCode(byte)).join(""));

const ofText = (path, text) => ({ path, text, data: new TextEncoder().encode(text), ttl: 0, isBinary: false });
export const ofDir = path => ({ path, isDir: true, ttl: 0, isBinary: false });
export const ofBytes = (path, data) => ({ path, text: null, data, ttl: 0, isBinary: true });

/** Compare keys with what is stored. */
async function planOf(keys) {
  const plan = [];
  for (let at = 0; at < keys.length; at += ASKED_AT_ONCE) {
    const some = keys.slice(at, at + ASKED_AT_ONCE);
    const nodes = await api.multiGet(some.map(each => each.path));
    for (const [place, each] of some.entries()) plan.push(planned(each, await exact(each.path, nodes[place])));
  }
  return plan;
}

/** A node with its value in base64: what may be bytes is read once more, as they are. */
async function exact(path, node) {
  if (node.value === undefined) return node;
  if (node.value.includes("\ufffd")) return (await api.read(path, { base64: true })).node;
  return { ...node, value: base64(new TextEncoder().encode(node.value)) };
}

function planned(each, node) {
  const why = refusal(each.path);
  if (why) return { ...each, kind: "refused", why };
  if (node.errorCode === 100) return { ...each, kind: "new", index: 0 };
  if (node.errorCode) return { ...each, kind: "refused", why: node.message };
  if (each.isDir && node.dir) return { ...each, kind: "same" };
  if (each.isDir || node.dir) return { ...each, kind: "refused", why: `is a ${node.dir ? "directory" : "key"} here` };
  const found = valueOf(node);
  const isSame = found.data.length === each.data.length && found.data.every((byte, at) => byte === each.data[at]);
  const ends = node.ttl ? performance.now() + node.ttl * 1000 : 0;
  return { ...each, kind: isSame ? "same" : "changed", index: node.modifiedIndex, ends, before: found.text ?? "", isBinary: each.isBinary || found.isBinary };
}

/** How many keys below a directory a document does not have. */
async function restOf(path, plan) {
  try {
    const { keys } = await api.read(path, { count: true, recursive: true, hidden: true }, { isDir: true });
    return Math.max(0, keys - plan.filter(each => !each.isDir && (each.kind === "changed" || each.kind === "same")).length);
  } catch {
    return 0;
  }
}
