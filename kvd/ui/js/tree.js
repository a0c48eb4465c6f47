// The tree as the page knows it: directories in stretches of 500 children.
//
// A directory is counted first (`marks`): the last name of each stretch, so that the scroll bar is right before a
// child has come. A stretch is read when one of its rows is looked at. Events of the feed change the stretches that
// are there; a directory of which too much is unknown is counted again.
//
//   dir.marks[i]    the last name of stretch i; the last stretch has none
//   dir.pages[i]    its children, in order; undefined while it has not been read
//   dir.sizes[i]    how many they are

import * as api from "./api.js";
import { compare, join, nameOf, parentOf, partsOf, isHidden } from "./format.js";
import { readableRoots, state, update } from "./state.js";

const EVERY = 500;
const PREVIEW_BYTES = 120;
const STALE_MS = 1500;
const RECENT_MAX = 1000;

let version = 0;
const dirs = new Map();

class Dir {
  constructor(path) {
    this.path = path;
    this.isOpen = false;
    this.state = "new"; // loading, ready, failed
    this.error = null;
    this.forget();
    this.laidOut = null;
    this.staleTimer = 0;
  }

  forget() {
    this.marks = [];
    this.pages = [[]];
    this.sizes = [0];
    this.count = 0;
    this.hidden = 0;
    this.loading = new Map();
  }
}

export const rootOf = () => dirOf("/");

export function dirOf(path) {
  let dir = dirs.get(path);
  if (!dir) dirs.set(path, (dir = new Dir(path)));
  return dir;
}

export const knownDir = path => dirs.get(path);

function changed() {
  version += 1;
  update();
}

// Reading.

/** Count a directory and read its first stretch, unless that has been done. */
export async function load(dir) {
  if (dir.state === "ready") return;
  if (!dir.counting) dir.counting = count(dir).finally(() => (dir.counting = null));
  await dir.counting;
}

async function count(dir) {
  const isFirst = dir.state !== "ready";
  if (isFirst) dir.state = "loading";
  changed();
  try {
    const roots = dir.path === "/" ? readableRoots() : ["/"];
    if (roots[0] === "/") await countRead(dir);
    else await readRoots(dir, roots);
    dir.state = "ready";
    dir.error = null;
  } catch (error) {
    if (isFirst) dir.state = "failed";
    dir.error = error;
  }
  changed();
}

async function countRead(dir) {
  const hidden = state.showsHidden;
  const first = read(dir, null);
  const told = await api.read(dir.path, { marks: EVERY, hidden }, { isDir: true });
  const page = await first;
  const lowest = Math.min(told.at, page.at);
  const visible = dir.state === "ready" ? seen(dir) : null;
  dir.marks = told.marks;
  dir.count = told.count;
  dir.hidden = told.hidden;
  dir.sizes = told.marks.map(() => told.every);
  dir.sizes.push(told.count - told.marks.length * told.every);
  const pages = new Array(dir.sizes.length).fill(undefined);
  pages[0] = page.filter(child => !dir.marks.length || compare(child.name, dir.marks[0]) <= 0);
  dir.pages = pages;
  dir.loading.clear();
  settle(dir, 0);
  catchUp(dir, 0, lowest);
  const last = dir.sizes.length - 1;
  if (last && dir.sizes[last] === 0) dir.pages[last] = [];
  if (visible) await readStretch(dir, stretchOf(dir, visible));
}

/** The name of a child that has been seen lately: its stretch is read again, too. */
const seen = dir => dir.seen ?? "";

/** Where "/" may not be read, its children are the places that may be. */
async function readRoots(dir, roots) {
  const found = await Promise.all(roots.map(async path => {
    try {
      const { node } = await api.read(path, { limit: 1, maxValue: PREVIEW_BYTES });
      return { ...entry(node, ""), name: path.slice(1) };
    } catch (error) {
      if (error instanceof api.ApiError) return null;
      throw error;
    }
  }));
  dir.marks = [];
  dir.pages = [found.filter(Boolean)];
  settle(dir, 0);
}

