// The history of a key: what each event changed, what it would change now, and its restoration.

import { html, nothing } from "../vendor/lit-html.js";
import * as api from "./api.js";
import { ago, compare, day, number, partsOf, titleOf } from "./format.js";
import { comparable, detail, showAgain, valueOf } from "./detail.js";
import { action, button, dialog } from "./parts.js";
import { difference } from "./difference.js";
import { refusal, toast, update } from "./state.js";
import { importAll, ofBytes, ofDir } from "./transfer.js";

const PAGE = 50;
const RESTORED_PAGE = 1000;
const REMOVALS = new Set(["delete", "expire", "compareAndDelete"]);
// Longer values are cut here; a restoration reads the whole of what is restored.
const VALUE_BYTES = 100_000;

class History {
  constructor(path) {
    this.path = path;
    this.events = [];
    this.chosen = 0;
    this.next = null;
    this.first = 0;
    this.limit = 0;
    this.state = "loading";
    this.isStale = false;
    this.run = 0;
    this.read();
  }

  async read(before = null) {
    this.isStale = false;
    const run = (this.run += 1);
    try {
      const query = { history: true, limit: PAGE, before, base64: true, maxValue: VALUE_BYTES };
      const answer = await api.read(this.path, query);
      if (run !== this.run) return;
      const events = answer.events.map(event => ({
        ...event,
        at: new Date(event.time),
        after: event.node.value === undefined || event.node.dir ? null : valueOf({ ...event.node, key: this.path }),
        before: event.prevNode?.value === undefined ? null : valueOf({ ...event.prevNode, key: this.path }),
      }));
      this.events = before ? [...this.events, ...events] : events;
      this.next = answer.next;
      this.first = answer.first;
      this.limit = answer.limit;
      this.chosen = this.events.some(event => event.node.modifiedIndex === this.chosen) ? this.chosen : this.events[0]?.node.modifiedIndex ?? 0;
      this.state = "ready";
    } catch (error) {
      if (run !== this.run) return;
      this.state = "failed";
      this.error = error;
    }
    update();
  }
}

export function historyView(shown) {
  if (shown.history?.path !== shown.path) shown.history = new History(shown.path);
  const { history } = shown;
  if (history.isStale) history.read();
  if (history.state === "loading") return html`<p class="note" aria-busy="true">Loading …</p>`;
  if (history.state === "failed") return html`<p class="note">The history could not be read: ${history.error.message}.</p>`;
  const event = history.events.find(other => other.node.modifiedIndex === history.chosen);
  return html`<div class="history">
    <div class="versions" @keydown=${keys => onKey(keys, history)}>
      ${history.events.length ? nothing : html`<p class="note">The history has nothing about this key.</p>`}
      <ul aria-label="Versions">${history.events.map(each => versionRow(each, history))}</ul>
      ${history.next ? html`<p>${button(null, "Older ones", () => history.read(history.next))}</p>` : end(history)}
    </div>
    <div class="version">${event ? version(event) : nothing}</div>
  </div>`;
}

function versionRow(event, history) {
  const { modifiedIndex } = event.node;
  const isChosen = modifiedIndex === history.chosen;
  return html`<li><button type="button" class="version-row" aria-pressed=${String(isChosen)} @click=${() => {
    history.chosen = modifiedIndex;
    update();
  }}><span>${action(event.action)}<b>${number(modifiedIndex)}</b></span>
    <small>${day(event.at)} · ${ago((Date.now() - event.at) / 1000)}</small></button></li>`;
}

function onKey(event, history) {
  const step = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  event.stopPropagation();
  const at = history.events.findIndex(other => other.node.modifiedIndex === history.chosen) + step;
  if (!history.events[at]) return;
  history.chosen = history.events[at].node.modifiedIndex;
  update();
  requestAnimationFrame(() => document.querySelector('.version-row[aria-pressed="true"]')?.focus());
}

const end = history => html`<p class="end">The server keeps its last ${number(history.limit)} events, all keys together${
  history.first > 1 ? html`: from index ${number(history.first)} on. Older changes are gone.` : ". Nothing is lost so far."}
  <code>--event-history-limit</code> keeps more.</p>`;

