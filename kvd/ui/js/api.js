// Requests to kvd. Every address is relative to the page, which a proxy may show anywhere.

import { encodePath, shortened } from "./format.js";
import { isReadOnly, state, mayRead, update } from "./state.js";

const MESSAGE_MAX = 400;

export class ApiError extends Error {
  constructor(status, body) {
    // A cause may name a key of 64 KB, or hold values that differ.
    super(shortened(String(body?.cause ? `${body.message}: ${body.cause}` : body?.message || `status ${status}`), MESSAGE_MAX));
    this.status = status;
    this.code = body?.errorCode ?? 0;
    this.index = body?.index ?? 0;
  }
}

/** The server did not answer. */
export class Offline extends Error {}

const STORED = "kvd.authorization";
let authorization = sessionStorage.getItem(STORED) || "";

export const isLoggedIn = () => authorization !== "";

/** Log in and return the session; `stays` keeps it until the tab is closed, otherwise it ends with the page. What is
 *  refused leaves the user that was logged in. */
export async function logIn(user, password, stays) {
  const text = new TextEncoder().encode(`${user}:${password}`);
  const before = authorization;
  authorization = `Basic ${btoa(String.fromCharCode(...text))}`;
  try {
    const found = await session();
    if (stays) sessionStorage.setItem(STORED, authorization);
    else sessionStorage.removeItem(STORED);
    return found;
  } catch (error) {
    authorization = before;
    throw error;
  }
}

export function forgetLogin() {
  authorization = "";
  // Behind a proxy other pages may have the same origin, and keep things of their own.
  for (const name of Object.keys(sessionStorage)) if (name.startsWith("kvd.")) sessionStorage.removeItem(name);
}

const refused = [];

/** Have a function called when the server refuses a request for want of a right. */
export const onRefused = listener => refused.push(listener);

const SESSION = "session.json";
const WRITES = new Set(["PUT", "DELETE"]);

const address = place => new URL(place, new URL(".", location.href)).href;

/** Send a request; the answer, whatever its status. Certificates of the browser are sent, and no
 *  password but that of the page's own login: kvd never asks a browser for one. */
export async function send(method, place, { form = null, body = null, headers = {}, signal = null } = {}) {
  const sent = { Accept: "application/json", ...headers };
  if (authorization) sent.Authorization = authorization;
  try {
    const answer = await fetch(address(place), {
      method, headers: sent, signal, cache: "no-store", credentials: "same-origin",
      body: form ? new URLSearchParams(form) : body,
    });
    if (answer.status >= 502 && answer.status <= 504 && !answer.headers.has("X-Etcd-Index")) {
      throw new Offline(`status ${answer.status}`); // of a proxy before kvd
    }
    reach(true);
    if (answer.status === 401 && place !== SESSION) for (const listener of refused) listener();
    const index = Number(answer.headers.get("X-Etcd-Index"));
    if (index) state.lowest = Math.min(state.lowest, index);
    if (index > state.index) {
      state.index = index;
      update();
    }
    return answer;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    if (!signal?.aborted) reach(false);
    throw error instanceof Offline ? error : new Offline(error.message);
  }
}

async function json(method, place, options) {
  if (WRITES.has(method) && isReadOnly()) throw new ApiError(403, { message: "Read-only: this page changes nothing" });
  const answer = await send(method, place, options);
  let data = null;
  try {
    data = await answer.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    if (answer.ok) throw new Offline("the answer was cut");
  }
  if (!answer.ok) throw new ApiError(answer.status, data);
  const next = answer.headers.get("X-Kvd-Next");
  return { ...data, next: next == null ? null : decodeURIComponent(next), at: Number(answer.headers.get("X-Etcd-Index")) };
}

/** The objects of a stream, one a line. */
export async function* lines(reader) {
  const decoder = new TextDecoder();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const piece = decoder.decode(value, { stream: true });
    text += piece;
    if (!piece.includes("\n")) continue; // a line may have megabytes
    const whole = text.split("\n");
    text = whole.pop();
    for (const line of whole) if (line.trim()) yield JSON.parse(line);
  }
}

/** The place of a key. What is asked of a directory ends in a slash: a role that may read
 *  `/app/*` may not read `/app`. */
export function keyPlace(path, { isDir = false, query = {}, base = "keys" } = {}) {
  const slash = path !== "/" && (isDir || (!mayRead(path) && mayRead(`${path}/`))) ? "/" : "";
  const given = Object.entries(query).filter(([, value]) => value != null && value !== "" && value !== false);
  const text = new URLSearchParams(given).toString();
  return `../v2/${base}${encodePath(path)}${slash}${text ? `?${text}` : ""}`;
}

export const read = (path, query, options = {}) =>
  json("GET", keyPlace(path, { query, isDir: options.isDir }), options);
export const write = (path, form, options = {}) => json("PUT", keyPlace(path), { form, ...options });
export const remove = (path, query = {}) => json("DELETE", keyPlace(path, { query }));
export const session = () => json("GET", SESSION);
export const status = since => json("GET", `status.json?since=${since}`);

export const writeBytes = (path, bytes, query) =>
  json("PUT", keyPlace(path, { base: "raw", query }), { body: bytes, headers: { "Content-Type": "application/octet-stream" } });

/** Several keys at once, as they are at one index; of a key that is none its error. */
export async function multiGet(keys) {
  const body = JSON.stringify({ keys });
  return (await json("POST", "../v2/mget", { body, headers: { "Content-Type": "application/json" } })).nodes;
}

/** The bytes of a value. */
export async function raw(path) {
  const answer = await send("GET", keyPlace(path, { base: "raw" }), { headers: { Accept: "*/*" } });
  if (!answer.ok) throw new ApiError(answer.status, await answer.json().catch(() => null));
  return { bytes: new Uint8Array(await answer.arrayBuffer()), index: Number(answer.headers.get("X-Kvd-Modified-Index")) };
}

// Whether the server answers. While it does not, it is tried again, ever more seldom.

const listeners = [];
let retry = 0;
let wait_s = 1;

export const onReach = listener => listeners.push(listener);

function reach(isOnline) {
  if (isOnline === state.isOnline) return;
  state.isOnline = isOnline;
  if (isOnline) {
    wait_s = 1;
    clearTimeout(retry);
    for (const listener of listeners) listener();
  } else {
    state.downSince = Date.now();
    tryLater();
  }
  update();
}

function tryLater() {
  state.retryAt = Date.now() + wait_s * 1000;
  clearTimeout(retry);
  retry = setTimeout(tryNow, wait_s * 1000);
  wait_s = Math.min(15, wait_s * 2);
}

export async function tryNow() {
  clearTimeout(retry);
  try {
    state.session = await session();
  } catch (error) {
    if (error instanceof Offline) tryLater();
  }
  update();
}
