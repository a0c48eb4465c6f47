// Parts that several screens show: a text with numbers, a difference, a dialog, a button.

import { html, nothing, render } from "../vendor/lit-html.js";
import { visible } from "./format.js";
import { COLOURED_MAX, coloured } from "./syntax.js";
import { toast } from "./state.js";

const NUMBERED_MAX = 20_000;

// What was drawn last: the page is drawn again for each change of anything, and a long text takes long.
let last = { text: null };

/** A text with the numbers of its lines, and colours where it is short enough. */
export function code(text, kind, { wraps = false, label = "Value" } = {}) {
  if (last.text !== text || last.kind !== kind || last.wraps !== wraps || last.label !== label) {
    last = { text, kind, wraps, label, drawn: drawCode(text, kind, wraps, label) };
  }
  return last.drawn;
}

function drawCode(text, kind, wraps, label) {
  const lines = text.split("\n");
  if (lines.length > NUMBERED_MAX) {
    return html`<div class="code plain" tabindex="0" role="region" aria-label=${label}><pre>${text}</pre></div>`;
  }
  const kind_ = text.length > COLOURED_MAX ? "text" : kind;
  return html`<div class="code ${wraps ? "wraps" : ""}" tabindex="0" role="region" aria-label=${label}>
    ${lines.map(line => html`<div class="line">${coloured(line, kind_)}${line ? nothing : "\u200b"}</div>`)}</div>`;
}

export const button = (name, text, action, { title = "", kind = "", disabled = "", isPressed = null } = {}) => html`<button
  type="button" class="button ${kind}" title=${disabled || title || nothing} ?disabled=${Boolean(disabled)}
  aria-pressed=${isPressed == null ? nothing : String(isPressed)} @click=${action}>${name ? icon(name) : nothing}<span class="label">${text}</span></button>`;

/** A button without a text on it. */
export const iconButton = (name, label, action, { disabled = "", isPressed = null } = {}) => html`<button type="button"
  class="button bare" title=${disabled || label} aria-label=${label} ?disabled=${Boolean(disabled)}
  aria-pressed=${isPressed == null ? nothing : String(isPressed)} @click=${action}>${icon(name)}</button>`;

const WORDS = { compareAndSwap: "CAS", compareAndDelete: "CAD" };

/** The tag of an action. */
export const action = name => html`<span class="tag a-${name}" title=${name}>${WORDS[name] ?? name}</span>`;

/** Show a dialog until `close` is called or Esc is pressed. `draw(redraw, close)` returns what is in it. */
export function dialog(label, draw, { kind = "", onClose = () => {} } = {}) {
  const element = document.createElement("dialog");
  element.className = `dialog ${kind}`;
  element.setAttribute("aria-label", label);
  const before = document.activeElement;
  const close = () => {
    if (element.open) element.close();
  };
  const redraw = () => render(draw(redraw, close), element);
  element.addEventListener("close", () => {
    element.remove();
    onClose();
    if (before?.isConnected) before.focus({ preventScroll: true });
  });
  element.addEventListener("click", event => {
    if (event.target === element) close();
  });
  document.body.append(element);
  redraw();
  element.showModal();
  element.querySelector("[autofocus]")?.focus();
  return { close, redraw, element };
}

/** Put a text where it can be pasted from. */
export async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
    toast(`Copied ${what}.`, { seconds: 3 });
  } catch {
    // Without TLS to another machine a browser has no clipboard for pages: the old way is left.
    const area = Object.assign(document.createElement("textarea"), { value: text, className: "away" });
    (document.querySelector("dialog[open]") ?? document.body).append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    toast(done ? `Copied ${what}.` : "This browser does not let the page copy.", { seconds: 3 });
  }
}