async function read(dir, after) {
  const query = { limit: EVERY, after, maxValue: PREVIEW_BYTES, hidden: state.showsHidden };
  const answer = await api.read(dir.path, query, { isDir: true });
  if (!answer.node.dir) throw new api.ApiError(404, { errorCode: 104, message: "Not a directory" });
  const children = (answer.node.nodes || []).map(node => entry(node, dir.path));
  children.next = answer.next;
  children.at = answer.at;
  return children;
}

export function entry(node, parent) {
  const now = performance.now();
  return {
    path: node.key || "/",
    name: nameOf(node.key || "/"),
    dir: Boolean(node.dir),
    value: node.value,
    size: node.size ?? (node.value == null ? 0 : node.value.length),
    ends: node.ttl == null ? 0 : now + node.ttl * 1000,
    ttl: node.ttl ?? 0,
    index: node.modifiedIndex,
    parent,
    glow: -Infinity,
  };
}

function settle(dir, at) {
  dir.sizes[at] = dir.pages[at].length;
  dir.count = dir.sizes.reduce((sum, size) => sum + size, 0);
}

/** Read a stretch, unless it is there. */
export function readStretch(dir, at) {
  if (dir.pages[at]) return Promise.resolve();
  let reading = dir.loading.get(at);
  if (!reading) {
    const { marks } = dir;
    reading = readAll(dir, at)
      .then(children => {
        if (dir.marks !== marks) return; // it was counted again meanwhile
        dir.pages[at] = children;
        settle(dir, at);
        catchUp(dir, at, children.at);
      })
      .catch(error => {
        if (!(error instanceof api.Offline)) dir.error = error;
      })
      .finally(() => {
        if (dir.loading.get(at) === reading) dir.loading.delete(at);
        changed();
      });
    dir.loading.set(at, reading);
  }
  return reading;
}

/** All children up to the mark: more may have come than were counted. */
async function readAll(dir, at) {
  const mark = dir.marks[at];
  const found = [];
  found.at = Infinity;
  let after = at ? dir.marks[at - 1] : null;
  for (;;) {
    const page = await read(dir, after);
    found.at = Math.min(found.at, page.at);
    for (const child of page) {
      if (mark !== undefined && compare(child.name, mark) > 0) return found;
      found.push(child);
    }
    if (page.next == null || found.length > 20 * EVERY || (mark !== undefined && compare(page.next, mark) >= 0)) return found;
    after = page.next;
  }
}

/** The stretch that a name is in, or would be. */
function stretchOf(dir, name) {
  let low = 0;
  let high = dir.marks.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (compare(name, dir.marks[middle]) <= 0) high = middle;
    else low = middle + 1;
  }
  return low;
}

function placeIn(children, name) {
  let low = 0;
  let high = children.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (compare(children[middle].name, name) < 0) low = middle + 1;
    else high = middle;
  }
  return { place: low, isThere: children[low]?.name === name };
}

function find(dir, name) {
  const at = stretchOf(dir, name);
  const children = dir.pages[at];
  if (!children) return { at, children: null, place: -1, isThere: false };
  return { at, children, ...placeIn(children, name) };
}

// Rows. The rows of a directory are its children, and below each open one its rows.

function layout(dir) {
  if (dir.laidOut?.version === version) return dir.laidOut;
  const opens = [];
  for (const child of dir.opened ?? []) {
    const { at, place, isThere } = find(dir, childName(dir, child.path));
    if (child.isOpen && isThere) opens.push([start(dir, at) + place, child]);
  }
  opens.sort((a, b) => a[0] - b[0]);
  const height = opens.reduce((sum, [, child]) => sum + layout(child).height, dir.count);
  return (dir.laidOut = { version, opens, height });
}

/** The name of a child in a directory; below a root that may not be read it is a path. */
const childName = (dir, path) =>
  dir.path === "/" && readableRoots()[0] !== "/" ? path.slice(1) : nameOf(path);

