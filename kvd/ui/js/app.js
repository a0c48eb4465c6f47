// The page: its frame, its routes and its keyboard. The screens are modules of their own, the rarer ones read when needed.

import { html, nothing, render } from "../vendor/lit-html.js";
import * as api from "./api.js";
import * as detailView from "./detail.js";
import { detail } from "./detail.js";
import { number, short, shortened, titleOf } from "./format.js";
import { button, copy, dialog, icon, iconButton } from "./parts.js";
import { applyTheme, go, indexText, linkTo, onDraw, readableRoots, refusal, remember, remembered, route, state, toast, update, whenVisible } from "./state.js";
import * as feed from "./feed.js";
import * as tree from "./tree.js";
import * as treeView from "./treeview.js";

const WIDTH_MIN = 220;
const PATIENCE_MS = 120;
const REST_MS = 1000;

// What is not needed for the first look.
const parts = {};
const LOADERS = {
  editor: () => import("./editor.js"), dialogs: () => import("./dialogs.js"), finder: () => import("./finder.js"),
  history: () => import("./history.js"), live: () => import("./live.js"), status: () => import("./status.js"),
  transfer: () => import("./transfer.js"), exporting: () => import("./exporting.js"), merge: () => import("./merge.js"),
};

/** Fetch the rest while nobody waits for it: what is asked for later is there, even if kvd does not answer then. */
async function fetchRest() {
  for (const name of Object.keys(LOADERS)) {
    try {
      parts[name] ??= await LOADERS[name]();
    } catch { /* it is fetched when it is asked for */ }
  }
}

/** A module, fetched when it is first asked for; the page is drawn again when it has come. */
function part(name) {
  if (!parts[name]) {
    LOADERS[name]().then(module => {
      parts[name] = module;
      update();
    }, () => toast("A part of the page could not be fetched; kvd does not answer.", { kind: "bad" }));
  }
  return parts[name];
}

// Keys that come while a part is fetched are meant for it, and not for what is there.
let fetching = 0;

async function withPart(name, action, { isAsked = true } = {}) {
  if (!parts[name]) {
    fetching += isAsked;
    try {
      parts[name] = await LOADERS[name]();
    } catch {
      toast("A part of the page could not be fetched; kvd does not answer.", { kind: "bad" });
      return undefined;
    } finally {
      fetching -= isAsked;
    }
  }
  return action(parts[name]);
}

const inDialogs = action => withPart("dialogs", action);
const allowed = why => {
  if (why) toast(why);
  return !why;
};

const screens = {
  edit: () => allowed(refusal(detail.path)) && withPart("editor", editor => editor.edit()),
  remove: () => allowed(refusal(detail.path, { all: detail.status === "dir" })) && inDialogs(dialogs => dialogs.remove(screens)),
  ttl: () => inDialogs(dialogs => dialogs.ttl()),
  copyAs: () => inDialogs(dialogs => dialogs.copyAs()),
  create: () => {
    const dir = here();
    return allowed(refusal(dir === "/" ? "/new" : `${dir}/new`)) && inDialogs(dialogs => dialogs.create(dir));
  },
  createHere: () => inDialogs(dialogs => dialogs.create("/", detail.path)),
  login: () => inDialogs(dialogs => dialogs.login(begin)),
  logout,
  exportAll: () => withPart("exporting", exporting => exporting.exportAll(detail.path)),
  importAll: () => withPart("transfer", transfer => transfer.importAll(detail.path, () => detailView.show(detail.path, { again: true }))),
  history: shown => part("history")?.historyView(shown) ?? html`<p class="note">Loading …</p>`,
  showHistory: () => detailView.selectTab("history"),
  draft: path => parts.editor?.draftOf(path),
  dropDraft: () => {
    parts.editor.dropDraft(detail.path);
    update();
  },
  wrap: detailView.toggleWrap,
};

/** The directory in which something new is made: the one that is shown, or that of the key. */
function here() {
  if (detail.status === "dir") return detail.path;
  return detail.path ? tree.parentPath(detail.path) : "/";
}

async function logout() {
  api.forgetLogin();
  remember("recent", []);
  parts.editor?.dropDrafts();
  detail.editor = null;
  state.readOnly = false;
  try {
    state.session = await api.session();
  } catch { /* the banner tells */ }
  begin();
}

// Routes.

let wantsRoot = false;

