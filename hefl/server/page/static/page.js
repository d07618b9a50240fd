// Shows what /events says. Everything that comes from there is put in as text, never as markup.
"use strict";

const byId = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 170, LEFT = 46, RIGHT = 10, TOP = 8, BOTTOM = 22;
const RETRY_MS = 2000;

const STANDING = {
  sent: "update is in", done: "finished", awaited: "awaited", here: "here", silent: "silent", left: "left",
  absent: "not here yet",
};
const PHASES = ["gathering", "collecting", "summing"];

const rows = new Map();
const charts = [];
let now = null, deadlineAt = null, link = "connecting", heardAt = null, names = [];

// --- the connection --------------------------------------------------------------------------------------------------

function connect() {
  const source = new EventSource("/events");
  source.onmessage = (message) => {
    const news = JSON.parse(message.data);
    if (now && news.now.run !== now.run) clear();
    now = news.now;
    heardAt = new Date();
    deadlineAt = now.deadline_s === null ? null : performance.now() + 1000 * now.deadline_s;
    for (const row of news.rows) rows.set(row.round, row);
    if (now.phase === "ended") source.close();
    link = now.phase === "ended" ? "over" : now.interrupted ? "lost" : "live";
    show(news.rows);
  };
  source.onerror = () => {
    link = "lost";
    showLink();
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, RETRY_MS);
  };
}

function clear() {
  rows.clear();
  names = [];
  byId("rows").replaceChildren();
  byId("clients").replaceChildren();
}

// --- words -----------------------------------------------------------------------------------------------------------

const number = (value) => new Intl.NumberFormat("en", { maximumSignificantDigits: 3, useGrouping: false }).format(value);

function bytes(value) {
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (value < 1000 || unit === "GB") return `${number(value)} ${unit}`;
    value /= 1000;
  }
}

function seconds(value) {
  if (value === 0) return "0 s";
  return value < 0.9995 ? `${Math.round(1000 * value)} ms` : value < 100 ? `${number(value)} s` : clock(value);
}

function clock(value) {
  const whole = Math.ceil(value), minutes = Math.floor(whole / 60), two = (n) => String(n).padStart(2, "0");
  return minutes < 60
    ? `${minutes}:${two(whole % 60)}`
    : `${Math.floor(minutes / 60)}:${two(minutes % 60)}:${two(whole % 60)}`;
}

function list(all) {
  const shown = all.length > 6 ? [...all.slice(0, 5), `${all.length - 5} more`] : all;
  return new Intl.ListFormat("en", { type: "conjunction" }).format(shown);
}

const title = (name) => name.charAt(0).toUpperCase() + name.slice(1);

function roundName(row) {
  return row.exchange === "initial" ? "initial" : row.exchange === "closing" ? "closing" : String(row.round);
}

const standing = (...kinds) => Object.keys(now.clients).filter((name) => kinds.includes(now.clients[name]));

function doing() {
  const here = standing("here", "silent", "awaited", "sent").length, { awaited } = now;
  switch (now.phase) {
    case "gathering": {
      if (here >= now.min_clients) return "About to begin.";
      const absent = standing("absent", "left", "silent");
      return `Waiting for clients: ${here} here, at least ${now.min_clients} needed. Not here: ${list(absent)}.`;
    }
    case "collecting": {
      const what = {
        initial: "The initial model is on its way", training: "Clients train and encrypt",
        closing: "Clients measure the last model",
      }[now.exchange];
      const whom = awaited.length ? `waiting for ${list(awaited)}` : "all is in";
      return `${what}; ${whom}${now.attempt > 1 ? ` (attempt ${now.attempt})` : ""}.`;
    }
    case "summing": return "Adding up encrypted updates.";
    case "draining": return awaited.length ? `Waiting for ${list(awaited)} to fetch the last model.` : "Everyone has the last model.";
    default: return "Every client that stayed has the final model. The server has gone; this page stays as it is.";
  }
}

function heading() {
  // Closing rounds before an extension have numbers too.
  const trainings = now.trainings === now.rounds ? "" : `, with ${now.trainings} trainings`;
  if (now.phase === "ended") return ["Run ended", `after round ${now.done}`];
  if (now.exchange === "initial") return ["Initial model", now.rounds === 1 ? "1 round" : `${now.rounds} rounds`];
  if (now.exchange === "closing") return ["Closing", `after round ${now.done}`];
  return [`Round ${now.round}`, `of ${now.rounds}${trainings}`];
}

// --- what stands above -----------------------------------------------------------------------------------------------

