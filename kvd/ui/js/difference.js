// A difference of two texts on the screen.

import { html, nothing } from "../vendor/lit-html.js";
import { counts, diff, linesOf, rows } from "./diff.js";
import { number } from "./format.js";

// A text without a letter has no line that could be added or removed.
const lines = text => (text ? linesOf(text) : []);

/** The difference of two texts. */
export function difference(before, after, label) {
  const steps = diff(lines(before), lines(after));
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
