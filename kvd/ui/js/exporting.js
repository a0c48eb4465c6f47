// Export: all keys below a directory, as they were at one index.
//
// The keys are read in pages, each of them true at its own index, while a stream tells what changes. Events hold whole
// nodes: taken in their order into what was read, they make it the state at the index of the last one. What is larger
// than a browser can hold goes to a file while it is read, which nothing can be taken into any more: it is written again
// if something has changed meanwhile, and after some tries that is said.

import { html, nothing } from "../vendor/lit-html.js";
import * as api from "./api.js";
import { bytes, nameOf, number, partsOf, plural, titleOf } from "./format.js";
import { valueOf } from "./detail.js";
import { button, dialog, download } from "./parts.js";
import { toast } from "./state.js";
import { FORMATS, writerOf } from "./formats.js";

// A page has at most 12.5 MiB of values: longer ones are read one by one.
const PAGE = 200;
const PAGE_VALUE_BYTES = 1 << 16;
// A browser has to hold all of it at once, several times over.
const HELD_BYTES_MAX = 128 << 20;
const HELD_NODES_MAX = 500_000;
const TRIES = 3;
const QUIET_S = 0.2;
const PIECE = 1 << 20;

const GONE = new Set(["delete", "expire", "compareAndDelete"]);
const STOPPED = new Error("stopped");

export function exportAll(path) {
  const form = { format: "json", read: 0, isLarge: false, isBusy: false, problem: "", tries: 0, stop: new AbortController() };
  const canWrite = "showSaveFilePicker" in window;
  const shown = dialog("Export", (redraw, close) => html`<form @submit=${event => act(event)}>
    <div class="dialog-body"><h2>Export ${path === "/" ? "everything" : titleOf(path)}</h2><p class="mono wrap">${path}</p>
      ${FORMATS.map(([name, label, what]) => html`<p class="choice"><label class="tick">
          <input type="radio" name="format" .checked=${form.format === name} ?disabled=${form.isBusy} @change=${() => (form.format = name)}>${label}</label> <small>${what}</small></p>`)}
      <p class="note">Hidden keys are in it. Values that are no text are in base64. ${!form.isLarge ? "All of it is as it was at one index, whatever changes meanwhile."
        : canWrite ? "It is large: it is written to a file while it is read, and once more if something changes meanwhile."
        : `A browser can hold ${bytes(HELD_BYTES_MAX)} of values; this may be more. kvdctl export is for that.`}</p>
      ${form.isBusy ? html`<p role="status">${plural(form.read, "key")} read${form.tries > 1 ? html`; try ${form.tries} of ${TRIES}, since something has changed` : nothing} …</p>` : nothing}
      ${form.problem ? html`<p class="bad" role="alert">${form.problem}</p>` : nothing}</div>
    <div class="dialog-foot">${button(null, "Cancel", close)}<button class="button primary" ?disabled=${form.isBusy}>${form.isLarge && canWrite ? "Save to a file" : "Download"}</button></div></form>`,
  { onClose: () => form.stop.abort() });
  form.redraw = shown.redraw;
  measure();

  async function measure() {
    try {
      const { keys, dirs, bytes: size, complete } = await api.read(path, { count: true, recursive: true, hidden: true }, { isDir: true, signal: form.stop.signal });
      form.isLarge = !complete || size > HELD_BYTES_MAX / 2 || keys + dirs > HELD_NODES_MAX / 2;
      if (form.isLarge && shown.element.open) shown.redraw();
    } catch { /* the export itself says what is wrong */ }
  }

  async function act(event) {
    event.preventDefault();
    if (form.isBusy) return;
    const name = `${nameOf(path) || "kvd"}.${form.format === "yaml" ? "yaml" : "json"}`;
    Object.assign(form, { isBusy: true, problem: "", read: 0, tries: 0 });
    try {
      // A browser asks for the place of a file only in answer to a click.
      const file = form.isLarge && canWrite ? await showSaveFilePicker({ suggestedName: name }) : null;
      shown.redraw();
      const { from, to } = file ? await written(path, form, file) : await held(path, form, name);
      shown.close();
      toast(`${plural(form.read, "key")} exported, ${from === to ? `as they were at index ${number(to)}.`
        : `between index ${number(from)} and ${number(to)}: it changed ${TRIES} times, each time that it was read. What changed may be in it as it was or as it became.`}`, { seconds: 12 });
    } catch (error) {
      form.problem = error.name === "AbortError" || error === STOPPED ? "" : error.message;
      form.isBusy = false;
      if (shown.element.open) shown.redraw();
    }
  }
}

