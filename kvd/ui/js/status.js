// How the server does: checks in words, six figures, nine plots of a quarter of an hour.

import { html, nothing } from "../vendor/lit-html.js";
import * as api from "./api.js";
import { bytes, clock, duration, number } from "./format.js";
import { button, icon } from "./parts.js";
import { plot } from "./plot.js";
import { remember, remembered, state, update, whenVisible } from "./state.js";

const SPAN_S = 900;

const status = { runs: 0, told: null, samples: [], timer: 0, hover: null, error: null, asTable: remembered("asTable", false) };

export async function start() {
  stop();
  await read(status.runs);
}

export function stop() {
  clearTimeout(status.timer);
  status.runs += 1;
}

async function read(run) {
  await whenVisible();
  if (run !== status.runs) return;
  try {
    const since = status.samples.at(-1)?.[0] ?? 0;
    const told = await api.status(since);
    if (run !== status.runs) return;
    const samples = [...status.samples, ...told.samples];
    // Another server than before begins anew.
    if (status.told && told.uptime < status.told.uptime) samples.splice(0, status.samples.length);
    status.samples = samples.filter(sample => sample[0] > told.now - SPAN_S - 4);
    status.told = told;
    status.error = null;
    state.problems = Object.entries(told.checks).filter(([, problem]) => problem);
  } catch (error) {
    status.error = error;
  }
  update();
  if (run === status.runs) status.timer = setTimeout(read, (status.told?.every ?? 2) * 1000, run);
}

const rate = value => (value == null ? "–" : number(value < 10 ? Math.round(value * 10) / 10 : Math.round(value)));

export function statusView() {
  const { told } = status;
  if (!told) {
    return html`<section class="status"><h2 class="away">Status</h2>${status.error
      ? html`<div class="empty"><h3>The status could not be read</h3><p>${status.error.message}</p></div>` : html`<p class="note" aria-busy="true">Loading …</p>`}</section>`;
  }
  const problems = Object.entries(told.checks).filter(([, problem]) => problem);
  const recovered = `recovered from ${told.recovery} in ${duration(told.recoverySeconds)}`;
  return html`<section class="status" aria-label="Status"><h2 class="away">Status</h2>
    <div class="status-head"><div class="checks">${problems.length
      ? problems.map(([name, problem]) => html`<span class="tag bad-tag">${icon("warn", 14)} ${name}: ${problem}</span>`)
      : html`<span class="tag ok-tag">${icon("check", 14)} All checks pass: writes are taken</span>`}
      <span class="what">kvd ${told.version} · up ${duration(told.uptime)} · ${recovered}${told.replica ? ` · ${replica(told.replica)}` : nothing}</span></div>
      <div class="actions">${button(null, status.asTable ? "As plots" : "As a table", () => {
        status.asTable = !status.asTable;
        remember("asTable", status.asTable);
        update();
      })}<a class="button" href="../metrics">/metrics</a></div></div>
    ${figures(told)}
    ${status.asTable ? table(told) : plots(told)}
    ${more(told)}
  </section>`;
}

function replica({ state, leader, behind }) {
  const whom = state === "following" ? ` ${leader || "no leader"}` : "";
  return `${state}${whom}${behind ? `, ${number(behind)} frames behind` : ""}`;
}

function field(told, sample, name) {
  return sample?.[told.fields.indexOf(name)];
}

function figures(told) {
  const latest = name => field(told, told.latest, name);
  const age = latest("snapshotAge");
  const shown = [["Index", number(told.index), ""], ["History from", number(told.oldest), `${number(told.historyLimit)} events`],
    ["Watchers", number(latest("watchers")), ""], ["Connections", number(latest("connections")), `of ${number(told.connectionsMax)}`],
    ["Snapshot", age == null ? "none yet" : duration(age), age == null ? "" : "old"], ["Disk left", bytes(latest("free")), ""]];
  return html`<dl class="figures">${shown.map(([name, value, note]) => html`<div><dt>${name}</dt><dd><b>${value}</b> ${note ? html`<small>${note}</small>` : nothing}</dd></div>`)}</dl>`;
}

const PLOTS = [
  { title: "Reads per second", series: [["reads", "reads", 1]], text: rate },
  { title: "Writes per second", series: [["writes", "writes", 2]], text: rate },
  { title: "fsync", series: [["p99", "fsync99", 1], ["p50", "fsync50", 2]], text: duration },
  { title: "Index", series: [["index", "index", 4]], text: number, isIndex: true },
  { title: "Watchers and connections", series: [["watchers", "watchers", 1], ["connections", "connections", 2]], text: rate },
  { title: "Log and index on disk", series: [["log", "log", 1], ["index file", "indexBytes", 2]], text: bytes, isBinary: true },
  { title: "Memory (RSS)", series: [["memory", "rss", 3]], text: bytes, isBinary: true },
  { title: "Loop late by", series: [["late", "stall", 3]], text: duration },
  { title: "Disk left", series: [["left", "free", 2]], text: bytes, isBinary: true },
];

function plots(told) {
  const samples = [...status.samples, told.latest];
  return html`<div class="plots">${PLOTS.map(each => plot({
    ...each, samples, from: told.now - SPAN_S, to: told.now, hover: status.hover,
    series: each.series.map(([name, field_, colour]) => ({ name, at: told.fields.indexOf(field_), colour })),
    onHover: at => {
      status.hover = at;
      update();
    },
  }))}</div>`;
}

function table(told) {
  const rows = [...status.samples, told.latest].reverse().filter((_, at) => at % 15 === 0);
  const columns = PLOTS.flatMap(({ title, series, text }) => series.map(([name, field_]) => [series.length > 1 ? (title === "fsync" ? `fsync ${name}` : name[0].toUpperCase() + name.slice(1)) : title, field_, text]));
  return html`<div class="scroll" tabindex="0" role="region" aria-label="Samples, every half minute"><table class="samples"><thead><tr><th scope="col">Time</th>${columns.map(([name]) => html`<th scope="col">${name}</th>`)}</tr></thead>
    <tbody>${rows.map(sample => html`<tr><th scope="row">${clock(new Date(sample[0] * 1000))}</th>${columns.map(([, name, text]) => html`<td>${text(field(told, sample, name))}</td>`)}</tr>`)}</tbody></table></div>`;
}

function more(told) {
  const { store } = told;
  const sum = (...names) => names.reduce((total, name) => total + (store[name]?.[0] ?? 0), 0);
  const rows = [["Served since the start", `${number(sum("gets"))} reads, ${number(sum("sets", "create", "update", "compareAndSwap"))} writes, ${number(sum("delete", "compareAndDelete"))} removals, ${number(sum("expire"))} expired`],
    ["Compare-and-swap that met a change", number((store.compareAndSwap?.[1] ?? 0) + (store.compareAndDelete?.[1] ?? 0))],
    ...(told.dataDir ? [["Data directory", html`<code>${told.dataDir}</code>`]] : []),
    ["Raft index, term", `${number(told.raftIndex)}, ${number(told.term)}`],
    ["For Prometheus and Grafana", html`<a href="../metrics">/metrics</a>, and <a href="grafana-kvd.json" download>a dashboard</a>`]];
  return html`<dl class="table">${rows.map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>`;
}
