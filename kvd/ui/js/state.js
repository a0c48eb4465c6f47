// What the whole page shares: the session, the route, preferences, and when to draw again.

import { decodePath, encodePath, number } from "./format.js";

export const state = {
  session: null,
  route: { page: "keys", path: "/" },
  index: 0,
  lowest: Infinity, // the lowest index of an answer since the feed began
  isOnline: true,
  downSince: 0,
  retryAt: 0,
  isBusy: false,
  showsHidden: false,
  wraps: false,
  readOnly: sessionStorage.getItem("kvd.readOnly") === "1",
  tab: "value",
  treeWidth: 380,
  problems: [],
};

/** Wait until somebody looks at the page: a hidden tab asks for nothing every few seconds. */
export async function whenVisible() {
  while (document.hidden) await new Promise(done => document.addEventListener("visibilitychange", done, { once: true }));
}

const drawers = [];
let isQueued = false;

/** Have a function called for each drawing of the page. */
export const onDraw = drawer => drawers.push(drawer);

/** Draw the page again, once, before the next frame. */
export function update() {
  if (isQueued) return;
  isQueued = true;
  requestAnimationFrame(() => {
    isQueued = false;
    for (const drawer of drawers) drawer();
  });
}

// Preferences: in the browser, never of the server; a browser may refuse to keep any.

export function remember(name, value) {
  try {
    localStorage.setItem(`kvd.${name}`, JSON.stringify(value));
  } catch { /* it is forgotten when the page is closed */ }
}

export function remembered(name, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(`kvd.${name}`)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

/** Show the theme that was chosen, or that of the system. */
export function applyTheme() {
  const chosen = remembered("theme", "system");
  const isDark = matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = chosen === "system" ? (isDark ? "dark" : "light") : chosen;
}

// Rights: those that the server told of; it judges each request itself.

const allows = (patterns, path) =>
  patterns.some(pattern =>
    pattern.endsWith("*") ? path.startsWith(pattern.slice(0, -1)) : pattern === path);

const isFree = session => !session || session.root || session.cut;

export function mayRead(path) {
  return isFree(state.session) || allows(state.session.read, path);
}

/** Whether all below a directory may be read. */
export function mayList(path) {
  return isFree(state.session) || allows(prefixes(state.session.read), `${path === "/" ? "" : path}/`);
}

const prefixes = patterns => patterns.filter(pattern => pattern.endsWith("*"));

export const isReadOnly = () => state.readOnly || Boolean(state.session?.readOnly);

/** Why a key may not be written; empty if it may. With `all`: it and everything below. */
export function refusal(path, { all = false } = {}) {
  const { session, readOnly } = state;
  if (session?.readOnly) return "This server shows the page read-only (--ui read-only).";
  if (readOnly) return "Read-only is switched on in the menu.";
  if (isFree(session)) return "";
  const patterns = all ? prefixes(session.write) : session.write;
  if (allows(patterns, path) && (!all || allows(patterns, `${path}/`))) return "";
  const who = session.user ? `The roles of ${session.user} (${session.roles.join(", ") || "none"}) do` : "The role guest does";
  return `${who} not allow writing ${path}.`;
}

/** The places at which the tree begins: "/" where it may be read. */
export function readableRoots() {
  const { session } = state;
  if (mayList("/")) return ["/"];
  const places = session.read
    .filter(pattern => pattern.startsWith("/"))
    .map(pattern => pattern.replace(/\/?\*$/, ""))
    .filter(Boolean);
  return [...new Set(places)].filter(place => !places.some(other => place.startsWith(`${other}/`))).sort();
}

/** Tell something in one line, for a while; with a button if there is something to do. */
export function toast(text, { action = null, label = "", seconds = 6, kind = "" } = {}) {
  const box = document.createElement("div");
  box.className = `toast ${kind}`;
  box.append(Object.assign(document.createElement("span"), { textContent: text }));
  const close = () => box.remove();
  if (action) {
    const button = Object.assign(document.createElement("button"), { textContent: label, className: "button" });
    button.addEventListener("click", () => {
      close();
      action();
    });
    box.append(button);
  }
  document.getElementById("toasts").replaceChildren(box);
  setTimeout(close, seconds * 1000);
}

/** Tell readers of the screen alone. */
export function say(text) {
  const line = document.getElementById("said");
  if (line) line.textContent = text;
}

export const indexText = () => (state.index ? number(state.index) : "–");

// Routes: `#k/PATH`, `#live/PATH`, `#status`. All that can be linked to is in the address.

export function route() {
  const text = location.hash.slice(1);
  const [page, ...rest] = text.split("/");
  if (page === "live") return { page, path: decodePath(rest.join("/")) };
  if (page === "status") return { page, path: "/" };
  return { page: "keys", path: decodePath(rest.join("/")) };
}

export const linkTo = (path, page = "keys") => `#${page === "keys" ? "k" : page}${encodePath(path)}`;

/** Go to a page. `isLight`: without a further step in the history of the browser. */
export function go(page, path = "/", { isLight = false } = {}) {
  const hash = page === "status" ? "#status" : linkTo(path, page);
  if (location.hash === hash) return;
  if (isLight) {
    history.replaceState(null, "", hash);
    dispatchEvent(new HashChangeEvent("hashchange"));
  } else location.hash = hash;
}
