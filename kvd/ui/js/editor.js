// Editing a value: a textarea over a coloured copy of its text. Every save is a compare-and-swap.

import { html, nothing } from "../vendor/lit-html.js";
import * as api from "./api.js";
import { counts, diff, linesOf } from "./diff.js";
import { detail, leftText, left_s, showAgain } from "./detail.js";
import { nameOf, number, plural, titleOf } from "./format.js";
import { button, dialog, icon } from "./parts.js";
import { state, toast, update } from "./state.js";
import { COLOURED_MAX, coloured, jsonError, kindOf, yamlError } from "./syntax.js";

const CHECK_MS = 150;
// Comparing longer texts at each key takes longer than one should wait for a letter.
const COUNTED_MAX = 400_000;

const drafts = new Map();

export const draftOf = path => drafts.get(path);
export const dropDraft = path => drafts.delete(path);
export const hasDrafts = () => drafts.size > 0;
export const dropDrafts = () => drafts.clear();

/** Begin to edit the value that is shown, or go on with what was begun. */
export async function edit() {
  const { value } = detail;
  if (!value || value.isBinary || value.isCut) return;
  state.tab = "value"; // where one is after a save
  const draft = drafts.get(detail.path);
  detail.editor = new Editor(draft ?? {
    path: detail.path, base: value.text, index: detail.node.modifiedIndex, text: plain(value.text),
    kind: value.kind, keeps: detail.ends > 0, expires: detail.ends > 0, other: 0,
  });
  update();
  requestAnimationFrame(() => detail.editor?.focus());
}

// A textarea knows one end of a line. What has others is put back when the text is saved.
const plain = text => text.replace(/\r\n?/g, "\n");
const endOf = text => {
  const pairs = text.split("\r\n").length - 1;
  return pairs > 0 && pairs >= text.split("\n").length / 2 - 0.5 ? "\r\n" : "\n";
};

export class Editor {
  constructor(draft) {
    this.draft = draft;
    this.problem = null;
    this.isSaving = false;
    this.error = "";
    this.merge = null;
    this.checkTimer = 0;
    this.check();
  }

  get text() { return this.draft.text; }
  get isChanged() { return this.draft.text !== plain(this.draft.base); }

  /** The text as it is saved: unchanged, byte for byte what it was. */
  get saved() {
    const { base, text } = this.draft;
    if (!this.isChanged) return base;
    return endOf(base) === "\n" ? text : text.replaceAll("\n", "\r\n");
  }

  get hasMixedEnds() {
    const { base } = this.draft;
    return base.includes("\r") && this.isChanged && plain(base).replaceAll("\n", endOf(base)) !== base;
  }

  focus() {
    const area = document.querySelector(".editor textarea");
    if (!area) return;
    area.focus({ preventScroll: true });
    area.setSelectionRange(0, 0);
  }

  noteOther(event) {
    if (event.node.modifiedIndex > this.draft.index) {
      this.draft.other = event.node.modifiedIndex;
      this.draft.isGone = event.action === "delete" || event.action === "expire" || event.action === "compareAndDelete";
      update();
    }
  }

  onInput(text) {
    this.draft.text = text;
    if (this.isChanged) drafts.set(this.draft.path, this.draft);
    else drafts.delete(this.draft.path);
    this.check();
    update();
  }

  /** Check JSON and YAML a moment after the last key. */
  check() {
    clearTimeout(this.checkTimer);
    this.checkTimer = setTimeout(async () => {
      const { text } = this.draft;
      const kind = this.kind();
      const problem = kind === "JSON" ? jsonError(text) : kind === "YAML" ? await yamlError(text) : null;
      if (text !== this.draft.text) return;
      this.problem = problem;
      this.checked = kind === "JSON" || kind === "YAML" ? kind : "";
      update();
    }, CHECK_MS);
  }

  /** What the text is meant for: once JSON it stays that while it is broken. */
  kind() {
    const { kind } = kindOf(this.draft.text, nameOf(this.draft.path));
    const was = this.draft.kind;
    return was === "JSON" || was === "YAML" ? (kind === "JSON" || kind === "YAML" ? kind : was) : kind;
  }

  async save() {
    if (this.isSaving) return;
    if (this.merge) return void this.merge.save();
    if (!this.isChanged) return void this.leave();
    await this.put(this.saved, this.draft.index);
  }

  /** Store a text if the key is as it was at an index; otherwise open the merge. What is typed until the answer comes
   *  is a further change. */
  async put(text, index) {
    const { path, keeps, text: typed } = this.draft;
    this.isSaving = true;
    this.error = "";
    update();
    try {
      const form = index ? { value: text, prevIndex: index } : { value: text, prevExist: "false" };
      if (keeps && detail.ends) form.ttl = left_s();
      const { node } = await api.write(path, form);
      toast(`Saved at index ${number(node.modifiedIndex)}.`, { seconds: 8 });
      if (this.draft.text === typed) {
        this.close();
        await showAgain(path);
      } else Object.assign(this.draft, { base: text, index: node.modifiedIndex, ...(this.draft.other > node.modifiedIndex ? {} : { isGone: false, other: 0 }) });
    } catch (error) {
      if (error.code === 101 || error.code === 105) await this.openMerge();
      else if (error.code === 100) this.draft.isGone = true;
      else this.error = error instanceof api.Offline ? "kvd does not answer; your text stays here." : error.message;
    } finally {
      this.isSaving = false;
      update();
    }
  }

  async openMerge() {
    try {
      const { startMerge } = await import("./merge.js");
      this.merge = await startMerge(this);
    } catch (error) {
      this.error = `Somebody saved this key meanwhile, and what is stored could not be read: ${error.message}. Save again.`;
    }
    update();
  }