// Only what has changed is touched, so that a screen reader is told of nothing twice.
function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== null) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function showLink() {
  const words = { connecting: "connecting", live: "live", lost: "connection lost", over: "run ended" };
  byId("link").dataset.link = link;
  say(byId("link"), words[link]);
  const notice = byId("notice");
  const since = heardAt ? ` What stands here is from ${heardAt.toLocaleTimeString()}.` : "";
  const why = now && now.interrupted ? "The server was stopped." : "The connection to the server is lost.";
  say(notice, link === "lost" ? `${why}${since} This page tries again by itself.` : "");
  notice.hidden = link !== "lost";
  showClock();
}

function showClock() {
  const running = deadlineAt !== null && link === "live";
  const left = running ? (deadlineAt - performance.now()) / 1000 : 0;
  say(byId("clock"), !running ? "" : left > 0 ? `Closes in ${clock(left)}.` : "The deadline is here.");
}

function showNow() {
  const [big, small] = heading(), h1 = byId("round"), done = now.done, share = done / now.rounds;
  if (h1.textContent !== `${big} ${small}`) h1.replaceChildren(`${big} `, element("small", small));
  document.title = `${big} ${small} \u2013 hefl`;
  say(byId("run"), now.run.slice(0, 8));
  byId("run").title = now.run;
  say(byId("doing"), doing());
  const bar = byId("bar");
  bar.firstElementChild.style.transform = `scaleX(${share})`;
  bar.setAttribute("aria-valuemax", now.rounds);
  bar.setAttribute("aria-valuenow", done);
  bar.setAttribute("aria-valuetext", `${done} of ${now.rounds} rounds finished`);
}

function showClients() {
  const ul = byId("clients");
  for (const li of [...ul.children]) if (!(li.dataset.name in now.clients)) li.remove();
  for (const [name, is] of Object.entries(now.clients)) {
    let li = [...ul.children].find((child) => child.dataset.name === name);
    if (!li) {
      li = element("li", null, { "data-name": name });
      li.append(element("b", name), element("span", ""));
      ul.append(li);
    }
    if (li.dataset.is === is) continue;
    li.dataset.is = is;
    li.lastElementChild.textContent = STANDING[is];
  }
}

function showTold() {
  const reporters = [...new Set([...rows.values()].map((row) => row.reporter).filter(Boolean))];
  const refused = Object.entries(now.refused).map(([reason, count]) => `${count} ${reason}`);
  say(byId("told"), [
    reporters.length
      ? `Metrics are the clients\u2019 averages, as ${list(reporters)} reported.`
      : "No client has reported metrics.",
    refused.length ? `Refused requests: ${refused.join(", ")}.` : "",
  ].join(" "));
}

// --- the table -------------------------------------------------------------------------------------------------------

function columns() {
  return [
    ...names.map((name) => [title(name), (row) => (row.metrics && name in row.metrics ? value(row.metrics[name]) : "\u2013")]),
    ["In the sum", (row) => (row.members.length ? `${row.members.length} of ${row.members.length + row.missed.length}` : "\u2013")],
    ["Missed", (row) => list(row.missed) || "\u2013", "words"],
    ["Up", (row) => (row.seconds ? bytes(row.bytes_up) : "\u2013")],
    ["Down", (row) => (row.seconds ? bytes(row.bytes_down) : "\u2013")],
    ...PHASES.map((phase) => [title(phase), (row) => (row.seconds ? seconds(row.seconds[phase]) : "\u2013")]),
  ];
}

const value = (metric) => (metric === null ? "missing" : number(metric));

function showTable(changed) {
  const scroll = byId("table"), body = byId("rows"), head = byId("head");
  const atEnd = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 8;
  const all = columns(), heads = ["Round", ...all.map(([name]) => name)];
  let drawn = changed;
  if ([...head.children].map((th) => th.textContent).join() !== heads.join()) {
    head.replaceChildren(...heads.map((name) => element("th", name, { scope: "col", class: name === "Missed" ? "words" : "" })));
    body.replaceChildren();
    drawn = [...rows.values()];
  }
  for (const row of drawn) {
    const tr = element("tr", null, { "data-round": row.round });
    tr.append(element("th", roundName(row), { scope: "row" }), ...all.map(([, text, kind]) => element("td", text(row), kind ? { class: kind } : {})));
    if (row.missed.length) tr.querySelector(".words").classList.add("miss");
    const old = body.querySelector(`[data-round="${row.round}"]`);
    if (old) old.replaceWith(tr);
    else body.insertBefore(tr, [...body.children].find((other) => Number(other.dataset.round) > row.round) || null);
  }
  if (!rows.size) body.replaceChildren(element("tr", null));
  if (!rows.size) body.firstChild.append(element("td", "No round is over yet.", { colspan: heads.length, class: "words" }));
  else body.querySelector("tr:not([data-round])")?.remove();
  if (atEnd) scroll.scrollTop = scroll.scrollHeight;
}