async function onRoute() {
  const before = state.route;
  state.route = route();
  document.title = { keys: `${shortened(state.route.path, 200)} · kvd`, live: "Live · kvd", status: "Status · kvd" }[state.route.page];
  // Narrow screens have room for one: what was chosen, not the tree.
  if (state.route.page === "keys" && state.route.path !== before.path) state.isDetailShown = state.route.path !== "/" || wantsRoot;
  wantsRoot = false;
  if (detail.editor && (state.route.page !== "keys" || state.route.path !== detail.editor.draft.path)) leaveEditor();
  if (state.route.page !== "status" && before.page === "status") parts.status?.stop();
  if (state.route.page === "status") withPart("status", status => status.start(), { isAsked: false });
  if (state.route.page === "live") part("live");
  if (state.session) feed.follow();
  if (state.route.page === "keys" && state.session) await showKeys(state.route.path);
  update();
}

/** What was typed stays as a draft of its key. */
function leaveEditor() {
  const { editor } = detail;
  detail.editor = null;
  if (editor.isChanged) toast(`Your change of ${titleOf(editor.draft.path)} is kept in this tab.`, { label: "Go back", action: () => go("keys", editor.draft.path) });
}

async function showKeys(path) {
  const reading = detailView.show(path);
  const revealing = tree.reveal(path);
  if (path !== "/") withPart("finder", finder => finder.visited(path), { isAsked: false });
  await revealing;
  if (state.route.path === path && path !== "/") requestAnimationFrame(() => treeView.show(path));
  await reading;
}

let pending = 0;

/** The row under the cursor is shown; while one moves on, only the last. */
function onSelect(child, { isLight }) {
  clearTimeout(pending);
  if (isLight && matchMedia("(max-width: 760px)").matches) return;
  if (isLight) pending = setTimeout(() => go("keys", child.path, { isLight: true }), PATIENCE_MS);
  else {
    go("keys", child.path);
    state.isDetailShown = true;
    update();
  }
}

detailView.onBack(() => {
  state.isDetailShown = false;
  update();
  requestAnimationFrame(() => treeView.focus());
});

// The frame.

function frame() {
  const { page } = state.route;
  return html`
    <a class="skip-link" href="#main" @click=${event => {
      event.preventDefault();
      document.querySelector("main").focus();
    }}>To the content</a>
    <header class="bar">
      <a class="brand" href="#k/"><svg class="mark" width="22" height="22" viewBox="0 0 32 32" aria-hidden="true"><rect width="32" height="32" rx="7"></rect><path d="M11 7v18M21 8.5l-8.5 7.5 8.5 7.5"></path></svg><b>kvd</b><span class="host">${location.host}</span></a>
      <nav class="nav" aria-label="Pages">${[["keys", "Keys", "#k/"], ["live", "Live", "#live/"], ["status", "Status", "#status"]].map(([name, label, href]) =>
        html`<a href=${name === "keys" && detail.path ? linkTo(detail.path) : href} aria-current=${page === name ? "page" : nothing}>${label}</a>`)}</nav>
      <button type="button" class="find" @click=${openFinder} aria-keyshortcuts="/ Control+K">${icon("search")}<span>Find a path or a word</span><kbd>/</kbd></button>
      <div class="bar-right">
        <span class="index" title=${dotTitle()}><i class="dot ${dotKind()}"></i><span class="number">${indexText()}</span><span class="away">${dotTitle()}</span></span>
        <button type="button" class="button bare user" title="User and settings" @click=${() => inDialogs(dialogs => dialogs.menu(screens))}>${icon("user")}<span class=${state.session?.user ? "user-name" : "away"}>${state.session?.user ?? "User and settings"}</span></button>
        ${iconButton("help", "Keyboard (?)", () => inDialogs(dialogs => dialogs.help()))}
      </div>
    </header>
    ${bands()}
    <main class="page page-${page} ${state.isDetailShown ? "shows-detail" : ""}" tabindex="-1" id="main">
      <h1 class="away">kvd: ${{ keys: "keys", live: "live changes", status: "status" }[page]}</h1>
      <div class="keys" ?hidden=${page !== "keys"}>
        <div class="side ${treeView.isEmpty() ? "is-empty" : ""}" id="side">
          <div class="side-bar">${iconButton("plus", "New key (n)", screens.create)}
            ${iconButton(state.showsHidden ? "eye" : "hidden", "Hidden keys (.)", toggleHidden, { isPressed: state.showsHidden })}
            ${iconButton("reload", "Read again (r)", reload)}
            <a class="button quiet root-link" href="#k/" aria-current=${state.route.path === "/" ? "true" : nothing} @click=${() => {
              wantsRoot = state.route.path !== "/";
              state.isDetailShown = true;
              update();
            }}>Root</a></div>
          <div class="tree" id="tree" role="tree" aria-label="Keys" tabindex="0"></div>
          <div class="tree-note">${treeView.emptiness(screens.create)}</div>
          <div class="side-foot">${sideFoot()}</div>
        </div>
        <div class="splitter" role="separator" tabindex="0" aria-orientation="vertical" aria-label="Width of the tree" aria-valuemin=${WIDTH_MIN} aria-valuemax="800" aria-valuenow=${state.treeWidth}
          @pointerdown=${startSplit} @keydown=${onSplitKey}></div>
        <div class="right" aria-busy=${String(detail.status === "loading")}>${page === "keys" ? detailView.view(screens) : nothing}</div>
      </div>
      ${page === "live" ? part("live")?.liveView() ?? nothing : nothing}
      ${page === "status" ? part("status")?.statusView() ?? nothing : nothing}
    </main>
    <p class="away" id="said" role="status" aria-live="polite"></p>`;
}

