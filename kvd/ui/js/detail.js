// The right side of the page: a key with its value, or a directory with what is below it.

import { html, nothing } from "../vendor/lit-html.js";
import * as api from "./api.js";
import { bytes, duration, isBelow, isHidden, join, nameOf, number, partsOf, plural, short, hasUnseen, visible } from "./format.js";
import { button, code, copy, download, icon, iconButton, ring } from "./parts.js";
import { go, linkTo, mayList, mayRead, refusal, remember, state, toast, update } from "./state.js";
import { formatted, kindOf } from "./syntax.js";
import * as feed from "./feed.js";

export const SHOWN_BYTES = 1 << 20;
const HEX_BYTES = 4096;
const COUNT_AGAIN_MS = 2000;
const END_MS = 700;

/** What is shown. `status`: loading, key, dir, missing, denied, failed. */
export const detail = { path: null, status: "none", run: 0, isFormatted: true, editor: null, history: null };

const later = { timer: 0, count: 0, path: "", pause_ms: COUNT_AGAIN_MS };

/** Show a path, or read it again. */
export async function show(path, { again = false } = {}) {
  if (path !== detail.path || !again) {
    Object.assign(detail, { path, status: "loading", node: null, value: null, counted: null, error: null, history: null });
  }
  const run = (detail.run += 1);
  update();
  try {
    const found = await look(path);
    if (run !== detail.run) return;
    Object.assign(detail, found, { error: null });
    if (found.status === "dir") countLater(0);
  } catch (error) {
    if (run !== detail.run || error.name === "AbortError") return;
    if (error instanceof api.Offline) detail.error = error; // what is shown stays readable
    else Object.assign(detail, { status: statusOf(error), error });
  }
  update();
}

/** Read a path again, if it is still the one that is shown. */
export const showAgain = path => (path === detail.path ? show(path, { again: true }) : undefined);

const statusOf = error =>
  error.code === 100 || error.code === 104 ? "missing" : error.status === 401 || error.code === 110 ? "denied" : "failed";

async function look(path) {
  if (path === "/" && !mayList("/")) return { status: "top", node: { key: "/", dir: true } };
  const query = { maxValue: SHOWN_BYTES, base64: true, limit: 1 };
  const { node, at } = await api.read(path, query);
  const now = performance.now();
  if (node.dir) return { status: "dir", node, at, ends: node.ttl == null ? 0 : now + node.ttl * 1000 };
  return { status: "key", node, at, value: valueOf(node), ends: node.ttl == null ? 0 : now + node.ttl * 1000 };
}

/** A value from its base64: its text, or its bytes where it is none. */
export function valueOf(node) {
  const packed = atob(node.value ?? "");
  const data = Uint8Array.from(packed, unit => unit.charCodeAt(0));
  const size = node.size ?? data.length;
  const isCut = data.length < size;
  let text = null;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(data);
  } catch {
    return { data, size, isCut, text, isBinary: true, kind: "binary", error: null };
  }
  return { data, size, isCut, text, isBinary: false, ...(isCut ? { kind: "text", error: null } : kindOf(text, nameOf(node.key))) };
}

/** The text of a value that may be binary, for a difference. */
export const comparable = value => (value.isBinary ? hex(value.data) : value.text);

/** Whole seconds that a key has left; 0: it does not end. */
export const left_s = () => (detail.ends ? Math.max(1, Math.ceil((detail.ends - performance.now()) / 1000)) : 0);

/** Count what is below. What waits is not put off by what changes meanwhile: some directories change all the time. */
function countLater(ms) {
  const { path } = detail;
  if (ms && later.path === path && later.count) return;
  clearTimeout(later.count);
  later.path = path;
  later.count = setTimeout(async () => {
    later.count = 0;
    if (detail.path !== path || detail.status !== "dir" || !mayList(path)) return;
    const began = performance.now();
    try {
      const counted = await api.read(path, { count: true, recursive: true, hidden: true }, { isDir: true });
      if (detail.path === path) detail.counted = counted;
    } catch { /* it is shown without */ }
    later.pause_ms = Math.max(COUNT_AGAIN_MS, 10 * (performance.now() - began));
    update();
  }, ms);
}

