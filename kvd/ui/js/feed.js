// What changes: one stream watch for the whole page, taken up where it ended.
//
// A browser has six connections to a server: a tab has one stream, and gives it up when nobody has looked at it for
// half a minute. A role may read several places and not what is above them: the one that is looked at is watched, and
// what is shown is read again when that is another one. While more events come than a page can show, it is given up as well, and the page reads again every
// five seconds. What cannot be told any more (401) is told as a gap.

import { ApiError, Offline, keyPlace, onReach, send } from "./api.js";
import { isBelow } from "./format.js";
import { mayList, readableRoots, state, update } from "./state.js";

const QUIET_S = 10;
const HIDDEN_MS = 30_000;
const CROWD = 500;
const BUSY_MS = 5000;
const REFUSED_MS = 5000;
const SETTLED_MS = 2000;
const VALUE_BYTES = 400;

const listeners = { event: [], gap: [], stale: [], state: [] };
const feed = { runs: 0, abort: null, root: null, isMoved: false, index: 0, lost: null, isLive: false, hiddenTimer: 0, isPaused: false, second: 0, count: 0 };

/** "event" (an event), "gap" ({from, to, isBusy}), "stale" (read again), "state" (taken up, or lost). */
export const on = (name, listener) => listeners[name].push(listener);
export const isLive = () => feed.isLive;
/** The place that is watched, with all below it. */
export const root = () => feed.root;

const tell = (name, value) => listeners[name].forEach(listener => listener(value));

/** Begin, or begin again with other rights or other hidden keys. */
export function restart(fromNow = true) {
  feed.abort?.abort();
  feed.runs += 1;
  if (fromNow) {
    feed.index = 0;
    feed.lost = null;
    state.lowest = Infinity;
  }
  run(feed.runs);
}

export function stop() {
  feed.abort?.abort();
  feed.runs += 1;
  setLive(false);
}

function setLive(isLive) {
  if (feed.isLive === isLive) return;
  feed.isLive = isLive;
  tell("state", isLive);
  update();
}

/** Watch the place that is looked at, if that is not done. */
export function follow() {
  if (feed.root === wantedRoot() || feed.isPaused) return;
  feed.isMoved = true;
  setLive(false);
  restart();
}

/** Of the places that a role may read the one that is looked at; looking elsewhere, the one before or the first directory. */
function wantedRoot() {
  const roots = readableRoots();
  return roots.find(each => isBelow(state.route.path, each)) ?? roots.find(each => each === feed.root)
    ?? roots.find(each => mayList(each)) ?? roots[0];
}

function place() {
  feed.root = wantedRoot();
  if (!feed.root) return null;
  const isDir = mayList(feed.root);
  const query = {
    wait: true, stream: true, recursive: isDir, progress: QUIET_S, maxValue: VALUE_BYTES,
    hidden: state.showsHidden, waitIndex: feed.index ? feed.index + 1 : null,
  };
  return keyPlace(feed.root, { isDir, query });
}

async function run(number) {
  const isCurrent = () => number === feed.runs;
  while (isCurrent()) {
    const where = place();
    if (!where || feed.isPaused) return;
    feed.abort = new AbortController();
    try {
      const answer = await send("GET", where, { signal: feed.abort.signal });
      if (!answer.ok) throw new ApiError(answer.status, await answer.json().catch(() => null));
      const at = Number(answer.headers.get("X-Etcd-Index"));
      if (feed.index > at) {
        // Another store than before, whose index has not come so far.
        feed.abort.abort();
        state.index = at;
        lose();
        continue;
      }
      takenUp(at, isCurrent);
      await take(answer.body.getReader(), isCurrent);
    } catch (error) {
      if (!isCurrent()) return;
      if (error.code === 401) {
        lose();
        continue;
      }
      if (error instanceof Crowd) {
        await wait(BUSY_MS, isCurrent);
        if (isCurrent()) lose(true);
        continue;
      }
      setLive(false);
      if (error instanceof ApiError) {
        if (error.status < 500 && error.status !== 429) return; // no right to watch: nothing is live
        await wait(REFUSED_MS, isCurrent); // too much at a time, say
      }
      if (error instanceof Offline && !state.isOnline) return; // taken up when it answers again
    }
    await wait(300, isCurrent);
  }
}

/** Begin from now: what came since the last event is told as a gap once the stream is there. */
function lose(isBusy = false) {
  feed.lost ??= { from: feed.index + 1, isBusy };
  state.lowest = Infinity;
  feed.index = 0;
}

/** The stream is there: what it does not tell, since it came before, is read. */
function takenUp(at, isCurrent) {
  const isFresh = !feed.index;
  feed.index ||= at;
  setLive(true);
  if (feed.isMoved) tell("stale");
  feed.isMoved = false;
  if (feed.lost) {
    if (at >= feed.lost.from || !feed.lost.isBusy) tell("gap", { ...feed.lost, to: at });
    feed.lost = null;
    tell("stale");
  }
  setTimeout(() => {
    if (feed.count <= CROWD) setBusy(false);
    if (isCurrent() && isFresh && state.lowest < at) tell("stale");
  }, SETTLED_MS);
}

const wait = (ms, isCurrent) => new Promise(done => setTimeout(() => done(isCurrent()), ms));

class Crowd extends Error {}

async function take(reader, isCurrent) {
  const decoder = new TextDecoder();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (!isCurrent()) return reader.cancel();
    if (done) return undefined;
    text += decoder.decode(value, { stream: true });
    const lines = text.split("\n");
    text = lines.pop();
    let taken = 0;
    for (const line of lines) {
      if (!line.trim()) continue;
      const event = JSON.parse(line);
      if (event.errorCode) throw new ApiError(400, event);
      taken += 1;
      if (event.action === "progress") feed.index = Math.max(feed.index, event.index);
      else {
        feed.index = event.node.modifiedIndex;
        tell("event", event);
      }
    }
    state.index = Math.max(state.index, feed.index);
    update();
    crowd(taken);
  }
}

/** Give up while more than some hundred events a second come. */
function crowd(taken) {
  const second = Math.floor(performance.now() / 1000);
  if (second !== feed.second) {
    setBusy(feed.count > CROWD);
    feed.second = second;
    feed.count = 0;
  }
  feed.count += taken;
  if (feed.count > CROWD) {
    setBusy(true);
    feed.count = 0;
    feed.abort.abort();
    throw new Crowd();
  }
}

function setBusy(isBusy) {
  if (state.isBusy === isBusy) return;
  state.isBusy = isBusy;
  update();
}

document.addEventListener("visibilitychange", () => {
  clearTimeout(feed.hiddenTimer);
  if (document.hidden) {
    feed.hiddenTimer = setTimeout(() => {
      feed.isPaused = true;
      stop();
    }, HIDDEN_MS);
  } else if (feed.isPaused) {
    feed.isPaused = false;
    restart(false);
  }
});

onReach(() => restart(false));