const dotKind = () => (!state.isOnline ? "off" : state.isBusy || !feed.isLive() ? "warn" : "");
function dotTitle() {
  if (!state.isOnline) return "kvd does not answer";
  if (state.isBusy) return "busy: read again every five seconds";
  if (!feed.isLive()) return "not live; the index of the store";
  return `live${readableRoots().length > 1 ? ` below ${feed.root()} alone` : ""}; the index of the store`;
}

function sideFoot() {
  const root = tree.rootOf();
  if (root.state !== "ready") return nothing;
  return html`${number(root.count)} at the root${root.hidden && !state.showsHidden ? html` · ${number(root.hidden)} hidden` : nothing}`;
}

function bands() {
  const { session } = state;
  const space = state.problems.find(([name]) => name === "space");
  return html`
    ${state.isOnline ? nothing : html`<div class="band bad wide" role="alert">${icon("warn")}<span><b>kvd does not answer</b> for ${short((Date.now() - state.downSince) / 1000)}.
      What you see stays; it is tried again in ${short(Math.max(0, (state.retryAt - Date.now()) / 1000))}.</span>${button(null, "Try now", api.tryNow)}</div>`}
    ${space ? html`<div class="band bad wide" role="alert">${icon("warn")}<span><b>No room for writes</b>: ${space[1]}. Reading and deleting go on.</span></div>` : nothing}
    ${state.isBusy ? html`<div class="band warn wide" role="status">${icon("warn")}<span>More changes come than can be shown: the page reads again every five seconds.</span></div>` : nothing}
    ${session?.readOnly || state.readOnly ? html`<div class="band wide">${icon("eye")}<span>Read-only: this page changes nothing.</span></div>` : nothing}
    ${session && session.auth && !session.user && !session.read.length ? html`<div class="band wide">${icon("user")}<span>This server has users, and a guest may read nothing.</span>${button(null, "Log in", screens.login)}</div>` : nothing}`;
}

setInterval(() => {
  if (!state.isOnline || detail.ends) update();
  detailView.noteEnd();
}, 1000);

function startSplit(event) {
  const { target, pointerId } = event;
  target.setPointerCapture(pointerId);
  const move = moved => setWidth(moved.clientX);
  target.addEventListener("pointermove", move);
  target.addEventListener("pointerup", () => {
    target.removeEventListener("pointermove", move);
    remember("treeWidth", state.treeWidth);
  }, { once: true });
}

function onSplitKey(event) {
  const step = { ArrowLeft: -16, ArrowRight: 16 }[event.key];
  if (!step) return;
  event.preventDefault();
  setWidth(state.treeWidth + step);
  remember("treeWidth", state.treeWidth);
}

function setWidth(width) {
  state.treeWidth = Math.round(Math.max(WIDTH_MIN, Math.min(800, innerWidth - 320, width)));
  document.documentElement.style.setProperty("--side", `${state.treeWidth}px`);
  update();
}

async function reload() {
  await Promise.all([tree.reloadAll(), detail.path != null && !detail.editor ? detailView.show(detail.path, { again: true }) : null]);
}

async function toggleHidden() {
  state.showsHidden = !state.showsHidden;
  remember("showsHidden", state.showsHidden);
  feed.restart(false);
  await tree.reloadAll();
}

/** Open the finder. Its field is there at once: what is typed while the rest of it is fetched is not lost. */
async function openFinder() {
  if (parts.finder) return parts.finder.openFinder();
  let isEntered = false;
  let isClosed = false;
  const label = "Find a path or a word";
  const field = dialog("Find", () => html`<div class="finder"><input class="find-field mono" autofocus aria-label=${label} placeholder=${label}
    spellcheck="false" autocomplete="off" @keydown=${event => (isEntered ||= event.key === "Enter")}><p class="note">Loading …</p></div>`,
  { kind: "finder-dialog", onClose: () => (isClosed = true) });
  await withPart("finder", finder => {
    if (isClosed || !field.element.open) return;
    const { value: text } = field.element.querySelector("input");
    field.close();
    finder.openFinder(text, isEntered);
  });
  field.close();
  return undefined;
}

// The keyboard.

