// Parts that several screens show: a text with numbers, a difference, a dialog, a button.

import { html, nothing, render } from "../vendor/lit-html.js";
import { linesOf, diff, rows, counts } from "./diff.js";
import { icon } from "./icons.js";
import { COLOURED_MAX, coloured } from "./syntax.js";
import { number } from "./format.js";
import { toast } from "./state.js";

const NUMBERED_MAX = 20_000;

/** A text with the numbers of its lines, and colours where it is short enough. */
export function code(text, kind, { wraps = false, label = "Value" } = {}) {
  const lines = linesOf(text);
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

/** The difference of two texts. */
export function difference(before, after, label) {
  const steps = diff(linesOf(before), linesOf(after));
  const { added, removed } = counts(steps);
  if (!added && !removed) return html`<p class="note">No difference.</p>`;
  return html`<div class="diff" tabindex="0" role="region" aria-label="${label}: ${added} lines added, ${removed} removed">
    ${rows(steps).map(differenceRow)}</div>`;
}

const SIGNS = { "+": "add", "-": "del" };
const SPOKEN = { "+": "added", "-": "removed" };

function differenceRow(row) {
  if (row.sign === "…") return html`<div class="skip">${number(row.count)} unchanged lines</div>`;
  const [from, to] = row.mark ?? [0, 0];
  return html`<div class="d ${SIGNS[row.sign] ?? ""}"><span class="no">${row.before ?? ""}</span><span class="no">${row.after ?? ""}</span
    ><span class="sign" aria-label=${SPOKEN[row.sign] ?? nothing} role=${SPOKEN[row.sign] ? "img" : nothing}>${row.sign === "=" ? "" : row.sign}</span
    ><span class="text">${row.line.slice(0, from)}${to > from ? html`<mark>${row.line.slice(from, to)}</mark>` : nothing}${row.line.slice(Math.max(from, to))}</span></div>`;
}

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
  const link = Object.assign(document.createElement("a"), { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