// --- charts ----------------------------------------------------------------------------------------------------------

// Four panels that are there from the beginning, so that nothing moves when figures come.
function makeCharts() {
  addChart({ kind: "curve", name: () => "loss", unit: number });
  addChart({ kind: "curve", name: secondMetric, unit: number });
  addChart({ kind: "bars", heading: "Seconds a round", unit: seconds, parts: PHASES, of: (row, part) => (row.seconds ? row.seconds[part] : 0) });
  addChart({ kind: "bars", heading: "Bytes a round", unit: bytes, parts: ["up", "down"], of: (row, part) => row[`bytes_${part}`] });
}

const secondMetric = () => (names.includes("accuracy") ? "accuracy" : names.find((name) => name !== "loss") || "accuracy");

function addChart(chart) {
  const figure = element("figure", null, { class: "chart", tabindex: 0, role: "group" });
  const caption = element("figcaption", null);
  chart.title = element("h3", "");
  chart.readout = element("output", "");
  chart.box = element("div", null, { class: "box" });
  chart.svg = document.createElementNS(SVG, "svg");
  chart.svg.setAttribute("role", "img");
  chart.empty = element("p", chart.parts ? "No round is over yet." : "Shown where a client runs with ", { class: "empty" });
  if (!chart.parts) chart.empty.append(element("code", "--report-metrics"));
  chart.cursor = null;
  chart.figure = figure;
  caption.append(chart.title, chart.readout);
  chart.box.append(chart.svg, chart.empty);
  chart.legend = element("ul", null, { class: "legend" });
  if (chart.parts) chart.parts.forEach((part) => chart.legend.append(element("li", part, { class: part })));
  else chart.legend.append(element("li", "by model; 0 is the initial one"));
  figure.append(caption, chart.box, chart.legend);
  figure.addEventListener("keydown", (event) => moveCursor(chart, event));
  figure.addEventListener("blur", () => setCursor(chart, null));
  chart.svg.addEventListener("pointermove", (event) => pointAt(chart, event));
  chart.svg.addEventListener("pointerleave", () => setCursor(chart, null));
  new ResizeObserver(() => draw(chart)).observe(chart.box);
  byId("charts").append(figure);
  charts.push(chart);
}

function pointsOf(chart) {
  const all = [...rows.values()].sort((a, b) => a.round - b.round);
  if (chart.kind === "bars") return all.map((row) => ({ round: row.round, row, parts: chart.parts.map((part) => chart.of(row, part)) }));
  const name = chart.name();
  return all.filter((row) => row.metrics && name in row.metrics).map((row) => ({ round: row.round, row, y: row.metrics[name] }));
}

function moveCursor(chart, event) {
  const last = chart.points.length - 1, at = chart.cursor ?? last;
  const to = { ArrowLeft: chart.cursor === null ? last : at - 1, ArrowRight: at + 1, Home: 0, End: last, Escape: null }[event.key];
  if (to === undefined || last < 0) return;
  event.preventDefault();
  setCursor(chart, to === null ? null : Math.max(0, Math.min(last, to)));
}

function pointAt(chart, event) {
  if (!chart.points.length) return;
  const x = event.clientX - chart.svg.getBoundingClientRect().left;
  const distances = chart.points.map((point) => Math.abs(chart.x(point.round) - x));
  setCursor(chart, distances.indexOf(Math.min(...distances)));
}

function setCursor(chart, index) {
  if (chart.cursor === index) return;
  chart.cursor = index;
  draw(chart);
}

function place(chart, point) {
  if (chart.kind === "curve") return point.round ? `model ${point.round}` : "initial model";
  return roundName(point.row).replace(/^(?=\d)/, "round ");
}

function words(chart, point) {
  const what = chart.kind === "curve"
    ? value(point.y)
    : chart.parts.map((part, i) => `${part} ${chart.unit(point.parts[i])}`).join(", ");
  return `${place(chart, point)}: ${what}`;
}