const KEYS = {
  "/": openFinder, "?": () => inDialogs(dialogs => dialogs.help()),
  e: () => detail.status === "key" && screens.edit(),
  n: screens.create,
  Delete: () => (detail.status === "key" || (detail.status === "dir" && detail.path !== "/")) && screens.remove(),
  1: () => detailView.selectTab("value"), 2: () => detailView.selectTab("history"),
  y: () => copy(detail.path, "the path"), r: reload, ".": toggleHidden, w: screens.wrap,
};
let isAfterG = false;

addEventListener("keydown", event => {
  if ((event.ctrlKey || event.metaKey) && event.key === "s" && detail.editor) {
    event.preventDefault();
    detail.editor.save();
    return;
  }
  if ((event.ctrlKey || event.metaKey) && event.key === "k") {
    event.preventDefault();
    if (!document.querySelector("dialog[open]")) openFinder();
    return;
  }
  const { target } = event;
  const isTyping = target.matches?.("input, textarea, select") || target.isContentEditable;
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.key === "Escape" && detail.editor) return void detail.editor.leave();
  if (isTyping || fetching) return;
  if (event.key === "g") isAfterG = true;
  else if (event.key === " " && state.route.page === "live" && !target.matches?.("button, a")) parts.live?.togglePause();
  else if (state.route.page === "keys" && !detail.editor && event.key in KEYS) KEYS[event.key]();
  else if (event.key === "/" || event.key === "?") KEYS[event.key]();
  else if (state.route.page === "keys" && !detail.editor && isMove(event.key) && (target === document.body || target.id === "main")) treeView.focus();
  else return;
  event.preventDefault();
});

// What follows a "g" is not for the tree, which has an "l" of its own.
addEventListener("keydown", event => {
  const page = isAfterG && { k: "keys", l: "live", s: "status" }[event.key];
  isAfterG = false;
  if (!page || event.ctrlKey || event.metaKey || event.target.matches?.("input, textarea")) return;
  event.preventDefault();
  event.stopImmediatePropagation();
  go(page, page === "live" ? "/" : detail.path ?? "/");
}, { capture: true });

const isMove = key => ["j", "k", "h", "l", "ArrowDown", "ArrowUp", "ArrowLeft", "ArrowRight"].includes(key);

// The beginning.

feed.on("event", tree.apply);
feed.on("stale", () => tree.reloadAll());
api.onReach(() => {
  tree.reloadAll();
  if (detail.path != null && !detail.editor) detailView.show(detail.path, { again: true });
});

let isAsking = false;

/** What was refused may have been taken away, or users may have been switched on: look what is left. */
api.onRefused(async () => {
  if (isAsking) return;
  isAsking = true;
  try {
    const before = JSON.stringify(state.session);
    let session;
    try {
      session = await api.session();
    } catch (error) {
      if (error.status !== 401) throw error;
      api.forgetLogin();
      session = await api.session();
    }
    if (JSON.stringify(session) === before) return;
    state.session = session;
    begin();
  } catch { /* it is refused once more */ } finally {
    isAsking = false;
  }
});

let isMounted = false;

onDraw(() => {
  const app = document.getElementById("app");
  if (!isMounted) app.replaceChildren(); // lit-html leaves what is in its container
  render(frame(), app);
  if (!isMounted) {
    treeView.mount(document.getElementById("tree"), onSelect);
    isMounted = true;
  }
});

/** Begin, or begin again as another user. */
function begin() {
  tree.reset();
  parts.live?.clear(); // what another user may have seen
  detail.path = null;
  feed.restart();
  onRoute();
}

async function start() {
  applyTheme();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", applyTheme);
  state.wraps = remembered("wraps", false);
  state.showsHidden = remembered("showsHidden", false);
  state.route = route();
  state.isDetailShown = state.route.path !== "/";
  setWidth(remembered("treeWidth", 380));
  addEventListener("hashchange", onRoute);
  try {
    state.session = await api.session();
  } catch (error) {
    if (error.status === 401) api.forgetLogin();
  }
  if (state.session) begin();
  else beginLater();
  update();
  setTimeout(watchSpace, 5000);
  setTimeout(fetchRest, REST_MS);
}

/** Without a session nothing can be shown: ask again until there is one. */
async function beginLater() {
  try {
    state.session ??= await api.session();
    begin();
  } catch {
    setTimeout(beginLater, 2000);
  }
}

/** A full disk is told by the checks; every half minute, while one looks. */
async function watchSpace() {
  await whenVisible();
  try {
    const told = await api.status(9e9);
    state.problems = Object.entries(told.checks).filter(([, problem]) => problem);
    update();
  } catch { /* the banner tells, or it is not this user's */ }
  setTimeout(watchSpace, 30_000);
}

start();
