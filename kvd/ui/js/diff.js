// Differences of texts by lines (Myers), what changed within a line, and the merge of two changes of one text (diff3).

// So many edits are searched for; texts that differ in more are taken to differ wholly.
const EDITS_MAX = 1500;

export const linesOf = text => text.split("\n");

/** The steps from one list of lines to another: [sign, line], sign "=", "-" or "+". */
export function diff(before, after) {
  let head = 0;
  while (head < before.length && head < after.length && before[head] === after[head]) head += 1;
  let tail = 0;
  while (tail < before.length - head && tail < after.length - head && before.at(-1 - tail) === after.at(-1 - tail)) tail += 1;
  const same = line => ["=", line];
  return [
    ...before.slice(0, head).map(same),
    ...myers(before.slice(head, before.length - tail), after.slice(head, after.length - tail)),
    ...before.slice(before.length - tail).map(same),
  ];
}

function myers(a, b) {
  const whole = () => [...a.map(line => ["-", line]), ...b.map(line => ["+", line])];
  if (!a.length || !b.length) return whole();
  const furthest = new Map([[1, 0]]);
  const trace = [];
  for (let edits = 0; edits <= Math.min(a.length + b.length, EDITS_MAX); edits += 1) {
    trace.push(new Map(furthest));
    for (let k = -edits; k <= edits; k += 2) {
      const down = k === -edits || (k !== edits && furthest.get(k - 1) < furthest.get(k + 1));
      let x = down ? furthest.get(k + 1) : furthest.get(k - 1) + 1;
      while (x < a.length && x - k < b.length && a[x] === b[x - k]) x += 1;
      furthest.set(k, x);
      if (x >= a.length && x - k >= b.length) return back(a, b, trace);
    }
    if (edits * edits > 4_000_000) break; // the trace would fill the memory
  }
  return whole();
}

function back(a, b, trace) {
  const steps = [];
  let x = a.length;
  let y = b.length;
  for (let edits = trace.length - 1; edits >= 0; edits -= 1) {
    const furthest = trace[edits];
    const k = x - y;
    const down = k === -edits || (k !== edits && furthest.get(k - 1) < furthest.get(k + 1));
    const beforeK = down ? k + 1 : k - 1;
    const fromX = edits ? furthest.get(beforeK) : 0;
    const fromY = edits ? fromX - beforeK : 0;
    while (x > fromX && y > fromY) {
      steps.push(["=", a[x - 1]]);
      x -= 1;
      y -= 1;
    }
    if (!edits) break;
    if (down) steps.push(["+", b[--y]]);
    else steps.push(["-", a[--x]]);
  }
  return steps.reverse();
}

/** How many lines were added and removed. */
export function counts(steps) {
  return { added: steps.filter(([sign]) => sign === "+").length, removed: steps.filter(([sign]) => sign === "-").length };
}

/** What differs within two lines: the ends of what they have in common. */
export function within(a, b) {
  let head = 0;
  while (head < a.length && head < b.length && a[head] === b[head]) head += 1;
  let tail = 0;
  while (tail < a.length - head && tail < b.length - head && a.at(-1 - tail) === b.at(-1 - tail)) tail += 1;
  return { head, tail };
}

/** Lines to show: removed ones paired with added ones, and what is unchanged but for some lines around left out. */
export function rows(steps, context = 3) {
  const all = [];
  let before = 0;
  let after = 0;
  for (let at = 0; at < steps.length; at += 1) {
    const [sign, line] = steps[at];
    if (sign === "=") all.push({ sign, line, before: ++before, after: ++after });
    else if (sign === "-") all.push({ sign, line, before: ++before });
    else all.push({ sign, line, after: ++after });
  }
  pair(all);
  const near = new Uint8Array(all.length);
  all.forEach((row, at) => {
    if (row.sign !== "=") near.fill(1, Math.max(0, at - context), at + context + 1);
  });
  const shown = [];
  for (let at = 0; at < all.length; at += 1) {
    if (near[at]) {
      shown.push(all[at]);
      continue;
    }
    let end = at;
    while (end < all.length && !near[end]) end += 1;
    if (end - at === 1) shown.push(all[at]);
    else shown.push({ sign: "…", count: end - at });
    at = end - 1;
  }
  return shown;
}

/** Note, in a block of removed and then added lines, what differs within each pair. */
function pair(all) {
  for (let at = 0; at < all.length; ) {
    if (all[at].sign !== "-") {
      at += 1;
      continue;
    }
    let middle = at;
    while (all[middle]?.sign === "-") middle += 1;
    let end = middle;
    while (all[end]?.sign === "+") end += 1;
    for (let step = 0; at + step < middle && middle + step < end; step += 1) {
      const [a, b] = [all[at + step], all[middle + step]];
      const { head, tail } = within(a.line, b.line);
      if (head + tail > 0) {
        a.mark = [head, a.line.length - tail];
        b.mark = [head, b.line.length - tail];
      }
    }
    at = end;
  }
}

/** The changes from one text to another: lines `from` to `to` of the first become others. */
function hunks(base, other) {
  const found = [];
  let at = 0;
  let open = null;
  for (const [sign, line] of diff(base, other)) {
    if (sign === "=") {
      open = null;
      at += 1;
      continue;
    }
    if (!open) found.push((open = { from: at, to: at, lines: [] }));
    if (sign === "-") open.to = at += 1;
    else open.lines.push(line);
  }
  return found;
}

/** Merge two changes of a text. The answer is a list of {kind, base, mine, theirs}, each a list of lines; kind is
 *  "same", "mine", "theirs", "equal" (both made the same change) or "conflict". */
export function merge(base, mine, theirs) {
  const left = hunks(base, mine);
  const right = hunks(base, theirs);
  const chunks = [];
  let at = 0;
  while (left.length || right.length) {
    const from = Math.min(left[0]?.from ?? Infinity, right[0]?.from ?? Infinity);
    let to = from;
    const taken = [[], []];
    for (let grew = true; grew; ) {
      grew = false;
      [left, right].forEach((side, which) => {
        while (side.length && (side[0].from < to || side[0].from === from)) {
          to = Math.max(to, side[0].to);
          taken[which].push(side.shift());
          grew = true;
        }
      });
    }
    if (from > at) chunks.push(same(base.slice(at, from)));
    chunks.push(chunk(base.slice(from, to), applied(base, from, to, taken[0]), applied(base, from, to, taken[1])));
    at = to;
  }
  if (at < base.length) chunks.push(same(base.slice(at)));
  return chunks;
}

const same = lines => ({ kind: "same", base: lines, mine: lines, theirs: lines });

function applied(base, from, to, changes) {
  const lines = [];
  let at = from;
  for (const change of changes) {
    lines.push(...base.slice(at, change.from), ...change.lines);
    at = change.to;
  }
  return [...lines, ...base.slice(at, to)];
}

function chunk(base, mine, theirs) {
  const is = (a, b) => a.length === b.length && a.every((line, at) => line === b[at]);
  const kind = is(mine, theirs) ? "equal" : is(mine, base) ? "theirs" : is(theirs, base) ? "mine" : "conflict";
  return { kind, base, mine, theirs };
}