function nice(top) {
  if (!(top > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(top));
  return power * [1, 1.2, 1.6, 2, 2.4, 3, 4, 5, 6, 8, 10].find((step) => step * power >= top * 0.999999);
}

function shape(tag, attributes, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function draw(chart) {
  const width = chart.box.clientWidth, bars = chart.kind === "bars";
  const points = (chart.points = pointsOf(chart));
  const heading = bars ? chart.heading : title(chart.name());
  say(chart.title, heading);
  const rounds = now ? now.rounds : 1, kept = points.length ? points[0].round : 0;
  const low = rounds > 500 ? kept : 0, high = rounds > 500 ? Math.max(kept + 50, points.at(-1)?.round ?? 0) : rounds + (bars ? 1 : 0);
  const inner = width - LEFT - RIGHT, step = inner / (high - low + 1);
  const values = points.flatMap((point) => (bars ? [point.parts.reduce((a, b) => a + b, 0)] : point.y === null ? [] : [point.y]));
  const top = nice(Math.max(0, ...values)), bottom = Math.min(0, ...values) < 0 ? -nice(-Math.min(...values)) : 0;
  const x = (chart.x = (round) => (bars ? LEFT + (round - low + 0.5) * step : LEFT + ((round - low) / Math.max(high - low, 1)) * inner));
  const y = (v) => TOP + ((top - v) / (top - bottom)) * (HEIGHT - TOP - BOTTOM);
  const drawn = [];
  for (const tick of !points.length ? [] : [bottom, (bottom + top) / 2, top]) {
    drawn.push(shape("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(tick), y2: y(tick) }));
    drawn.push(shape("text", { x: LEFT - 6, y: y(tick) + 4, "text-anchor": "end" }, chart.unit(tick)));
  }
  for (const [round, anchor] of !points.length ? [] : bars ? [[low, "middle"], [Math.min(high, rounds), "middle"]] : [[low, "start"], [high, "end"]]) {
    drawn.push(shape("text", { x: x(round), y: HEIGHT - 6, "text-anchor": anchor }, round));
  }
  drawn.push(...(bars ? drawBars(points, chart.parts, x, y, step) : drawCurve(points, x, y)));
  const chosen = points[chart.cursor ?? -1];
  if (chosen) drawn.push(shape("line", { class: "cursor", x1: x(chosen.round), x2: x(chosen.round), y1: TOP, y2: HEIGHT - BOTTOM }));
  chart.svg.replaceChildren(...drawn);
  const shown = chosen || points.at(-1);
  say(chart.readout, !shown ? "" : bars ? place(chart, shown) : words(chart, shown));
  if (bars) chart.parts.forEach((part, i) => say(chart.legend.children[i], shown ? `${part} ${chart.unit(shown.parts[i])}` : part));
  const summary = points.length ? `${words(chart, points[0])}; ${words(chart, points.at(-1))}` : "nothing yet";
  chart.svg.setAttribute("aria-label", `${heading}. ${summary}.`);
  chart.figure.setAttribute("aria-label", `${heading}. Arrow keys read single values.`);
  chart.empty.hidden = points.length > 0;
}

function drawCurve(points, x, y) {
  const drawn = [];
  let path = "", broken = true;
  for (const point of points) {
    if (point.y === null) {
      broken = true; // a missing value is a gap
      continue;
    }
    path += `${broken ? "M" : "L"}${x(point.round).toFixed(1)} ${y(point.y).toFixed(1)}`;
    broken = false;
    if (points.length <= 60) drawn.push(shape("circle", { cx: x(point.round), cy: y(point.y), r: 2.5 }));
  }
  return [shape("path", { class: "curve", d: path }), ...drawn];
}

function drawBars(points, kinds, x, y, step) {
  const wide = Math.max(1, Math.min(step * 0.7, 28));
  return points.flatMap((point) => {
    let below = 0;
    return point.parts.map((part, i) => {
      const from = below;
      below += part;
      return shape("rect", { class: kinds[i], x: x(point.round) - wide / 2, y: y(below), width: wide, height: Math.max(y(from) - y(below), 0) });
    });
  });
}

// --- all of it -------------------------------------------------------------------------------------------------------

function show(changed) {
  const known = [...new Set([...rows.values()].flatMap((row) => Object.keys(row.metrics || {})))].sort();
  names = [...["loss", "accuracy"].filter((name) => known.includes(name)), ...known.filter((name) => name !== "loss" && name !== "accuracy")];
  document.body.dataset.ready = "";
  showNow();
  showClients();
  showTable(changed);
  showTold();
  charts.forEach(draw);
  showLink();
}

makeCharts();
setInterval(showClock, 250);
connect();