function version(event) {
  const index = event.node.modifiedIndex;
  const current = detail.status === "key" ? detail.value : null;
  const why = refusal(detail.path);
  const restored = event.after ?? event.before;
  const isCurrent = detail.node?.modifiedIndex === index;
  const isGone = !event.after;
  return html`<div class="version-head">${action(event.action)}<h3>Index ${number(index)}</h3><small>${day(event.at)}</small>
      ${isDirGone(event) ? button("reload", "Restore what was in it", () => restoreDir(event), { disabled: refusal(detail.path, { all: true }) }) : nothing}
      ${restored && !isCurrent ? button("reload", isGone ? "Restore what it removed" : "Restore this version", () => restore(event, restored),
        { disabled: why }) : isCurrent ? html`<span class="tag ok-tag">stored now</span>` : nothing}</div>
    ${event.after?.isCut || event.before?.isCut ? html`<p class="note">Only the beginning of these long values is compared.</p>` : nothing}
    <h4>What it changed</h4>
    ${event.before || event.after ? difference(text(event.before), text(event.after), "What it changed") : html`<p class="note">${isDirGone(event) ? "The directory, with everything that was in it." : "A directory."}</p>`}
    ${current && !isCurrent && restored ? html`<h4>Against what is stored now</h4>${difference(text(current), text(restored), "What a restoration would change")}` : nothing}`;
}

/** Whether an event removed the directory whose history this is. */
const isDirGone = event => event.prevNode?.dir && REMOVALS.has(event.action) && event.node.key === detail.path;

/** A path and those above it. */
const above = path => partsOf(path).map((_, at, parts) => `/${parts.slice(0, at + 1).join("/")}`);

/** What was in a directory when an event removed it, from the events before, as a dry run that can be written. */
async function restoreDir(event) {
  const { path } = detail;
  const seen = new Set();
  const gone = new Set();
  const keys = [];
  let before = event.node.modifiedIndex;
  let first = 0;
  try {
    do {
      const answer = await api.read(path, { history: true, recursive: true, before, base64: true, limit: RESTORED_PAGE });
      ({ first } = answer);
      for (const { action: name, node } of answer.events) {
        if (REMOVALS.has(name)) gone.add(node.key);
        if (node.key === path || seen.has(node.key) || above(node.key).some(dir => gone.has(dir))) continue;
        seen.add(node.key);
        const { data, text: text_, isBinary } = valueOf(node);
        keys.push({ ...(node.dir ? ofDir(node.key) : { ...ofBytes(node.key, data), text: text_, isBinary }), ttl: node.ttl ?? 0 });
      }
      before = answer.next;
    } while (before != null && Number(before) > event.prevNode.createdIndex);
  } catch (error) {
    return toast(`The history could not be read: ${error.message}`, { kind: "bad" });
  }
  const isWhole = first <= event.prevNode.createdIndex;
  keys.sort((a, b) => compare(a.path, b.path));
  return importAll(path, () => showAgain(path), {
    keys, title: `Restore what was in ${titleOf(path)}?`,
    note: isWhole ? "All that was in it when it was removed, from the history. Keys that had a time to expire get it again."
      : `What the history still has of it: changes from index ${number(first)} on. Keys that were last written before are not in it.`,
  });
}

const text = value => (value ? comparable(value) : "");

/** Show what a restoration changes, then make it, if the key is still as it is shown. */
async function restore(event, restored) {
  const { path, status, node } = detail;
  const index = event.after ? event.node.modifiedIndex : event.prevNode.modifiedIndex;
  let bytes = restored.data;
  let problem = "";
  try {
    // The whole of it: what was compared may be cut.
    if (restored.isCut) bytes = valueOf((await api.read(path, { at: index, base64: true })).node).data;
  } catch (error) {
    problem = error.message;
  }
  const exists = status === "key";
  const { ends } = detail;
  const current = exists ? comparable(detail.value) : "";
  const shown = dialog("Restore this version?", (redraw, close) => html`
    <div class="dialog-body"><h2>Restore index ${number(index)}?</h2>
      <p class="mono wrap">${path}</p>
      ${exists ? difference(current, text(restored), "What is restored") : html`<p>The key is not there now: it is created again.</p>`}
      ${problem ? html`<p class="bad" role="alert">${problem}</p>` : nothing}</div>
    <div class="dialog-foot">${button(null, "Cancel", close)}
      <button type="button" class="button primary" autofocus ?disabled=${Boolean(problem)} @click=${put}>Restore</button></div>`, { kind: "wide" });
  async function put() {
    try {
      const query = exists ? { prevIndex: node.modifiedIndex } : { prevExist: "false" };
      if (exists && ends) query.ttl = Math.max(1, Math.ceil((ends - performance.now()) / 1000));
      const answer = await api.writeBytes(path, bytes, query);
      shown.close();
      toast(`Restored; it is index ${number(answer.node.modifiedIndex)} now.`, { seconds: 8 });
      await showAgain(path);
      if (detail.history) detail.history.isStale = true;
      update();
    } catch (error) {
      problem = error.code === 101 || error.code === 105 || error.code === 100
        ? "The key has changed meanwhile. Nothing was overwritten: close this and look again." : error.message;
      shown.redraw();
    }
  }
}
