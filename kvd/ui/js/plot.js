// A plot of some lines over a quarter of an hour, as SVG. All plots of a page have one cross-hair.

import { html, nothing, svg } from "../vendor/lit-html.js";
import { clock } from "./format.js";

const WIDTH = 400;
const HEIGHT = 132;
const LEFT = 62;
const RIGHT = 6;
const TOP = 8;
const BOTTOM = 18;

/** The end of the axis: the next of 1, 2, 5 tens; of bytes a round number of their unit. */
export function nice(value, isBinary) {
  if (!(value > 0)) return isBinary ? 1024 : 1;
  const unit = isBinary ? 1024 ** Math.floor(Math.log(value) / Math.log(1024)) : 1;
  const scaled = value / unit;
  const ten = 10 ** Math.floor(Math.log10(scaled));
  const step = (isBinary ? [1, 2, 4, 6, 8, 10] : [1, 2, 2.5, 5, 10]).find(each => scaled <= each * ten) ?? 10;
  return step * ten * unit;
}

/** A plot of `series`: [{name, at (the place of its value in a sample), colour}]. */
export function plot({ title, series, samples, from, to, text, isBinary = false, isIndex = false, hover, onHover }) {
  const values = series.flatMap(({ at }) => samples.map(sample => sample[at]).filter(value => value != null));
  const highest = values.length ? Math.max(...values) : 0;
  const lowest = isIndex && values.length ? Math.min(...values) : 0;
  const bottom = isIndex ? lowest - Math.max(1, Math.ceil((highest - lowest) * 0.08)) : 0;
  const top = isIndex ? Math.max(highest, bottom + 2) : nice(highest, isBinary);
  const x = time => LEFT + ((time - from) / (to - from)) * (WIDTH - LEFT - RIGHT);
  const y = value => HEIGHT - BOTTOM - ((value - bottom) / (top - bottom)) * (HEIGHT - TOP - BOTTOM);
  const last = samples.at(-1);
  const shown = hover == null ? last : nearest(samples, hover);
  const said = series.map(({ name, at }) => spoken(name, samples, at, text)).join(" ");
  return html`<figure class="plot"><figcaption><h3>${title}</h3><span class="plot-now">${series.map(({ name, at, colour }) => html`<span>${
    series.length > 1 ? html`<i class="key-${colour}"></i>${name} ` : nothing}${text(shown?.[at])}</span>`)}</span></figcaption>
    <svg viewBox="0 0 ${WIDTH} ${HEIGHT}" preserveAspectRatio="none" role="img" aria-label="${title}. ${said}"
      @pointermove=${event => {
        const box = event.currentTarget.getBoundingClientRect();
        const at = ((event.clientX - box.left) / box.width) * WIDTH;
        onHover(from + ((at - LEFT) / (WIDTH - LEFT - RIGHT)) * (to - from));
      }} @pointerleave=${() => onHover(null)}>
      ${[bottom, (bottom + top) / 2, top].map(value => svg`<line class="grid" x1=${LEFT} x2=${WIDTH - RIGHT} y1=${y(value)} y2=${y(value)}></line>`)}
      ${series.map(({ at, colour }, place) => lines(samples, at, x, y).map(points => svg`
        ${place === 0 || isBinary ? svg`<path class="area fill-${colour}" d=${area(points, y(bottom))}></path>` : nothing}
        <path class="curve line-${colour}" d=${path(points)}></path>`))}
      ${hover != null && shown ? svg`<line class="cross" x1=${x(shown[0])} x2=${x(shown[0])} y1=${TOP} y2=${HEIGHT - BOTTOM}></line>` : nothing}
    </svg>
    <div class="axis" aria-hidden="true">${[top, (bottom + top) / 2, bottom].map(value => html`<span>${text(isIndex ? Math.round(value) : value)}</span>`)}</div>
    <div class="times" aria-hidden="true"><span>${time(from)}</span>${hover != null && shown ? html`<b>${time(shown[0], true)}</b>` : nothing}<span>${time(to)}</span></div>
  </figure>`;
}

const time = (at, seconds = false) => clock(new Date(at * 1000), { seconds });

function nearest(samples, at) {
  let best = samples[0];
  for (const sample of samples) if (Math.abs(sample[0] - at) < Math.abs(best[0] - at)) best = sample;
  return best;
}

/** The pieces of a line: where there is no value there is a gap. */
function lines(samples, at, x, y) {
  const found = [];
  let open = null;
  for (const sample of samples) {
    if (sample[at] == null) open = null;
    else {
      if (!open) found.push((open = []));
      open.push([x(sample[0]), y(sample[at])]);
    }
  }
  return found;
}

const round = value => Math.round(value * 10) / 10;
// A single value would be no line: it gets the width of one.
const path = points =>
  `M${points.map(([x, y]) => `${round(x)} ${round(y)}`).join("L")}${points.length === 1 ? `h1.5` : ""}`;
const area = (points, bottom) => `${path(points)}V${round(bottom)}H${round(points[0][0])}Z`;

function spoken(name, samples, at, text) {
  const values = samples.map(sample => sample[at]).filter(value => value != null);
  if (!values.length) return `${name}: no values.`;
  return `${name}: now ${text(samples.at(-1)[at])}, least ${text(Math.min(...values))}, most ${text(Math.max(...values))}.`;
}