feed.on("event", event => {
  const { path, status } = detail;
  if (path == null) return;
  const { key } = event.node;
  if (key === path || (event.node.dir && isBelow(path, key))) {
    if (detail.editor) detail.editor.noteOther(event);
    else if (GONE.has(event.action)) vanish();
    else readAgain();
    if (detail.history && key === path) detail.history.isStale = true;
  } else if (status === "dir" && isBelow(key, path)) countLater(later.pause_ms);
});
const GONE = new Set(["delete", "expire", "compareAndDelete"]);

/** What is shown has gone: that is known without asking. */
function vanish() {
  clearTimeout(later.timer);
  detail.run += 1;
  Object.assign(detail, { status: "missing", node: null, value: null, ends: 0, error: null });
  update();
}

feed.on("stale", () => readAgain());

/** A time has run out, and no event has told of it: the key may have been refreshed, of which watchers are not told. */
export function noteEnd() {
  if (!detail.ends || performance.now() < detail.ends + END_MS || later.ended === detail.ends) return;
  later.ended = detail.ends;
  readAgain();
}

function readAgain() {
  clearTimeout(later.timer);
  later.timer = setTimeout(() => {
    if (!detail.editor && detail.path != null && state.route.page === "keys") show(detail.path, { again: true });
  }, 60);
}

// Views.

export function view(screens) {
  const { status, path } = detail;
  if (status === "none") return nothing;
  return html`<section class="detail" aria-labelledby="path-title">
    ${head(path)}
    ${{ loading, key: keyView, dir: dirView, top: topView, missing, denied, failed }[status](screens)}
  </section>`;
}

function head(path) {
  const parts = partsOf(path);
  return html`<div class="path-line">
    <a class="button bare back" href="#k/" aria-label="Back to the tree" title="Back to the tree"
      @click=${event => { event.preventDefault(); screensBack(); }}>${icon("left")}</a>
    <h2 class="path" id="path-title" aria-label=${path}>
      <a href=${linkTo("/")} aria-label="Root">/</a>${parts.map((part, at) => html`${at ? html`<i>/</i><wbr>` : nothing}${
        at === parts.length - 1
          ? html`<b>${named(part)}</b>`
          : html`<a href=${linkTo(`/${parts.slice(0, at + 1).join("/")}`)}>${named(part)}</a>`}`)}
    </h2>
    ${iconButton("copy", "Copy the path", () => copy(path, "the path"))}
  </div>`;
}

const named = part => (hasUnseen(part) ? visible(part) : part);

let screensBack = () => {};
export const onBack = action => (screensBack = action);

const loading = () => html`<p class="note" aria-busy="true">Loading …</p>`;

function facts(items) {
  return html`<p class="facts">${items.filter(Boolean).map(item => html`<span>${item}</span>`)}</p>`;
}

function times(node) {
  if (!node.modifiedIndex) return [];
  return [html`modified at <b>${number(node.modifiedIndex)}</b>`, html`created at <b>${number(node.createdIndex)}</b>`];
}

function ttlFact(screens) {
  if (!detail.ends) return null;
  const left = left_s();
  const kind = left <= 10 ? "bad" : left <= 60 ? "warn" : "";
  const why = refusal(detail.path);
  return html`<button type="button" class="fact-button ttl ${kind}" title=${why || "Change the time that is left"} ?disabled=${Boolean(why)}
    @click=${screens.ttl}>${ring(Math.min(1, left / Math.max(60, detail.node.ttl || 60)))} expires in ${short(left)}</button>`;
}

function tabs() {
  const tab = (name, text) => html`<button type="button" role="tab" id="tab-${name}" aria-selected=${String(state.tab === name)}
    tabindex=${state.tab === name ? 0 : -1} class="tab" @click=${() => selectTab(name)}>${text}</button>`;
  return html`<div class="tabs" role="tablist" aria-label="Value or history" @keydown=${event => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    selectTab(state.tab === "value" ? "history" : "value");
    document.getElementById(`tab-${state.tab}`)?.focus();
  }}>${tab("value", "Value")}${tab("history", "History")}</div>`;
}

export function selectTab(name) {
  state.tab = name;
  update();
}

