// The tree on the screen: only the rows in sight exist, at most about eighty.

import { html, nothing, render } from "../vendor/lit-html.js";
import { icon, ring } from "./parts.js";
import { bytes, number, short, visible } from "./format.js";
import { mayList, onDraw, state, update } from "./state.js";
import * as tree from "./tree.js";

// Browsers end at some height of an element: beyond this, a place on the bar stands for more than one row.
const HEIGHT_MAX = 12e6;
const AHEAD = 8;
// Deeper rows are not moved further to the right, where nobody would see their names.
const LEVELS_MAX = 14;
const GLOW_MS = 1600;
const END_MS = 700;

const view = { scroller: null, rows: null, spacer: null, cursor: 0, ended: new Set(), onSelect: null };

const rowHeight = () => (matchMedia("(max-width: 760px)").matches ? 40 : 28);

export function mount(scroller, onSelect) {
  view.scroller = scroller;
  view.onSelect = onSelect;
  view.spacer = document.createElement("div");
  view.spacer.className = "spacer";
  view.spacer.setAttribute("role", "presentation");
  view.rows = document.createElement("div");
  view.rows.className = "rows";
  view.rows.setAttribute("role", "presentation");
  view.spacer.append(view.rows);
  scroller.replaceChildren(view.spacer);
  scroller.addEventListener("scroll", draw, { passive: true });
  scroller.addEventListener("click", onClick);
  scroller.addEventListener("keydown", onKey);
  new ResizeObserver(draw).observe(scroller);
  draw();
}

onDraw(() => draw());
setInterval(() => {
  if (!view.rows?.querySelector(".ttl")) return;
  tree.noteEnds(view.ended);
  view.ended.clear();
  update();
}, 1000);

/** Which rows are in sight, and where the first one begins. */
function window_() {
  const size = rowHeight();
  const rows = tree.height();
  const { scrollTop, clientHeight } = view.scroller;
  const whole = rows * size;
  const shown = Math.min(whole, HEIGHT_MAX);
  const scale = whole > shown ? (whole - clientHeight) / (shown - clientHeight) : 1;
  const top = scrollTop * scale;
  const first = Math.max(0, Math.floor(top / size) - AHEAD);
  const last = Math.min(rows, Math.ceil((top + clientHeight) / size) + AHEAD);
  return { size, rows, shown, scale, first, last, offset: scrollTop - (top - first * size) };
}

function draw() {
  if (!view.scroller?.isConnected) return;
  const { size, rows, shown, first, last, offset } = window_();
  view.cursor = Math.max(0, Math.min(view.cursor, rows - 1));
  view.spacer.style.height = `${shown}px`;
  view.rows.style.transform = `translateY(${offset}px)`;
  const drawn = [];
  let isGlowing = false;
  const now = performance.now();
  for (let row = first; row < last; row += 1) {
    const found = tree.rowAt(row);
    if (!found.child && found.dir.state === "ready") tree.readStretch(found.dir, found.at);
    isGlowing ||= Boolean(found.child && now - found.child.glow < GLOW_MS);
    drawn.push(rowOf(row, found, size, now));
  }
  render(drawn, view.rows);
  const active = `row-${view.cursor}`;
  if (rows) view.scroller.setAttribute("aria-activedescendant", active);
  else view.scroller.removeAttribute("aria-activedescendant");
  if (isGlowing) setTimeout(update, GLOW_MS);
}

function rowOf(row, { dir, place, level, child }, size, now) {
  const isCursor = row === view.cursor;
  const common = `padding-left:${8 + Math.min(level - 1, LEVELS_MAX) * 16}px;height:${size}px`;
  if (!child) {
    return html`<div class="row waits" role="treeitem" id="row-${row}" data-row=${row} aria-level=${level} aria-selected="false"
      aria-setsize=${dir.count} aria-posinset=${place + 1} aria-busy="true" aria-label="loading" .style=${common}>
      <span class="chevron"></span><span class="ghost"></span></div>`;
  }
  const known = tree.knownDir(child.path);
  const isOpen = Boolean(child.dir && known?.isOpen);
  const isSelected = state.route.page === "keys" && state.route.path === child.path;
  const classes = ["row", isSelected && "selected", isCursor && "cursor", child.name.startsWith("_") && "is-hidden",
    child.dir && "is-dir", now - child.glow < GLOW_MS && "glow"].filter(Boolean).join(" ");
  return html`<div class=${classes} role="treeitem" id="row-${row}" data-row=${row} aria-level=${level}
    aria-expanded=${child.dir ? String(isOpen) : nothing} aria-selected=${String(isSelected)} aria-setsize=${dir.count}
    aria-posinset=${place + 1} .style=${common}>
    <span class="chevron ${isOpen ? "open" : ""}" data-toggle>${child.dir ? icon("right", 14) : nothing}</span>
    ${icon(child.dir ? "folder" : "file", 15)}
    <span class="name">${visible(child.name)}</span>
    <span class="value">${child.dir ? nothing : preview(child)}</span>
    ${child.ends ? ttl(child, now) : isOpen && known.state === "ready" ? html`<span class="count">${number(known.count)}</span>` : nothing}
  </div>`;
}

