// Dialogs: a new key, deletion, the time a key has, login, the menu, the keys of the keyboard.

import { html, nothing } from "../vendor/lit-html.js";
import * as api from "./api.js";
import { bytes, clean, join, nameOf, number, parentOf, shortened, sizeOf, titleOf } from "./format.js";
import { detail, left_s, leftText, selectTab, show, showAgain } from "./detail.js";
import { hasDrafts, dropDrafts } from "./editor.js";
import { button, copy, dialog, icon } from "./parts.js";
import { applyTheme, go, refusal, remember, remembered, state, toast, update } from "./state.js";

const KEY_BYTES_MAX = 60_000;

const field = (label, input, hint = nothing) => html`<label class="field"><span>${label}</span>${input}${hint}</label>`;

/** A new key in a directory, or at a path. */
export function create(dir, path = "") {
  const form = { path: path || (dir === "/" ? "/" : `${dir}/`), value: "", ttl: "", isDir: false, error: "", isBusy: false };
  const shown = dialog("New key", (redraw, close) => {
    const why = refusal(clean(form.path));
    return html`<form @submit=${event => submit(event)}><div class="dialog-body"><h2>New ${form.isDir ? "directory" : "key"}</h2>
      ${field("Path", html`<input class="mono" autofocus required autocomplete="off" spellcheck="false" .value=${form.path}
        @input=${event => set("path", event.target.value)}>`, html`<small>${hint(form.path)}</small>`)}
      ${form.isDir ? nothing : field("Value", html`<textarea class="mono" rows="6" spellcheck="false" .value=${form.value}
        @input=${event => set("value", event.target.value)}></textarea>`)}
      ${field("Expires after seconds (empty: never)", html`<input type="number" min="1" max="9000000000" step="1" .value=${form.ttl}
        @input=${event => set("ttl", event.target.value)}>`)}
      <label class="tick"><input type="checkbox" .checked=${form.isDir} @change=${event => set("isDir", event.target.checked)}>an empty directory</label>
      ${form.error || why ? html`<p class="bad" role="alert">${form.error || why}</p>` : nothing}</div>
      <div class="dialog-foot">${button(null, "Cancel", close)}<button class="button primary" ?disabled=${form.isBusy || Boolean(why)}>Create</button></div></form>`;
  });
  const input = shown.element.querySelector("input");
  input.setSelectionRange(input.value.length, input.value.length);

  function set(name, value) {
    form[name] = value;
    form.error = "";
    shown.redraw();
  }

  async function submit(event) {
    event.preventDefault();
    const target = clean(form.path);
    if (target === "/" || form.path.endsWith("/")) return set("error", "Give the key a name behind the last “/”.");
    if (sizeOf(target) > KEY_BYTES_MAX) return set("error", `A path may have ${number(KEY_BYTES_MAX)} bytes here.`);
    form.isBusy = true;
    shown.redraw();
    const sent = form.isDir ? { dir: "true", prevExist: "false" } : { value: form.value, prevExist: "false" };
    if (form.ttl) sent.ttl = form.ttl;
    try {
      const { node } = await api.write(target, sent);
      shown.close();
      toast(`Created ${titleOf(target)} at index ${number(node.modifiedIndex)}.`, { seconds: 8 });
      if (detail.path === target) await show(target, { again: true });
      go("keys", target);
    } catch (error) {
      form.isBusy = false;
      set("error", { 105: "There is a key of this path already. Nothing was changed.", 104: `A part of the path is a key: ${error.message}` }[error.code] ?? error.message);
    }
    return undefined;
  }
}

function hint(path) {
  const parent = path.endsWith("/") ? clean(path) : parentOf(clean(path));
  if (nameOf(path).startsWith("_")) return "A name that begins with “_” is hidden from listings.";
  return parent === "/" ? "Slashes make directories." : html`In <code>${shortened(parent, 120)}</code>, which is made if it is not there.`;
}

/** Delete what is shown: a key with a way back, a directory by its name. */
export const remove = screens => (detail.status === "dir" ? removeDir(screens) : removeKey());

