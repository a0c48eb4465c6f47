// What changes, as it changes: 2,000 lines are kept and the last 600 drawn.

import { html, nothing, render } from "../vendor/lit-html.js";
import { clock, isBelow, number, plural, visible } from "./format.js";
import { action, button, icon } from "./parts.js";
import { go, linkTo, mayList, onDraw, say, state, update } from "./state.js";
import * as feed from "./feed.js";

const KEPT = 2000;
const DRAWN = 600;
const ACTIONS = ["set", "create", "update", "compareAndSwap", "delete", "compareAndDelete", "expire"];
const TEXT = 200;

const live = { lines: [], held: [], isPaused: false, word: "", off: new Set(), count: 0, number: 0, atEnd: true };

feed.on("event", event => add({ kind: "event", event, at: new Date() }));
feed.on("gap", ({ from, to, isBusy }) => {
  add({ kind: "gap", from, to, isBusy, at: new Date() });
  say("Some events could not be told any more.");
});
feed.on("state", isLive => add({ kind: "state", isLive, at: new Date() }));

function add(line) {
  line.number = live.number += 1;
  if (line.kind === "event") live.count += 1;
  const list = live.isPaused ? live.held : live.lines;
  list.push(line);
  if (list.length > KEPT) list.splice(0, list.length - KEPT);
  if (state.route.page === "live") update();
}

export function clear() {
  Object.assign(live, { lines: [], held: [], count: 0 });
  update();
}

export function togglePause() {
  live.isPaused = !live.isPaused;
  if (!live.isPaused) {
    live.lines = [...live.lines, ...live.held].slice(-KEPT);
    live.held = [];
  }
  update();
}

function matches(line) {
  if (line.kind !== "event") return true;
  const { event } = line;
  const { key } = event.node;
  if (live.off.has(event.action)) return false;
  if (live.word && !key.toLowerCase().includes(live.word.toLowerCase())) return false;
  // The removal of a directory above is an event of what is below it.
  return isBelow(key, state.route.path) || isBelow(state.route.path, key);
}

export function liveView() {
  return html`<section class="live" aria-labelledby="live-title"><h2 id="live-title" class="away">Live changes below ${state.route.path}</h2>
    <div class="live-bar"><input class="mono grow" aria-label="Directory" spellcheck="false" autocomplete="off" .value=${state.route.path} @change=${event => {
        go("live", `/${event.target.value.split("/").filter(Boolean).join("/")}`);
      }}><input class="mono" aria-label="Only keys with" placeholder="only keys with …" spellcheck="false" .value=${live.word} @input=${event => {
        live.word = event.target.value;
        update();
      }}>
      ${button(live.isPaused ? "play" : "pause", live.isPaused ? "Go on" : "Pause", togglePause, { title: "Pause (Space)" })}
      ${button(null, "Clear", clear)}</div>
    <div class="chips"><div role="group" aria-label="Actions">${ACTIONS.map(name => html`<button type="button" class="chip a-${name}" aria-pressed=${String(!live.off.has(name))} @click=${() => {
        if (!live.off.delete(name)) live.off.add(name);
        update();
      }}><i></i>${name}</button>`)}</div><span class="live-state">${stateText()}</span></div>
    <div class="feed" id="feed" role="log" aria-live="off" aria-label="Events" tabindex="0" @scroll=${event => {
      const box = event.target;
      live.atEnd = box.scrollTop + box.clientHeight >= box.scrollHeight - 40;
    }}></div></section>`;
}

function stateText() {
  const held = live.isPaused ? html`paused · ${number(live.held.filter(matches).length)} held` : null;
  if (!mayList(state.route.path)) return html`<i class="dot off"></i> not yours to read`;
  if (held) return html`<i class="dot warn"></i> ${held}`;
  if (state.isBusy) return html`<i class="dot warn"></i> busy: more comes than can be shown`;
  if (!feed.isLive() || !isBelow(state.route.path, feed.root())) return html`<i class="dot off"></i> not live`;
  return html`<i class="dot"></i> live · ${plural(live.count, "event")}`;
}

// The lines have a drawing of their own: there are many, and often only they change.
onDraw(() => {
  const box = document.getElementById("feed");
  if (!box || state.route.page !== "live") return;
  const shown = live.lines.filter(matches).slice(-DRAWN);
  render(shown.length ? shown.map(lineView) : html`<p class="note">Nothing has changed since this page was opened. What changes below ${state.route.path} appears here.</p>`, box);
  if (live.atEnd) box.scrollTop = box.scrollHeight;
});

function lineView(line) {
  const time = clock(line.at, { millis: true });
  if (line.kind === "gap") {
    return html`<div class="event gap"><span class="time">${time}</span><span class="whole">${icon("warn", 14)} Not shown: events ${number(line.from)} to ${number(line.to)}.
      ${line.isBusy ? "More came than can be shown." : "The history of the server does not reach so far back."}</span></div>`;
  }
  if (line.kind === "state") {
    return html`<div class="event quiet"><span class="time">${time}</span><span class="whole">${line.isLive ? "connected" : "connection lost"}</span></div>`;
  }
  const { event } = line;
  const { node, prevNode } = event;
  return html`<div class="event"><span class="time">${time}</span><span class="index">${number(node.modifiedIndex)}</span>
    <span>${action(event.action)}</span><a class="key" href=${linkTo(node.key)}>${visible(node.key)}</a><span class="change">${change(event, node, prevNode)}</span></div>`;
}

const cut = text => (text == null ? "" : text.length > TEXT ? `${text.slice(0, TEXT)}…` : text.replace(/\s+/g, " "));

function change(event, node, prevNode) {
  if (node.dir || prevNode?.dir) return html`<i>directory</i>`;
  if (node.value === undefined && prevNode) return html`<s>${cut(prevNode.value)}</s>`;
  const old = prevNode && prevNode.value !== node.value ? html`<span class="old">${cut(prevNode.value)}</span> → ` : nothing;
  return html`${old}${cut(node.value)}${node.ttl ? html` <span class="old">ttl ${node.ttl}</span>` : nothing}`;
}
