// Two changes of one value: what was before, yours and theirs. Nothing is overwritten; a save is a compare-and-swap again.

import { html, nothing } from "../vendor/lit-html.js";
import * as api from "./api.js";
import { linesOf, merge } from "./diff.js";
import { comparable, detail, valueOf, SHOWN_BYTES } from "./detail.js";
import { number } from "./format.js";
import { button, icon } from "./parts.js";
import { difference } from "./difference.js";
import { update } from "./state.js";

const CHOICES = [["mine", "Yours"], ["theirs", "Theirs"], ["both", "Both"], ["neither", "Neither"]];
const TITLES = { mine: "Your change", theirs: "Their change", equal: "Both made this change" };
const CONTEXT = 2;

/** Read what is stored now and compare; null if it has gone. */
export async function startMerge(editor) {
  const { draft } = editor;
  let node;
  try {
    ({ node } = await api.read(draft.path, { maxValue: SHOWN_BYTES, base64: true, limit: 1 }));
  } catch (error) {
    if (error.code !== 100) throw error;
    draft.isGone = true;
    return null;
  }
  const value = valueOf(node);
  if (node.dir || value.isBinary || value.isCut) {
    editor.error = "What is stored now is no text that could be merged.";
    return null;
  }
  detail.ends = node.ttl == null ? 0 : performance.now() + node.ttl * 1000;
  // A time that somebody else has given it meanwhile is a change of theirs.
  if (detail.ends && !draft.expires) draft.keeps = true;
  draft.expires = detail.ends > 0;
  return new Merge(editor, node, value);
}

class Merge {
  constructor(editor, node, value) {
    this.editor = editor;
    this.node = node;
    this.theirs = comparable(value);
    this.chunks = merge(linesOf(editor.draft.base), linesOf(editor.saved), linesOf(this.theirs));
    for (const chunk of this.chunks) chunk.choice = chunk.kind === "mine" || chunk.kind === "equal" ? "mine" : chunk.kind === "conflict" ? "" : "theirs";
    this.wereOpen = this.open;
  }

  get open() { return this.chunks.filter(chunk => chunk.kind === "conflict" && !chunk.choice).length; }

  get text() {
    return this.chunks.flatMap(chunk => {
      if (chunk.kind === "same") return chunk.base;
      return { mine: chunk.mine, theirs: chunk.theirs, both: [...chunk.mine, ...chunk.theirs], neither: chunk.base, "": chunk.base }[chunk.choice];
    }).join("\n");
  }

  async save() {
    if (this.open) return;
    const { draft } = this.editor;
    const { text } = this;
    // Should it have changed once more, this is what was seen.
    Object.assign(draft, { base: this.theirs, index: this.node.modifiedIndex, text: text.replace(/\r\n?/g, "\n"), other: 0 });
    this.editor.merge = null;
    await this.editor.put(text, this.node.modifiedIndex);
  }

  editFirst() {
    const { draft } = this.editor;
    Object.assign(draft, { base: this.theirs, index: this.node.modifiedIndex, text: this.text.replace(/\r\n?/g, "\n"), other: 0 });
    this.editor.merge = null;
    this.editor.check();
    update();
  }

  view() {
    const { draft } = this.editor;
    const open = this.open;
    const before = number(draft.index);
    const now = number(this.node.modifiedIndex);
    const what = this.wereOpen
      ? html`Choose for the ${this.wereOpen === 1 ? "place" : `${this.wereOpen} places`} where both changed the same lines.`
      : html`The changes are in different places: both are kept.`;
    let number_ = 0;
    return html`<div class="pane merge">
      <div class="band warn" role="alert">${icon("warn")}<span><b>Somebody saved this key while you were editing</b>
        (index ${before} → ${now}). Nothing was overwritten. ${what}</span></div>
      ${this.chunks.map(chunk => (chunk.kind === "same" ? around(chunk.base) : this.chunkView(chunk, (number_ += 1), before, now)))}
      <h3>What will be saved, against what is stored now</h3>
      ${difference(this.theirs, this.text, "What will be saved")}
      <div class="foot"><div class="foot-facts">${open ? html`<span class="warn">${number(open)} to choose</span>` : html`<span class="ok">${icon("check", 14)} all chosen</span>`}</div>
        <div class="foot-actions">${button(null, "Drop my change", () => this.editor.leave(), { kind: "danger" })}
        ${button(null, "Edit it first", () => this.editFirst(), { disabled: open ? "Choose first." : "" })}
        <button type="button" class="button primary" ?disabled=${open > 0} @click=${() => this.save()}>Save the merge</button></div></div>
    </div>`;
  }

  chunkView(chunk, place, before, now) {
    const title = TITLES[chunk.kind] ?? (chunk.choice ? "Solved" : "Both changed this");
    const column = (name, title_, lines) => html`<div class="column ${chunk.choice === name || (chunk.choice === "both" && name !== "neither") ? "chosen" : ""}">
      <h4>${title_}</h4><pre>${lines.length ? lines.join("\n") : html`<i>nothing</i>`}</pre></div>`;
    return html`<fieldset class="chunk ${chunk.kind === "conflict" && !chunk.choice ? "unsolved" : ""}">
      <legend><b>${title}</b>${CHOICES.map(([name, label]) => html`<label class="tick"><input type="radio" name="chunk-${place}"
        .checked=${chunk.choice === name} @change=${() => {
          chunk.choice = name;
          update();
        }}>${label}</label>`)}</legend>
      <div class="columns">${column("neither", `Before · ${before}`, chunk.base)}${column("mine", "Yours", chunk.mine)}${column("theirs", `Theirs · ${now}`, chunk.theirs)}</div>
    </fieldset>`;
  }
}

/** Unchanged lines, but for some at each end left out. */
function around(lines) {
  const left = lines.length - 2 * CONTEXT;
  const pre = some => html`<pre class="around">${some.join("\n")}</pre>`;
  if (left <= 1) return pre(lines);
  return html`${pre(lines.slice(0, CONTEXT))}<p class="around skip">… ${number(left)} lines as before …</p>${pre(lines.slice(-CONTEXT))}`;
}
export { nothing };