function removeKey() {
  const { path, node, value } = detail;
  const left = left_s();
  let problem = "";
  const shown = dialog("Delete this key?", (redraw, close) => html`
    <div class="dialog-body"><h2>Delete ${titleOf(path)}?</h2><p class="mono wrap">${path}</p>
      <p>${bytes(value.size)}, modified at ${number(node.modifiedIndex)}. It is deleted only if it is still as it is shown.</p>
      ${problem ? html`<p class="bad" role="alert">${problem}</p>` : nothing}</div>
    <div class="dialog-foot">${button(null, "Cancel", close)}<button type="button" class="button danger solid" autofocus @click=${act}>Delete</button></div>`);
  async function act() {
    try {
      const kept = value.isCut ? (await api.raw(path)).bytes : value.data;
      await api.remove(path, { prevIndex: node.modifiedIndex });
      shown.close();
      toast(`Deleted ${titleOf(path)}.`, { seconds: 12, label: "Undo", action: () => undo(path, kept, left) });
      go("keys", parentOf(path));
    } catch (error) {
      problem = error.code === 101 ? "The key has changed meanwhile. Nothing was deleted: close this and look again." : error.message;
      shown.redraw();
    }
  }
}

async function undo(path, kept, left) {
  try {
    await api.writeBytes(path, kept, { prevExist: "false", ...(left ? { ttl: left } : {}) });
    toast(`${titleOf(path)} is back.`, { seconds: 8 });
    go("keys", path);
  } catch (error) {
    toast(`It could not be put back: ${error.message}`, { kind: "bad", seconds: 12 });
  }
}

function removeDir(screens) {
  const { path, counted } = detail;
  const form = { typed: "", problem: "", isBusy: false };
  const name = nameOf(path);
  const typable = name.replace(/[\r\n]/g, ""); // a field has one line
  const what = counted ? `${counted.complete ? "" : "at least "}${number(counted.keys)} ${counted.keys === 1 ? "key" : "keys"}` : "everything";
  const shown = dialog("Delete this directory?", (redraw, close) => html`<form @submit=${event => act(event)}>
    <div class="dialog-body"><h2>Delete ${titleOf(path)} and everything below it?</h2><p class="mono wrap">${path}</p>
      <div class="band bad">${icon("warn")}<span>${counted ? html`<b>${what}</b> and <b>${number(counted.dirs)}</b> ${counted.dirs === 1 ? "directory" : "directories"},
        ${bytes(counted.bytes)} of values, will be gone at once.` : html`All of it will be gone at once.`} Hidden ones too.</span></div>
      <p>Watchers of anything below are told of one event, the deletion of the directory. The history brings back what it still has of it; an export has all of it.</p>
      ${field(html`Type <code>${typable}</code> to confirm`, html`<input class="mono" autofocus autocomplete="off" spellcheck="false" .value=${form.typed}
        @input=${event => {
          form.typed = event.target.value;
          redraw();
        }}>`)}
      ${form.problem ? html`<p class="bad" role="alert">${form.problem}</p>` : nothing}</div>
    <div class="dialog-foot">${button("down", "Export first", screens.exportAll, { kind: "first" })}${button(null, "Cancel", close)}
      <button class="button danger solid" ?disabled=${form.typed !== typable || form.isBusy}>Delete ${what}</button></div></form>`);
  async function act(event) {
    event.preventDefault();
    if (form.typed !== typable || form.isBusy) return;
    form.isBusy = true;
    shown.redraw();
    try {
      await api.remove(path, { recursive: true, dir: true });
      shown.close();
      toast(`Deleted ${titleOf(path)} and everything below it.`, { seconds: 12, label: "See its history", action: () => {
        selectTab("history");
        go("keys", path);
      } });
      go("keys", parentOf(path));
    } catch (error) {
      form.problem = error.message;
      form.isBusy = false;
      shown.redraw();
    }
  }
}