  close() {
    drafts.delete(this.draft.path);
    if (detail.editor === this) detail.editor = null; // it may be that of another key by now
    update();
  }

  /** Leave the editor; a change is dropped only if that is meant. */
  leave() {
    if (!this.isChanged) {
      this.close();
      return showAgain(this.draft.path);
    }
    return dialog("Drop your change?", (redraw, close) => html`
      <div class="dialog-body"><h2>Drop your change?</h2><p>What you typed into <code>${titleOf(this.draft.path)}</code> is not saved.</p></div>
      <div class="dialog-foot">${button(null, "Keep editing", close)}
        <button type="button" class="button danger solid" autofocus @click=${() => {
          close();
          this.close();
          showAgain(this.draft.path);
        }}>Drop it</button></div>`);
  }

  view() {
    return this.merge ? this.merge.view() : this.editView();
  }

  editView() {
    const { draft } = this;
    const lines = linesOf(draft.text);
    const kind = draft.text.length > COLOURED_MAX ? "text" : this.kind();
    const wrong = this.problem?.line;
    return html`
      ${draft.isGone ? this.goneBand() : draft.other && !this.isSaving ? html`<div class="band warn" role="alert">${icon("warn")}<span><b>Somebody saved this key while you were
        editing</b> (index ${number(draft.other)}). Nothing is overwritten: saving shows both changes.</span></div>` : nothing}
      <div class="editor"><div class="sheet">
        <div class="gutter" aria-hidden="true">${lines.map((_, at) => html`<span class=${at + 1 === wrong ? "wrong" : ""}>${at + 1}</span>`)}</div>
        <div class="stack"><pre aria-hidden="true">${lines.map(line => html`${coloured(line, kind)}${"\n"}`)}</pre>
          <textarea spellcheck="false" autocapitalize="off" autocomplete="off" wrap="off" aria-label="Value of ${draft.path}"
            aria-describedby="editor-keys" .value=${draft.text} @input=${event => this.onInput(event.target.value)}
            @keydown=${event => this.onKey(event)}></textarea></div>
      </div></div>
      ${this.foot()}`;
  }

  /** How many lines were added and removed; the page is drawn far more often than the text changes. */
  steps() {
    const { base, text } = this.draft;
    if (this.counted?.text !== text || this.counted.base !== base) {
      this.counted = { base, text, steps: counts(diff(linesOf(plain(base)), linesOf(text))) };
    }
    return this.counted.steps;
  }

  goneBand() {
    return html`<div class="band bad" role="alert">${icon("warn")}<span><b>This key was deleted meanwhile.</b> Your text is still here.</span>
      ${button(null, "Create it again", () => this.put(this.saved, 0))}</div>`;
  }

  foot() {
    const { draft, problem } = this;
    const steps = this.isChanged && draft.text.length < COUNTED_MAX ? this.steps() : null;
    return html`<div class="foot">
      <div class="foot-facts">
        ${problem ? html`<span class="bad">line ${number(problem.line)}: ${problem.message}</span>`
          : this.checked ? html`<span class="ok">${icon("check", 14)} ${this.checked}</span>` : nothing}
        ${steps ? html`<span>+${steps.added} −${steps.removed} ${steps.added + steps.removed === 1 ? "line" : "lines"}</span>` : html`<span>${this.isChanged ? "changed" : "no change"}</span>`}
        ${this.hasMixedEnds ? html`<span class="warn">Its lines end in different ways; saved they end alike.</span>` : nothing}
        ${detail.ends ? html`<label class="tick"><input type="checkbox" .checked=${draft.keeps} @change=${event => {
          draft.keeps = event.target.checked;
          update();
        }}>keep expiring in ${leftText()}</label>` : nothing}
        ${this.error ? html`<span class="bad" role="alert">${this.error}</span>` : nothing}
        <span class="hint" id="editor-keys"><kbd>Tab</kbd> indents · <kbd>Esc</kbd>, then <kbd>Tab</kbd> leaves the text</span>
      </div>
      <div class="foot-actions">${button(null, "Cancel", () => this.leave())}
        <button type="button" class="button primary" ?disabled=${this.isSaving || draft.isGone} @click=${() => this.save()}>Save <kbd>Ctrl S</kbd></button></div>
    </div>`;
  }

  onKey(event) {
    if (event.key === "Escape") {
      event.stopPropagation();
      if (this.mayTabOut) this.leave();
      this.mayTabOut = true;
      return;
    }
    if (event.key === "Tab" && !this.mayTabOut && !event.ctrlKey && !event.altKey) {
      event.preventDefault();
      indent(event.target, event.shiftKey);
      return;
    }
    if (event.key !== "Tab" && event.key !== "Shift") this.mayTabOut = false;
  }
}

/** Indent the lines of the selection, or take that back; the browser can undo it. */
function indent(area, isBack) {
  const { selectionStart: from, selectionEnd: to, value } = area;
  if (from === to && !isBack) {
    document.execCommand("insertText", false, "  ");
    return;
  }
  const start = value.lastIndexOf("\n", from - 1) + 1;
  const block = value.slice(start, to);
  const lines = block.split("\n").map(line => (isBack ? line.replace(/^ {1,2}|^\t/, "") : `  ${line}`)).join("\n");
  area.setSelectionRange(start, to);
  document.execCommand("insertText", false, lines);
  area.setSelectionRange(start, start + lines.length);
}

addEventListener("beforeunload", event => {
  if (hasDrafts()) event.preventDefault();
});
export { plural };