function keyView(screens) {
  const { node, value, editor } = detail;
  const isHistory = state.tab === "history";
  if (editor) return html`${keyFacts(screens)}${editor.view()}`;
  return html`
    ${keyFacts(screens)}
    <div class="strip">${tabs()}<div class="actions">${keyActions(screens)}</div></div>
    <div class="pane" role="tabpanel" aria-labelledby="tab-${state.tab}">
      ${isHistory ? screens.history(detail) : valueView(node, value, screens)}
    </div>`;
}

function keyFacts(screens) {
  const { node, value } = detail;
  const kind = value.error ? html`<span class="bad">${value.kind}, not valid: line ${number(value.error.line)}</span>` : value.kind;
  return facts([kind, html`<b>${bytes(value.size)}</b>`, ...times(node), ttlFact(screens),
    isHidden(detail.path) ? "hidden" : null,
    (value.hasUnseen ??= !value.isBinary && hasUnseen(value.text)) ? html`<span class="warn">has signs that cannot be seen</span>` : null, ...notLive()]);
}

const notLive = () => (!mayRead(detail.path) && detail.error ? [detail.error.message] : []);

function keyActions(screens) {
  const { value, path } = detail;
  const why = refusal(path);
  const isJson = value.kind === "JSON" && !value.error;
  const whyEdit = why || (value.isBinary ? "A binary value cannot be edited as text." : value.isCut ? `Longer than ${bytes(SHOWN_BYTES)}: download it instead.` : "");
  const isValue = state.tab === "value";
  return html`
    ${isValue && !value.isBinary ? iconButton("wrap", "Wrap long lines (w)", screens.wrap, { isPressed: state.wraps }) : nothing}
    ${isValue && isJson ? button(null, "Formatted", toggleFormat, { isPressed: detail.isFormatted, kind: "toggle wide" }) : nothing}
    ${button("copy", "Copy as", screens.copyAs)}
    ${detail.ends ? nothing : iconButton("clock", "Let it expire", screens.ttl, { disabled: why })}
    ${button("pencil", "Edit", screens.edit, { disabled: whyEdit, title: "Edit (e)" })}
    ${button("trash", "Delete", screens.remove, { disabled: why, kind: "danger", title: "Delete (Del)" })}`;
}

function toggleFormat() {
  detail.isFormatted = !detail.isFormatted;
  update();
}

export function toggleWrap() {
  state.wraps = !state.wraps;
  remember("wraps", state.wraps);
  update();
}

function valueView(node, value, screens) {
  const draft = screens.draft(detail.path);
  return html`
    ${draft ? html`<div class="band info">${icon("pencil")}<span>You have a change here that is not saved.</span>
      ${button(null, "Go on editing", screens.edit)}${button(null, "Drop it", screens.dropDraft)}</div>` : nothing}
    ${value.isCut ? html`<div class="band warn">${icon("warn")}<span>The first ${bytes(value.data.length)} of ${bytes(value.size)} are shown.</span>
      ${button("down", "Download all of it", downloadValue)}</div>` : nothing}
    ${value.kind === "empty" ? html`<p class="note">The value is empty.</p>`
      : value.isBinary ? binary(value)
      : code(isShownFormatted(value) ? (value.formatted ??= formatted(value.text)) : value.text, value.kind, { wraps: state.wraps })}`;
}

const isShownFormatted = value => value.kind === "JSON" && !value.error && detail.isFormatted;

function binary(value) {
  return html`<div class="band">${icon("file")}<span>These bytes are no UTF-8 text. A save as text would change them.</span>
      ${button("down", "Download", downloadValue)}</div>
    <div class="code plain" tabindex="0" role="region" aria-label="Bytes in hexadecimal"><pre>${hex(value.data)}</pre></div>
    ${value.size > HEX_BYTES ? html`<p class="note">The first ${bytes(HEX_BYTES)} of ${bytes(value.size)}.</p>` : nothing}`;
}

/** Bytes in hexadecimal, sixteen a line. */
export function hex(data) {
  const lines = [];
  for (let at = 0; at < Math.min(data.length, HEX_BYTES); at += 16) {
    const row = [...data.subarray(at, at + 16)];
    const digits = row.map(byte => byte.toString(16).padStart(2, "0")).join(" ");
    const signs = row.map(byte => (byte > 31 && byte < 127 ? String.fromCharCode(byte) : "·")).join("");
    lines.push(`${at.toString(16).padStart(6, "0")}  ${digits.padEnd(47)}  ${signs}`);
  }
  return lines.join("\n");
}

