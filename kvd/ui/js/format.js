// Numbers, sizes, times and paths as texts. Nothing here knows of the page.

const NUMBER = new Intl.NumberFormat("en-US");
const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

export const number = value => (value == null ? "–" : NUMBER.format(value));

export function plural(count, one, many = `${one}s`) {
  return `${number(count)} ${count === 1 ? one : many}`;
}

export function bytes(value) {
  if (value == null) return "–";
  let unit = 0;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit && value < 1000 ? value.toFixed(1) : Math.round(value)} ${UNITS[unit]}`;
}

/** A duration in at most two units: "41 min 32 s", "29 s", "3 d 4 h". */
export function duration(seconds) {
  if (seconds == null) return "–";
  if (seconds < 0.001) return `${Math.round(seconds * 1e6)} µs`;
  if (seconds < 1) return `${Math.round(seconds * 1e3)} ms`;
  const whole = Math.round(seconds);
  const parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const first = parts.findIndex(([size]) => whole >= size);
  const [size, name] = parts[first];
  const rest = whole % size;
  const next = parts[first + 1];
  const second = next && Math.floor(rest / next[0]);
  return `${Math.floor(whole / size)} ${name}${second ? ` ${second} ${next[1]}` : ""}`;
}

/** A duration in one unit, for narrow places: "29 s", "30 min". */
export function short(seconds) {
  if (seconds < 90) return `${Math.max(0, Math.ceil(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 129600) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} d`;
}

const two = value => String(value).padStart(2, "0");

export function clock(date, { millis = false, seconds = true } = {}) {
  const text = `${two(date.getHours())}:${two(date.getMinutes())}`;
  if (!seconds) return text;
  const tail = millis ? `.${String(date.getMilliseconds()).padStart(3, "0")}` : "";
  return `${text}:${two(date.getSeconds())}${tail}`;
}

const MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

export const day = date => `${date.getDate()} ${MONTHS[date.getMonth()]}, ${clock(date)}`;

export function ago(seconds) {
  return seconds < 10 ? "just now" : `${short(seconds)} ago`;
}

export const shortened = (text, most) => (text.length > most ? `${text.slice(0, most)}…` : text);

// Signs that nobody sees, or that turn the order of what is seen; joiners within emoji and scripts are none of these.
const UNSEEN = /[\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;

export const hasUnseen = text => text.search(UNSEEN) >= 0;

/** A name with each of its signs to be seen. */
export const visible = name =>
  name.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll("\r", "␍")
    .replace(/[\u0000-\u001f]/g, sign => String.fromCharCode(0x2400 + sign.charCodeAt(0)))
    .replace(/\u007f/g, "␡")
    .replace(UNSEEN, sign => `⟨${sign.charCodeAt(0).toString(16).padStart(4, "0")}⟩`);

/** The name of a path within a sentence. */
export const titleOf = path => shortened(visible(nameOf(path)), 60);

// Paths. A path is a key: "/" or "/a/b", without a slash at its end.

export const join = (dir, name) => (dir === "/" ? `/${name}` : `${dir}/${name}`);
export const nameOf = path => path.slice(path.lastIndexOf("/") + 1);
export const parentOf = path => path.slice(0, Math.max(1, path.lastIndexOf("/")));
export const partsOf = path => path.split("/").filter(Boolean);
export const isBelow = (path, dir) => dir === "/" || path === dir || path.startsWith(`${dir}/`);
export const isHidden = path => partsOf(path).some(name => name.startsWith("_"));

/** A path as the server takes it: without empty parts, "." and "..". Browsers take those out of an address as well, but
 *  beyond the keys too: what is no longer in a path cannot lead to another route. */
export function clean(path) {
  const parts = [];
  for (const name of partsOf(path)) {
    if (name === "..") parts.pop();
    else if (name !== ".") parts.push(name);
  }
  return `/${parts.join("/")}`;
}

/** A path as it stands in a URL; a lone surrogate, which no key has, becomes U+FFFD. */
export function encodePath(path) {
  return clean(path).split("/").map(name => encodeURIComponent(name.toWellFormed?.() ?? name)).join("/");
}

export function decodePath(text) {
  try {
    return clean(text.split("/").map(decodeURIComponent).join("/"));
  } catch {
    return "/";
  }
}

/** Compare two names as the server does, by the bytes of their UTF-8. */
export function compare(a, b) {
  const length = Math.min(a.length, b.length);
  for (let at = 0; at < length; at += 1) {
    const x = a.charCodeAt(at);
    const y = b.charCodeAt(at);
    if (x !== y) return rank(x) - rank(y);
  }
  return a.length - b.length;
}

// Surrogates stand for characters behind all that have one unit.
const rank = unit => (unit >= 0xe000 ? unit - 0x800 : unit >= 0xd800 ? unit + 0x2000 : unit);

export const sizeOf = text => new TextEncoder().encode(text).length;