function start(dir, at) {
  let sum = 0;
  for (let stretch = 0; stretch < at; stretch += 1) sum += dir.sizes[stretch];
  return sum;
}

export const height = () => layout(rootOf()).height;

/** The row: its directory, its place there, its level, and the child, if that has been read. */
export function rowAt(row, dir = rootOf(), level = 1) {
  let skipped = 0;
  for (const [place, child] of layout(dir).opens) {
    const at = place + skipped;
    if (row <= at) break;
    const rows = layout(child).height;
    if (row <= at + rows) return rowAt(row - at - 1, child, level + 1);
    skipped += rows;
  }
  const place = row - skipped;
  let at = 0;
  let before = 0;
  while (at < dir.sizes.length - 1 && before + dir.sizes[at] <= place) {
    before += dir.sizes[at];
    at += 1;
  }
  const child = dir.pages[at]?.[place - before];
  if (child) dir.seen = child.name;
  return { dir, place, level, at, child };
}

/** The row of a path, -1 if it is in no directory that is open and read. */
export function rowOf(path) {
  const roots = readableRoots();
  let dir = rootOf();
  let row = -1;
  const steps = stepsTo(path, roots);
  for (const [number, step] of steps.entries()) {
    const { at, place, isThere } = find(dir, childName(dir, step));
    if (!isThere) return -1;
    const here = start(dir, at) + place;
    row += 1 + here;
    for (const [open, child] of layout(dir).opens) if (open < here) row += layout(child).height;
    if (number < steps.length - 1) {
      dir = dirs.get(step);
      if (!dir?.isOpen) return -1;
    }
  }
  return row;
}

/** The paths from the top of the tree down to a path. */
function stepsTo(path, roots) {
  const root = roots.find(place => place === "/" || path === place || path.startsWith(`${place}/`));
  if (!root || path === "/") return [];
  const parts = partsOf(root === "/" ? path : path.slice(root.length));
  let at = root;
  const steps = root === "/" ? [] : [root];
  for (const name of parts) steps.push((at = join(at, name)));
  return steps;
}

// Opening and closing.

export async function open(path) {
  const dir = dirOf(path);
  const above = treeParent(path);
  (above.opened ??= new Set()).add(dir);
  dir.isOpen = true;
  changed();
  await load(dir);
}

export function close(path) {
  const dir = dirs.get(path);
  if (dir) dir.isOpen = false;
  changed();
}

export function treeParent(path) {
  const steps = stepsTo(path, readableRoots());
  return dirOf(steps.at(-2) ?? "/");
}

/** Open all above a path and read the stretch that it is in. */
export async function reveal(path) {
  await load(rootOf());
  const steps = stepsTo(path, readableRoots());
  let dir = rootOf();
  for (const [number, step] of steps.entries()) {
    if (dir.state !== "ready") return;
    const name = childName(dir, step);
    await readStretch(dir, stretchOf(dir, name));
    if (number < steps.length - 1) {
      const { isThere, children, place } = find(dir, name);
      if (!isThere || !children[place].dir) return;
      await open(step);
      dir = dirOf(step);
    }
  }
  changed();
}

/** Read again all that is open: after a gap, or when that is asked for. */
export async function reloadAll() {
  const open = [...dirs.values()].filter(dir => dir.isOpen || dir.path === "/");
  for (const path of dirs.keys()) if (!open.includes(dirs.get(path))) dirs.delete(path);
  for (const dir of open) {
    if (dir.state === "failed") dir.state = "new";
    await count(dir);
  }
}

/** Forget everything: another user may see other keys. */
export function reset() {
  recent.length = 0;
  dirs.clear();
  changed();
}

function makeStale(dir) {
  if (dir.staleTimer) return;
  dir.staleTimer = setTimeout(() => {
    dir.staleTimer = 0;
    if (dirs.get(dir.path) === dir && dir.state === "ready") count(dir);
  }, STALE_MS);
}