/** The time that a key has. */
export function ttl() {
  const { path, node, status, value } = detail;
  const isDir = status === "dir";
  const form = { way: "refresh", seconds: String(left_s() || 3600), problem: "" };
  const shown = dialog("When it expires", (redraw, close) => html`<form @submit=${event => act(event)}>
    <div class="dialog-body"><h2>When ${titleOf(path)} expires</h2>
      <p>${detail.ends ? `It expires in ${leftText()}.` : "It does not expire."}</p>
      ${choice("refresh", "Expire in", html`<input type="number" min="1" max="9000000000" aria-label="Seconds" .value=${form.seconds} @input=${event => (form.seconds = event.target.value)}> seconds`)}
      <p class="note">${isDir ? "A directory expires with everything in it." : "The value stays as it is. This is a refresh: watchers are not told."}</p>
      ${detail.ends && !isDir ? choice("never", "Expire no more", html`<small>a write, which watchers are told of</small>`) : nothing}
      ${form.problem ? html`<p class="bad" role="alert">${form.problem}</p>` : nothing}</div>
    <div class="dialog-foot">${button(null, "Cancel", close)}<button class="button primary">Set</button></div></form>`);
  function choice(name, label, rest) {
    return html`<p class="choice"><label class="tick"><input type="radio" name="way" .checked=${form.way === name} @change=${() => {
      form.way = name;
      shown.redraw();
    }}>${label}</label> ${rest}</p>`;
  }
  async function act(event) {
    event.preventDefault();
    try {
      if (form.way === "never") await setForGood();
      else if (isDir) await api.write(path, { dir: "true", ttl: form.seconds, prevExist: "true" });
      else await api.write(path, { refresh: "true", ttl: form.seconds, prevExist: "true", prevIndex: node.modifiedIndex });
      shown.close();
      toast(form.way === "never" ? "It expires no more." : `It expires in ${form.seconds} seconds.`, { seconds: 8 });
      await showAgain(path);
    } catch (error) {
      form.problem = error.code === 101 ? "The key has changed meanwhile; close this and look again." : error.message;
      shown.redraw();
    }
  }
  async function setForGood() {
    const data = value.isCut ? (await api.raw(path)).bytes : value.data;
    await api.writeBytes(path, data, { prevIndex: node.modifiedIndex });
  }
}

/** The value in other forms. */
export function copyAs() {
  const { path, value } = detail;
  const place = new URL(api.keyPlace(path), new URL(".", location.href)).href;
  const rows = [["Value", value.text, "the value"], ["Path", path, "the path"], ["Address of the API", place, "the address"],
    ["curl, to read", `curl ${quoted(place)}`, "a command"],
    ["curl, to write", value.isBinary || value.isCut ? null : `curl ${quoted(place)} -X PUT --data-urlencode ${quoted(`value=${value.text}`)}`, "a command"],
    ["Link to this page", location.href, "a link"]];
  const shown = dialog("Copy as", (redraw, close) => html`<div class="dialog-body"><h2>Copy as</h2>
    <ul class="choices">${rows.filter(([, text]) => text != null).map(([label, text, what], at) => html`<li><button type="button" class="choice-row" ?autofocus=${at === 0}
      @click=${async () => {
        await copy(text, what);
        close();
      }}><b>${label}</b><code>${text.length > 90 ? `${text.slice(0, 90)}…` : text}</code></button></li>`)}</ul></div>
    <div class="dialog-foot">${button(null, "Close", close)}</div>`);
  return shown;
}

const quoted = text => `'${text.replaceAll("'", "'\\''")}'`;

/** Log in; `then` is called when the rights of the user are known. */
export function login(then) {
  const form = { user: "", password: "", stays: false, problem: "", isBusy: false };
  const isOpen = location.protocol === "http:" && !/^(localhost|127(\.\d+){3}|\[::1\])$/.test(location.hostname);
  const shown = dialog("Log in", (redraw, close) => html`<form @submit=${event => act(event)}><div class="dialog-body"><h2>Log in</h2>
      ${isOpen ? html`<div class="band warn">${icon("warn")}<span>This page came over http: the password goes over the network as it is.</span></div>` : nothing}
      ${field("User", html`<input autofocus required autocomplete="username" .value=${form.user} @input=${event => (form.user = event.target.value)}>`)}
      ${field("Password", html`<input type="password" required autocomplete="current-password" .value=${form.password} @input=${event => (form.password = event.target.value)}>`)}
      <label class="tick"><input type="checkbox" .checked=${form.stays} @change=${event => (form.stays = event.target.checked)}>stay logged in until this tab is closed</label>
      ${form.problem ? html`<p class="bad" role="alert">${form.problem}</p>` : nothing}</div>
    <div class="dialog-foot">${button(null, "Cancel", close)}<button class="button primary" ?disabled=${form.isBusy}>Log in</button></div></form>`);
  async function act(event) {
    event.preventDefault();
    form.isBusy = true;
    shown.redraw();
    try {
      state.session = await api.logIn(form.user, form.password, form.stays);
      shown.close();
      then();
    } catch (error) {
      form.problem = error.status === 401 ? "Wrong user or password." : error.message;
      form.isBusy = false;
      shown.redraw();
    }
  }
}