/** What changes below a path, told from now on. */
class Changes {
  constructor(index, keeps) {
    Object.assign(this, { from: index, index, keeps, events: [], count: 0, failure: null, wake: () => {} });
  }

  static async begin(path, form, { keeps }) {
    const query = { wait: true, stream: true, recursive: true, hidden: true, base64: keeps, keysOnly: !keeps, refreshes: form.format === "v2", progress: QUIET_S };
    const answer = await api.send("GET", api.keyPlace(path, { isDir: true, query }), { signal: form.stop.signal });
    if (!answer.ok) throw new api.ApiError(answer.status, await answer.json().catch(() => null));
    const changes = new Changes(Number(answer.headers.get("X-Etcd-Index")), keeps);
    changes.reader = answer.body.getReader();
    changes.take(form);
    return changes;
  }

  async take(form) {
    try {
      for await (const event of api.lines(this.reader)) {
        if (event.errorCode) throw new api.ApiError(400, event);
        if (event.action !== "progress") {
          this.count += 1;
          if (this.keeps) {
            hold(event.node, form);
            this.events.push(event);
          }
        }
        this.index = event.action === "progress" ? event.index : event.node.modifiedIndex;
        this.wake();
      }
      throw new api.Offline("the stream of changes has ended");
    } catch (error) {
      this.failure = error;
      this.wake();
    }
  }

  /** Wait until all up to an index has been told. */
  async until(index) {
    while (this.index < index) {
      if (this.failure) throw this.failure;
      await new Promise(done => (this.wake = done));
    }
    if (this.failure instanceof RangeError) throw this.failure;
  }

  end() {
    this.reader.cancel().catch(() => {});
  }
}

/** Count a node that is held; no export is cut without a word. */
function hold(node, form) {
  form.nodes += 1;
  form.bytes += node.size ?? Math.floor(((node.value ?? "").length * 3) / 4);
  if (form.bytes <= HELD_BYTES_MAX && form.nodes <= HELD_NODES_MAX) return;
  throw new RangeError(`There are more than ${bytes(HELD_BYTES_MAX)} of values or ${number(HELD_NODES_MAX)} keys below it. Nothing was exported; kvdctl export is for more.`);
}

/** Read all below a path into `visit`: {meet, open, leaf, close}. Returns the index of the last answer. */
async function walk(path, form, visit) {
  let after = null;
  let last = 0;
  do {
    if (form.stop.signal.aborted) throw STOPPED;
    const query = { limit: PAGE, after, base64: true, hidden: true, maxValue: PAGE_VALUE_BYTES };
    const { node, next, at } = await api.read(path, query, { isDir: true, signal: form.stop.signal });
    last = Math.max(last, at);
    for (const child of node.nodes ?? []) {
      visit.meet?.(child);
      if (child.dir) {
        await visit.open(child);
        last = Math.max(last, await ifThere(walk(child.key, form, visit), 0));
        await visit.close(child);
      } else {
        const whole = isCut(child) ? await ifThere(api.read(child.key, { base64: true }, { signal: form.stop.signal }), null) : { node: child, at: 0 };
        if (!whole || whole.node.dir) continue; // it has gone meanwhile
        last = Math.max(last, whole.at);
        form.read += 1;
        await visit.leaf(whole.node);
      }
    }
    after = next;
    form.redraw();
  } while (after != null);
  return last;
}

async function ifThere(reading, otherwise) {
  try {
    return await reading;
  } catch (error) {
    if (error.code !== 100 && error.code !== 104) throw error;
    return otherwise;
  }
}

const isCut = node => node.size !== undefined && atob(node.value ?? "").length < node.size;