function preview(child) {
  if (child.value === "") return "";
  if (/[\u0000-\u0008\u000e-\u001f\u007f\ufffd]/.test(child.value)) return `binary, ${bytes(child.size)}`;
  return visible((child.value ?? "").replace(/\s+/g, " "));
}

function ttl(child, now) {
  const left = Math.max(0, (child.ends - now) / 1000);
  if (now > child.ends + END_MS && !child.isEnded) view.ended.add(child);
  const kind = left < 10 ? "bad" : left < 60 ? "warn" : "";
  return html`<span class="ttl ${kind}">${ring(child.ttl ? Math.min(1, left / Math.max(60, child.ttl)) : 0)}${short(left)}</span>`;
}

// The cursor: the row that keys act on. Where it goes the value follows.

/** Put the cursor on the row of a path, and have that in sight. */
export function show(path) {
  const row = tree.rowOf(path);
  if (row < 0) return false;
  moveTo(row, { selects: false });
  return true;
}

export function moveTo(row, { selects = true } = {}) {
  const { size, rows, scale } = window_();
  if (!rows) return;
  view.cursor = Math.max(0, Math.min(row, rows - 1));
  const { scroller } = view;
  const top = view.cursor * size;
  const seen = scroller.scrollTop * scale;
  if (top < seen) scroller.scrollTop = top / scale;
  else if (top + size > seen + scroller.clientHeight) scroller.scrollTop = (top + size - scroller.clientHeight) / scale;
  const { child } = tree.rowAt(view.cursor);
  if (selects && child) view.onSelect(child, { isLight: true });
  draw();
}

export const focus = () => view.scroller?.focus({ preventScroll: true });

export async function toggle(path) {
  if (tree.knownDir(path)?.isOpen) tree.close(path);
  else await tree.open(path);
}

function onClick(event) {
  const element = event.target.closest("[data-row]");
  if (!element) return;
  view.cursor = Number(element.dataset.row);
  const { child } = tree.rowAt(view.cursor);
  if (!child) return;
  const isToggle = event.target.closest("[data-toggle]");
  if (child.dir) {
    const isOpen = tree.knownDir(child.path)?.isOpen;
    // A click on a directory shows and opens it; one on its sign, or on the one that is shown, toggles.
    if (isToggle || (isOpen && state.route.path === child.path)) toggle(child.path);
    else if (!isOpen) tree.open(child.path);
    if (isToggle) return update();
  }
  view.onSelect(child, { isLight: false });
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const page = Math.max(1, Math.floor(view.scroller.clientHeight / rowHeight()) - 1);
  const { child } = tree.height() ? tree.rowAt(view.cursor) : {};
  const isOpen = child?.dir && tree.knownDir(child.path)?.isOpen;
  const moves = {
    ArrowDown: 1, j: 1, ArrowUp: -1, k: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity,
  };
  if (event.key in moves) moveTo(view.cursor + moves[event.key]);
  else if (event.key === "ArrowRight" || event.key === "l") {
    if (child?.dir && !isOpen) tree.open(child.path);
    else if (isOpen) moveTo(view.cursor + 1);
    else if (child) view.onSelect(child, { isLight: false });
  } else if (event.key === "ArrowLeft" || event.key === "h") {
    if (isOpen) tree.close(child.path);
    else if (child) {
      const row = tree.rowOf(tree.treeParent(child.path).path);
      if (row >= 0) moveTo(row);
    }
  } else if (event.key === "Enter" || event.key === " ") {
    if (child?.dir) toggle(child.path);
    if (child) view.onSelect(child, { isLight: false });
  } else return;
  event.preventDefault();
  event.stopPropagation();
}

export const isEmpty = () => !tree.height();

/** What stands where the tree has no rows. */
export function emptiness(onNew) {
  const root = tree.rootOf();
  if (root.state === "failed") return html`<p class="note">The keys could not be read: ${root.error.message}.</p>`;
  if (root.state !== "ready") return html`<p class="note">Loading …</p>`;
  if (root.count) return nothing;
  if (!mayList("/")) return html`<p class="note">There is nothing here that you may read.</p>`;
  return html`<div class="note"><p>No keys yet. A key is a path with a value, such as <code>/greeting</code>.</p>
    ${root.hidden ? html`<p>Only hidden ones: ${number(root.hidden)}, whose names begin with “_”.</p>` : nothing}
    <button class="button" @click=${onNew}>${icon("plus")} New key</button></div>`;
}