/** The time of children has run out, and no event told of their end: they may have been refreshed, which is not told. */
export function noteEnds(children) {
  for (const child of children) {
    child.isEnded = true;
    const dir = dirs.get(child.parent || "/");
    if (dir) makeStale(dir);
  }
}

// Events.

const GONE = new Set(["delete", "expire", "compareAndDelete"]);

// What has come lately: an answer may be older than an event that came before it.
const recent = [];

/** Take into a stretch that was read what has changed since. */
function catchUp(dir, at, index) {
  for (const event of recent) {
    const { key, modifiedIndex } = event.node;
    if (modifiedIndex <= index || (isHidden(key) && !state.showsHidden)) continue;
    const steps = stepsTo(key, readableRoots());
    const number = dir.path === "/" ? 0 : steps.indexOf(dir.path) + 1;
    const step = steps[number];
    if (!step || (!number && dir.path !== "/")) continue;
    const found = find(dir, childName(dir, step));
    if (found.at !== at || !found.children) continue;
    if (number === steps.length - 1 && GONE.has(event.action)) {
      if (found.isThere) found.children.splice(found.place, 1);
    } else if (!GONE.has(event.action)) put(dir, found, step, number === steps.length - 1 ? event.node : null, event.node);
    settle(dir, at);
  }
}

/** Take an event of the feed into the tree. */
export function apply(event) {
  const { node } = event;
  recent.push(event);
  if (recent.length > 2 * RECENT_MAX) recent.splice(0, RECENT_MAX);
  if (isHidden(node.key) && !state.showsHidden) return;
  if (GONE.has(event.action)) takeOut(node.key);
  else putIn(node, event);
}

function putIn(node, event) {
  const steps = stepsTo(node.key, readableRoots());
  let dir = rootOf();
  for (const [number, step] of steps.entries()) {
    if (dir.state !== "ready") return;
    const isLast = number === steps.length - 1;
    const found = find(dir, childName(dir, step));
    if (!found.children) {
      // It may be new, or not: where it is new the count is wrong.
      if (!event.prevNode) makeStale(dir);
      if (!isLast) {
        dir = dirs.get(step);
        if (!dir) return;
      }
      continue;
    }
    put(dir, found, step, isLast ? node : null, node);
    if (isLast) return;
    dir = dirs.get(step);
    if (!dir) return;
  }
}

/** Put a child into a stretch that has been read: a node, or the directory that came into being with one. */
function put(dir, { at, children, place, isThere }, step, own, node) {
  const fresh = entry(own ?? { key: step, dir: true, modifiedIndex: node.createdIndex }, dir.path);
  fresh.name = childName(dir, step);
  if (isThere && !own) return;
  if (isThere && children[place].dir !== fresh.dir) dropBelow(step);
  fresh.glow = performance.now();
  children.splice(place, isThere ? 1 : 0, fresh);
  if (!isThere) {
    settle(dir, at);
    if (children.length > 4 * EVERY) makeStale(dir);
  }
  changed();
}

function takeOut(path) {
  const dir = treeParent(path);
  dropBelow(path);
  if (dir.state !== "ready") return;
  const { children, place, isThere, at } = find(dir, childName(dir, path));
  if (!children) {
    if (dir.sizes[at] > 0) dir.sizes[at] -= 1;
    dir.count = Math.max(0, dir.count - 1);
  } else if (isThere) {
    children.splice(place, 1);
    settle(dir, at);
  }
  changed();
}

function dropBelow(path) {
  for (const other of dirs.keys()) {
    if (other !== "/" && (other === path || other.startsWith(`${path}/`))) {
      const dir = dirs.get(other);
      dir.isOpen = false;
      treeParent(other).opened?.delete(dir);
      dirs.delete(other);
    }
  }
}

export const parentPath = path => (rowOf(path) < 0 ? parentOf(path) : treeParent(path).path);
