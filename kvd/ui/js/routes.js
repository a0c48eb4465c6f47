// Routes: `#k/PATH`, `#live/PATH`, `#status`. All that can be linked to is in the address.

import { decodePath, encodePath } from "./format.js";

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
