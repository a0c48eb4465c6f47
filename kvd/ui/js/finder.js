// The finder: a text that begins with "/" is completed as a path, any other is searched for, in values too.

import { html, nothing } from "../vendor/lit-html.js";
import * as api from "./api.js";
import { clean, nameOf, number, parentOf, visible } from "./format.js";
import { button, dialog, icon } from "./parts.js";
import { go, readableRoots, remember, remembered, say, state } from "./state.js";

const WAIT_MS = 150;
const LIMIT = 50;
const RECENT = 8;

/** Note a path as one of those visited lately; for this browser alone, until logging out. */
export function visited(path) {
  const recent = remembered("recent", []).filter(other => other !== path);
  remember("recent", [path, ...recent].slice(0, RECENT));
}

/** Open the finder, with a text that was typed already; `isEntered`: with what is entered to be opened. */
export function openFinder(text = "", isEntered = false) {
  const find = { text: "", rows: recent(), at: 0, inValues: remembered("inValues", true), told: "", next: null, isBusy: false, timer: 0, abort: null, isPending: false, opensFirst: false };
  const shown = dialog("Find", redraw => html`
    <div class="finder"><input class="find-field mono" autofocus role="combobox" aria-expanded="true" aria-controls="found" aria-autocomplete="list"
        aria-activedescendant=${find.rows.length ? `found-${find.at}` : nothing} aria-label="Find a path or a word"
        placeholder="Find a path or a word" spellcheck="false" autocomplete="off" .value=${find.text} @input=${event => type(event.target.value)} @keydown=${onKey}>
      <ul id="found" role="listbox" aria-label="Found" tabindex="-1">${find.rows.map((row, at) => rowView(row, at))}</ul>
      ${find.rows.length ? nothing : html`<p class="note">${find.isBusy ? "Searching …" : find.text ? "Nothing found." : "Type a word, or “/” and a path."}</p>`}
    </div>
    <div class="dialog-foot finder-foot"><label class="tick"><input type="checkbox" .checked=${find.inValues} @change=${event => {
        find.inValues = event.target.checked;
        remember("inValues", find.inValues);
        redraw();
        type(find.text);
      }}>in values too</label><span>${find.told}</span>${find.next ? button(null, "Go on", () => search(find.next)) : nothing}
      <span class="hint"><kbd>↑</kbd><kbd>↓</kbd> choose · <kbd>Tab</kbd> complete · <kbd>↵</kbd> open</span></div>`,
  { kind: "finder-dialog", onClose: () => find.abort?.abort() });
  if (text) {
    type(text);
    shown.redraw();
    if (isEntered) open(0);
  }

  function rowView(row, at) {
    return html`<li id="found-${at}" role="option" aria-selected=${String(at === find.at)} class="found" @click=${() => openRow(find.rows[at])} @pointermove=${() => {
      if (find.at === at) return;
      find.at = at;
      shown.redraw();
    }}>${icon(row.dir ? "folder" : row.isRecent ? "clock" : "file")}<span><span class="found-path">${marked(visible(row.path), find.text.startsWith("/") || row.in === "values" ? "" : find.text)}</span>
      ${row.around ? html`<span class="around">${marked(row.around.replace(/\s+/g, " "), row.in === "values" ? find.text : "")}</span>` : nothing}</span></li>`;
  }

  function type(text) {
    Object.assign(find, { text, at: 0, isPending: text !== "", opensFirst: false });
    clearTimeout(find.timer);
    find.abort?.abort();
    if (!text) {
      Object.assign(find, { rows: recent(), told: "", next: null, isBusy: false });
      return shown.redraw();
    }
    find.timer = setTimeout(() => (text.startsWith("/") ? complete(text) : search(null)), WAIT_MS);
    return undefined;
  }

  async function asked(action) {
    find.abort?.abort();
    const { signal } = (find.abort = new AbortController());
    find.isBusy = true;
    shown.redraw();
    try {
      await action(signal);
    } catch (error) {
      if (error.name === "AbortError") return;
      Object.assign(find, { rows: [], told: error.code === 100 ? "no such directory" : error.message, next: null });
    }
    Object.assign(find, { isBusy: false, isPending: false });
    if (shown.element.open) {
      shown.redraw();
      say(find.told);
      if (find.opensFirst) open(0);
    }
  }

  const complete = text => asked(async signal => {
    const dir = text.endsWith("/") ? text.replace(/\/+$/, "") || "/" : parentOf(text);
    const prefix = text.endsWith("/") ? "" : nameOf(text);
    const answer = await api.read(dir, { limit: LIMIT, prefix, maxValue: 80, hidden: prefix.startsWith("_") || state.showsHidden }, { isDir: true, signal });
    const rows = (answer.node.nodes ?? []).map(node => ({ path: node.key, dir: node.dir, around: node.value, in: "" }));
    Object.assign(find, { rows, told: `${number(rows.length)}${answer.next ? " and more" : ""} in ${dir}`, next: null });
  });

  const search = after => asked(async signal => {
    const rows = after ? find.rows : [];
    let scanned = after ? find.scanned : 0;
    const query = { find: find.text, in: find.inValues ? "keys,values" : "keys", recursive: true, limit: LIMIT, hidden: state.showsHidden };
    const roots = readableRoots();
    let next = null;
    for (const root of after ? roots.filter(root => root === "/" || after.startsWith(root)) : roots) {
      const answer = await api.read(root, { ...query, after }, { isDir: true, signal });
      rows.push(...answer.nodes.map(node => ({ path: node.key, dir: node.dir, around: node.around, in: node.in })));
      scanned += answer.scanned;
      next ??= answer.next;
    }
    Object.assign(find, { rows, scanned, next, told: `${number(rows.length)} in ${number(scanned)} nodes looked at` });
  });

  function open(at) {
    if (find.isPending && !find.text.startsWith("/")) return void (find.opensFirst = true);
    // What is listed while the answer has not come is of another text.
    openRow(find.isPending ? null : find.rows[at]);
  }

  function openRow(row) {
    if (!row && !find.text.startsWith("/")) return;
    shown.close();
    go("keys", row ? row.path : clean(find.text));
  }

  function onKey(event) {
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: 8, PageUp: -8 };
    if (event.key in steps) {
      find.at = Math.max(0, Math.min(find.rows.length - 1, find.at + steps[event.key]));
      shown.redraw();
      document.getElementById(`found-${find.at}`)?.scrollIntoView({ block: "nearest" });
    } else if (event.key === "Enter") open(find.at);
    else if (event.key === "Tab" && !event.shiftKey && find.rows[find.at]) {
      const row = find.rows[find.at];
      const text = row.dir ? `${row.path}/` : row.path;
      type(text);
      shown.redraw();
    } else return;
    event.preventDefault();
  }
}

const recent = () => remembered("recent", []).map(path => ({ path, isRecent: true }));

/** A text with what was searched for marked in it. */
function marked(text, word) {
  const at = word ? text.toLowerCase().indexOf(word.toLowerCase()) : -1;
  if (at < 0) return text;
  return html`${text.slice(0, at)}<mark>${text.slice(at, at + word.length)}</mark>${text.slice(at + word.length)}`;
}