/** The menu: user, theme, read-only. */
export function menu(screens) {
  const themes = [["system", "As the system"], ["light", "Light"], ["dark", "Dark"]];
  dialog("Menu", (redraw, close) => {
    const { session } = state;
    return html`<div class="dialog-body"><h2>${session?.user ?? (session?.auth ? "Guest" : "No users")}</h2>
      <p>${session?.auth ? `Roles: ${session.roles.join(", ") || "none"}.` : "This server has no users: everything is open to all that can reach it."}
        ${session?.auth && !session.root ? html`<br>Reads ${session.read.join(", ") || "nothing"}; writes ${session.write.join(", ") || "nothing"}.` : nothing}</p>
      <p>${session?.auth ? (api.isLoggedIn() ? button("user", "Log out", () => {
        if (hasDrafts() && !confirm("Changes that are not saved are dropped.")) return;
        close();
        dropDrafts();
        screens.logout();
      }) : button("user", "Log in", () => {
        close();
        screens.login();
      })) : nothing}</p>
      <fieldset class="choices-line"><legend>Colours</legend>${themes.map(([name, label]) => html`<label class="tick"><input type="radio" name="theme" .checked=${remembered("theme", "system") === name}
        @change=${() => {
          remember("theme", name);
          applyTheme();
          redraw();
        }}>${label}</label>`)}</fieldset>
      <label class="tick"><input type="checkbox" .checked=${state.readOnly || session?.readOnly} ?disabled=${session?.readOnly} @change=${event => {
        state.readOnly = event.target.checked;
        sessionStorage.setItem("kvd.readOnly", state.readOnly ? "1" : "");
        update();
      }}>read-only, in this tab</label>
      <p class="note">kvd ${session?.version} · ${session?.name} · cluster ${session?.cluster}</p></div>
    <div class="dialog-foot">${button("help", "Keyboard", () => {
      close();
      help();
    })}${button(null, "Close", close)}</div>`;
  });
}

const KEYS = [
  ["Everywhere", [["/ | Ctrl K", "find"], ["g k | g l | g s", "keys, live, status"], ["?", "this list"], ["Esc", "leave"]]],
  ["Tree", [["j | k | ↓ | ↑", "next, previous row"], ["→ | l", "open"], ["← | h", "close, or up"], ["PgUp | PgDn", "a page up, down"], ["Home | End", "first, last row"], ["Enter", "open or close"], [".", "hidden keys"], ["r", "read again"]]],
  ["Key", [["e", "edit"], ["1 | 2", "value, history"], ["y", "copy the path"], ["w", "wrap lines"], ["n", "new key"], ["Del", "delete"]]],
  ["Editor", [["Ctrl S", "save"], ["Tab | Shift Tab", "indent, and back"], ["Esc Tab", "leave the text"], ["Esc Esc", "leave the editor"]]],
  ["Live", [["Space", "pause"]]],
];

export function help() {
  dialog("Keyboard", (redraw, close) => html`<div class="dialog-body"><h2>Keyboard</h2><div class="keys">
    ${KEYS.map(([title, keys]) => html`<section><h3>${title}</h3><dl>${keys.map(([key, what]) => html`<div><dt>${key.split(" | ").map(each => html`<span>${each.split(" ").map(name => html`<kbd>${name}</kbd>`)}</span>`)}</dt><dd>${what}</dd></div>`)}</dl></section>`)}</div></div>
    <div class="dialog-foot"><button type="button" class="button" autofocus @click=${close}>Close</button></div>`, { kind: "wide" });
}
export { join };