/** Have the browser keep a file. */
export function download(parts, name, type = "application/octet-stream") {
  const url = URL.createObjectURL(new Blob(parts, { type }));
  const link = Object.assign(document.createElement("a"), { href: url, download: visible(name) });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

// The icons: paths of 24 by 24, drawn as lines.

const PATHS = {
  right: "M9 6l6 6-6 6",
  left: "M15 6l-6 6 6 6",
  folder: "M3.5 6.5a1.5 1.5 0 0 1 1.5-1.5h4l2 2.5h8a1.5 1.5 0 0 1 1.5 1.5v8.5a1.5 1.5 0 0 1-1.5 1.5h-14a1.5 1.5 0 0 1-1.5-1.5z",
  file: "M7 3.5h6.5l4 4V19a1.5 1.5 0 0 1-1.5 1.5H7A1.5 1.5 0 0 1 5.5 19V5A1.5 1.5 0 0 1 7 3.5zM13 3.5V8h4.5",
  plus: "M12 5v14M5 12h14",
  eye: "M2.5 12s3.5-6.5 9.5-6.5 9.5 6.5 9.5 6.5-3.5 6.5-9.5 6.5S2.5 12 2.5 12zM12 9.2a2.8 2.8 0 1 0 0 5.600 2.8 2.8 0 0 0 0-5.600",
  hidden: "M4 4l16 16M10 5.7c.6-.1 1.300-.2 2-.2 6 0 9.5 6.5 9.5 6.5a17 17 0 0 1-3 3.8M6.5 7.5A16 16 0 0 0 2.5 12s3.5 6.5 9.5 6.5c1.5 0 2.8-.4 4-1M9.8 10a2.8 2.8 0 0 0 4 4",
  reload: "M19.5 12a7.5 7.5 0 1 1-2.2-5.300L20 9.300M20 4.5v4.8h-4.8",
  copy: "M9 9h10v11H9zM6 15H5V4h10v2",
  pencil: "M4 20l1-4.5L16 4.5l3.5 3.5L8.5 19z M14 6.5l3.5 3.5",
  trash: "M4.5 7h15M9.5 7V4.5h5V7M6.5 7l.8 12.5h9.400L17.5 7M10 11v5M14 11v5",
  search: "M10.5 4a6.5 6.5 0 1 0 0 13 6.5 6.5 0 0 0 0-13M15.5 15.5L20.5 20.5",
  user: "M12 4.5a3.5 3.5 0 1 0 0 7 3.5 3.5 0 0 0 0-7M5 20c.6-3.8 3.400-6 7-6s6.400 2.2 7 6",
  help: "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18M9.5 9.5a2.5 2.5 0 1 1 3.7 2.2c-.8.5-1.2 1-1.2 1.8M12 16.8v.2",
  wrap: "M4 6h16M4 12h13a3 3 0 0 1 0 6h-4M15.5 15.5L13 18l2.5 2.5M4 18h5",
  live: "M12 10.5a1.5 1.5 0 1 0 0 3 1.5 1.5 0 0 0 0-3M8.5 8.5a5 5 0 0 0 0 7M15.5 8.5a5 5 0 0 1 0 7M5.5 5.5a9 9 0 0 0 0 13M18.5 5.5a9 9 0 0 1 0 13",
  down: "M12 4v11M7 11l5 5 5-5M5 20h14",
  up: "M12 16V5M7 9l5-5 5 5M5 20h14",
  check: "M5 12.5l4.5 4.5L19 7.5",
  warn: "M12 4L2.8 19.5h18.400zM12 10v4.5M12 16.8v.2",
  pause: "M9 5.5v13M15 5.5v13",
  play: "M8 5.5v13l10-6.5z",
  clock: "M12 4a8 8 0 1 0 0 16 8 8 0 0 0 0-16M12 8v4.5l3 2",
  close: "M6 6l12 12M18 6L6 18",
};

/** An icon; what it means is said by the text or the label of what holds it. */
export const icon = (name, size = 16) => html`<svg class="icon" width=${size} height=${size} viewBox="0 0 24 24"
  fill="none" stroke="currentColor" stroke-width="1.8" stroke-linecap="round" stroke-linejoin="round"
  aria-hidden="true"><path d=${PATHS[name]}></path></svg>`;

/** A ring that shows which share of a time is left. */
export const ring = share => html`<svg class="ring" width="14" height="14" viewBox="0 0 14 14" aria-hidden="true">
  <circle cx="7" cy="7" r="5.2" fill="none" stroke="currentColor" stroke-opacity=".3" stroke-width="1.8"></circle>
  <circle cx="7" cy="7" r="5.2" fill="none" stroke="currentColor" stroke-width="1.8" pathLength="100"
    stroke-dasharray="${Math.round(share * 100)} 100" transform="rotate(-90 7 7)"></circle></svg>`;