/** What is written of a node: its text, or the base64 of its bytes, and when it ends. */
function entryOf(node) {
  const { key, dir, ttl, createdIndex, modifiedIndex } = node;
  const ends = ttl ? performance.now() + ttl * 1000 : 0;
  const entry = { key, name: nameOf(key), ends, createdIndex, modifiedIndex };
  if (dir) return { ...entry, children: new Map() };
  const { isBinary, text } = valueOf(node);
  return isBinary ? { ...entry, base64: node.value } : { ...entry, text };
}

// Small enough to be held.

async function held(path, form, name) {
  Object.assign(form, { nodes: 0, bytes: 0 });
  const changes = await Changes.begin(path, form, { keeps: true });
  try {
    const top = { children: new Map() };
    const open = [top];
    const put = node => {
      const entry = entryOf(node);
      open.at(-1).children.set(entry.name, entry);
      return entry;
    };
    const last = await walk(path, form, { meet: node => hold(node, form), open: node => open.push(put(node)), leaf: put, close: () => open.pop() });
    await changes.until(last);
    for (const event of changes.events) replay(top, event, path);
    form.read = 0;
    const parts = [];
    const writer = await writerOf(form.format, text => parts.push(text));
    writeAll(top, writer, form);
    download(parts, name, "text/plain");
    return { from: changes.index, to: changes.index };
  } finally {
    changes.end();
  }
}

/** Take an event into what was read. */
function replay(top, event, path) {
  const { node } = event;
  const isGone = GONE.has(event.action);
  const below = partsOf(path).length;
  const names = partsOf(node.key).slice(below);
  if (!names.length) {
    if (isGone) throw new Error(`${path} was deleted while it was read.`);
    return;
  }
  let dir = top;
  const steps = partsOf(path);
  for (const name of names.slice(0, -1)) {
    steps.push(name);
    let child = dir.children.get(name);
    if (!child?.children) {
      if (isGone) return;
      child = entryOf({ key: `/${steps.join("/")}`, dir: true, createdIndex: node.createdIndex, modifiedIndex: node.createdIndex });
      dir.children.set(name, child);
    }
    dir = child;
  }
  const name = names.at(-1);
  if (isGone) dir.children.delete(name);
  else {
    const entry = entryOf(node);
    const before = dir.children.get(name);
    if (entry.children && before?.children) entry.children = before.children;
    dir.children.set(name, entry);
  }
}

/** Write what is held; with a stack of its own, as a tree may be deeper than calls can be. */
function writeAll(top, writer, form) {
  const stack = [top.children.values()];
  const open = [];
  while (stack.length) {
    const { value, done } = stack.at(-1).next();
    if (done) {
      stack.pop();
      if (open.length) writer.close(open.pop());
    } else if (value.children) {
      writer.open(value);
      open.push(value);
      stack.push(value.children.values());
    } else {
      writer.leaf(value);
      form.read += 1;
    }
  }
  writer.end();
}

// Too large for that: written while it is read.

async function written(path, form, file) {
  const out = await file.createWritable();
  try {
    for (let tries = 1; ; tries += 1) {
      form.tries = tries;
      form.read = 0;
      await out.truncate(0);
      await out.seek(0);
      const { from, to, isSame } = await writtenOnce(path, form, out);
      if (!isSame && tries < TRIES) continue;
      await out.close();
      return isSame ? { from: to, to } : { from, to };
    }
  } catch (error) {
    await out.abort().catch(() => {});
    throw error;
  }
}

async function writtenOnce(path, form, out) {
  const changes = await Changes.begin(path, form, { keeps: false });
  try {
    let texts = [];
    let size = 0;
    const writer = await writerOf(form.format, text => {
      texts.push(text);
      size += text.length;
    });
    const flush = async () => {
      const text = texts.join("");
      texts = [];
      size = 0;
      await out.write(text);
    };
    const full = () => (size > PIECE ? flush() : undefined);
    const last = await walk(path, form, {
      open: node => writer.open(entryOf(node)),
      leaf: node => (writer.leaf(entryOf(node)), full()),
      close: node => writer.close(entryOf(node)),
    });
    writer.end();
    await flush();
    await changes.until(last);
    return { from: changes.from, to: changes.index, isSame: !changes.count };
  } finally {
    changes.end();
  }
}