export async function downloadValue() {
  try {
    const { bytes: data } = await api.raw(detail.path);
    download([data], nameOf(detail.path));
  } catch (error) {
    toast(`Could not download it: ${error.message}`, { kind: "bad" });
  }
}

function dirView(screens) {
  const { node, counted, path } = detail;
  const why = refusal(path === "/" ? "/new" : `${path}/new`);
  const whyDelete = path === "/" ? "The root cannot be deleted." : refusal(path, { all: true });
  const isEmpty = counted && !counted.keys && !counted.dirs;
  return html`
    ${facts([...(counted ? [html`<b>${number(counted.keys)}</b> ${counted.keys === 1 ? "key" : "keys"}`,
      html`<b>${number(counted.dirs)}</b> ${counted.dirs === 1 ? "directory" : "directories"}`,
      html`<b>${bytes(counted.bytes)}</b> of values`] : ["directory"]), ...(path === "/" ? [] : times(node)), ttlFact(screens)])}
    <div class="strip"><span></span><div class="actions">
      ${button("plus", "New key", screens.create, { disabled: why, title: "New key (n)" })}
      ${button("live", "Live", () => go("live", path))}
      ${button("down", "Export", screens.exportAll)}
      ${button("up", "Import", screens.importAll, { disabled: why })}
      ${button("trash", "Delete", screens.remove, { disabled: whyDelete, kind: "danger" })}
    </div></div>
    <div class="pane">${isEmpty ? emptyDir(path, screens, why) : table(counted)}</div>`;
}

function table(counted) {
  if (!counted) return html`<p class="note" aria-busy="true">Counting what is below …</p>`;
  const rows = [["Keys below", number(counted.keys)], ["Directories below", number(counted.dirs)],
    ["Bytes of values", bytes(counted.bytes)], ["Expiring", number(counted.expiring)]];
  return html`${counted.complete ? nothing : html`<div class="band warn">${icon("warn")}<span>Counted for two seconds and not to the end:
      these are at least so many.</span></div>`}
    <dl class="table">${rows.map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>
    <p class="note">Hidden keys are counted, too.</p>`;
}

function emptyDir(path, screens, why) {
  const example = join(path, "greeting");
  const place = new URL(api.keyPlace(example), new URL(".", location.href)).href;
  return html`<div class="empty"><h3>${path === "/" ? "The store is empty" : "This directory is empty"}</h3>
    <p>A key is a path with a value, such as <code>${example}</code>. Directories come into being with the keys in them.</p>
    <p>${button("plus", "New key", screens.create, { kind: "primary", disabled: why })}</p>
    <p>Or from a shell:</p>
    <pre class="shell" tabindex="0">curl ${place} -X PUT -d value=hello</pre></div>`;
}

function topView() {
  return html`<div class="pane"><p class="note">The root is not yours to read. ${yours()}</p></div>`;
}

const yours = () => {
  const { session } = state;
  return session?.read.length ? html`You may read ${session.read.join(", ")}.` : html`There is nothing that you may read.`;
};

function missing(screens) {
  const why = refusal(detail.path);
  return html`<div class="pane"><div class="empty"><h3>There is no such key</h3>
    <p>It may have been deleted, or have expired.</p>
    <p>${button("plus", "Create it", screens.createHere, { kind: "primary", disabled: why })}
    ${button("clock", "See its history", screens.showHistory)}</p></div>
    ${state.tab === "history" ? screens.history(detail) : nothing}</div>`;
}

function denied(screens) {
  const { session } = state;
  const who = session?.user
    ? `The roles of ${session.user} (${session.roles.join(", ") || "none"}) do not allow reading this.`
    : "A guest may not read this.";
  return html`<div class="pane"><div class="empty"><h3>Not allowed</h3><p>${who} ${yours()}</p>
    <p>${button("user", session?.user ? "Log in as somebody else" : "Log in", screens.login, { kind: "primary" })}</p></div></div>`;
}

function failed() {
  return html`<div class="pane"><div class="empty"><h3>This could not be read</h3><p>${detail.error.message}</p>
    <p>${button("reload", "Try again", () => show(detail.path))}</p></div></div>`;
}

/** How long a key has, in words. */
export const leftText = () => duration(left_s());
export { plural };
