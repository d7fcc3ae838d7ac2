// The page of a node's front: asks that front alone, and draws what it says.
//
// Keys and values come from anywhere, so all text goes in as text nodes, never as HTML.
// Top to bottom: what is known; elements; the ring; the flow; the answer; the counters; the
// charts; questions to the front; what the buttons do.

"use strict";

// ---- What is known ----

const CIRCLE = 2 ** 32; // places on the ring
const MINUTE = 60_000;
const RECENT = 100; // keys that are dots on the ring

let ring = { self: "", nodes: [] }; // as /api/ring says it
let states = new Map(); // by URL, as /api/status says it
let recent = [];
let samples = []; // of the last minute: { time, ratio, rate }
let latest = 0; // the number of the last question; older answers are not shown

const $ = id => document.getElementById(id);

/** How a node is called: by its port, where that is all that differs. */
function nameOf(url) {
  const host = node => new URL(node).hostname;
  const alike = ring.nodes.every(node => host(node.url) === host(ring.nodes[0].url));
  return (alike && new URL(url).port) || url.replace(/^https?:\/\//, "");
}

function time(ms) {
  if (ms >= 1000) return `${(ms / 1000).toFixed(2)}\u00a0s`;
  return `${ms.toFixed(ms < 10 ? 2 : ms < 100 ? 1 : 0)}\u00a0ms`;
}

function bytes(n) {
  if (n < 1024) return `${n}\u00a0B`;
  const [size, unit] = n < 1 << 20 ? [n / 1024, "KiB"] : [n / (1 << 20), "MiB"];
  return `${Number(size.toFixed(1))}\u00a0${unit}`;
}

const count = n => n.toLocaleString("en").replaceAll(",", "\u202f");
/** So many names as one reads, and how many more there are. */
const first = names => names.length <= 6 ? names : [...names.slice(0, 5), `${names.length - 5} more`];
const percent = part => `${(100 * part).toFixed(1)}\u00a0%`;
function clip(text, length) {
  const letters = [...text];
  return letters.length > length ? `${letters.slice(0, length - 1).join("")}…` : text;
}

// ---- Elements ----

function build(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const html = (tag, attributes = {}, ...children) =>
  build(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) =>
  build(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

/** The colour of a node, as a class. Its pattern goes with it: 30 nodes look different. */
const look = i => `node-${i % 6}`;
const patternOf = i => `url(#pattern-${i % 5})`;

function patterns() {
  const pattern = (i, size, turn, ...marks) => svg("pattern", {
    id: `pattern-${i}`, width: size, height: size, patternUnits: "userSpaceOnUse",
    patternTransform: `rotate(${turn})`,
  }, ...marks);
  const line = (x1, y1, x2, y2) => svg("line", { x1, y1, x2, y2 });
  return svg("defs", {},
    pattern(0, 8, 0), // plain
    pattern(1, 6, 45, line(0, 0, 0, 6)),
    pattern(2, 6, 30, svg("circle", { cx: 3, cy: 3, r: 1.5 })),
    pattern(3, 6, 45, line(0, 0, 0, 6), line(0, 0, 6, 0)),
    pattern(4, 5, -45, line(0, 0, 0, 5)));
}

function swatch(url) {
  const i = ring.nodes.findIndex(node => node.url === url);
  const area = { width: 26, height: 16 };
  const attributes = { viewBox: "0 0 26 16", "aria-hidden": "true", "data-node": url };
  return svg("svg", { class: `swatch ${look(i)}`, ...attributes },
    svg("rect", { ...area, class: "band" }),
    svg("rect", { ...area, class: "pattern", fill: patternOf(i) }));
}

// ---- The ring ----

const [INNER, OUTER, TRACK] = [132, 164, 182]; // the band, and where the arrow runs around it
const TICK = 9; // the length of a point's mark

/** The point of the drawing at a place of the circle, clockwise from the top. */
function at(radius, place) {
  const angle = (place / CIRCLE) * 2 * Math.PI;
  const [x, y] = [radius * Math.sin(angle), -radius * Math.cos(angle)];
  return { x: x.toFixed(2), y: y.toFixed(2), toString: () => `${x.toFixed(2)} ${y.toFixed(2)}` };
}

/** All points in rising order: `{ place, node }`. */
function pointsOf(nodes) {
  const points = nodes.flatMap((node, i) => node.points.map(place => ({ place, node: i })));
  return points.sort((a, b) => a.place - b.place);
}

/** The arc that ends at point `i`, as a piece of the band. */
function arc(points, i) {
  const to = points[i].place;
  const from = i > 0 ? points[i - 1].place : points.at(-1).place - CIRCLE;
  const large = to - from > CIRCLE / 2 ? 1 : 0;
  return `M${at(OUTER, from)} A${OUTER} ${OUTER} 0 ${large} 1 ${at(OUTER, to)} ` +
    `L${at(INNER, to)} A${INNER} ${INNER} 0 ${large} 0 ${at(INNER, from)}Z`;
}

function drawRing() {
  recent = [];
  const points = pointsOf(ring.nodes);
  const groups = ring.nodes.map((node, i) => {
    const arcs = points.map((point, p) => (point.node === i ? arc(points, p) : "")).join("");
    const marks = node.points.map(place => {
      const [from, to] = [at(OUTER, place), at(OUTER + TICK, place)];
      return svg("line", { class: "point", x1: from.x, y1: from.y, x2: to.x, y2: to.y });
    });
    return svg("g", { class: `arcs ${look(i)}`, "data-node": node.url },
      svg("title", {}, `${nameOf(node.url)}: ${percent(node.share)}`),
      svg("path", { class: "band", d: arcs }),
      svg("path", { class: "pattern", d: arcs, fill: patternOf(i) }),
      ...marks);
  });
  $("ring").replaceChildren(patterns(), ...groups,
    svg("g", { id: "recent" }), svg("g", { id: "asked" }));
  $("ring").classList.toggle("dense", points.length > 600);
  $("ring").setAttribute("aria-label", `The ring: ${ring.nodes.length} nodes, ${points.length} points`);
  $("legend").replaceChildren(...ring.nodes.map(node =>
    html("li", { "data-node": node.url }, swatch(node.url),
      html("span", { class: "name" }, node.url.replace(/^https?:\/\//, "")),
      html("span", { class: "share" }, percent(node.share)),
      html("span", { class: "state" }, "…"))));
  $("uneven").textContent = uneven(ring.nodes);
  drawKey(null);
}

/** What the log of a node says of such a ring, too. */
function uneven(nodes) {
  const [largest] = [...nodes].sort((a, b) => b.share - a.share);
  const times = largest ? largest.share * nodes.length : 0;
  return times <= 1.5 ? "" : `${nameOf(largest.url)} owns ${times.toFixed(1)} times as many keys as ` +
    "a node on average. RingHash::Crc32Mixed, on all nodes, evens that.";
}

/** The place of a key, and the way from there to the point of its owner. */
function drawKey(get) {
  const text = (y, kind, content) => svg("text", { y, class: kind }, content);
  $("ring").classList.toggle("asked", get !== null);
  for (const group of $("ring").querySelectorAll(".arcs")) {
    group.classList.toggle("owner", group.dataset.node === get?.owner);
  }
  const points = pointsOf(ring.nodes);
  if (points.length === 0) {
    $("asked").replaceChildren();
    return;
  }
  if (!get) {
    $("asked").replaceChildren(text(-4, "big", `${ring.nodes.length} nodes`),
      text(22, "small", `${points.length} points`));
    return;
  }
  const next = points.find(point => point.place >= get.place) ?? points[0];
  const isLong = (next.place - get.place + CIRCLE) % CIRCLE > CIRCLE / 2 ? 1 : 0;
  const half = CIRCLE / 190; // of the arrow's head
  const key = at(INNER - 16, get.place);
  const i = ring.nodes.findIndex(node => node.url === get.owner);
  $("asked").replaceChildren(
    svg("path", { class: "place", d: `M${key} L${at(TRACK, get.place)} ` +
      `A${TRACK} ${TRACK} 0 ${isLong} 1 ${at(TRACK, next.place)}` }),
    svg("path", { class: "arrow", d: `M${at(OUTER + 5, next.place)} ` +
      `L${at(TRACK + 5, next.place - half)} L${at(TRACK + 5, next.place + half)}Z` }),
    svg("circle", { class: "place-dot", r: 6, cx: key.x, cy: key.y }),
    text(-34, "big", clip(get.key, 15)),
    text(-10, "small", "belongs to"),
    text(18, "name", nameOf(get.owner)),
    svg("g", { class: look(i), "data-node": get.owner },
      svg("rect", { class: "band", x: -30, y: 30, width: 60, height: 12 }),
      svg("rect", { class: "pattern", x: -30, y: 30, width: 60, height: 12, fill: patternOf(i) })),
    text(68, "small", `hash ${get.place.toString(16).padStart(8, "0")}`));
  greyTheSilent();
}

function addRecent(gets) {
  recent = [...recent, ...gets].slice(-RECENT);
  $("recent").replaceChildren(...recent.map(get => {
    const i = ring.nodes.findIndex(node => node.url === get.owner);
    const { x, y } = at(INNER - 7, get.place);
    return svg("circle", { class: `asked-key ${look(i)}`, "data-node": get.owner, cx: x, cy: y, r: 3 });
  }));
  greyTheSilent();
}

const isDown = url => states.get(url)?.up === false;

function greyTheSilent() {
  for (const element of document.querySelectorAll("[data-node]")) {
    element.classList.toggle("down", isDown(element.dataset.node));
  }
}

function drawStates() {
  for (const item of $("legend").children) {
    const node = ring.nodes.find(node => node.url === item.dataset.node);
    const state = states.get(node.url);
    if (!state) continue; // nobody has asked it yet
    let text = `${node.points.length} points, `;
    if (!state.up) text += `does not answer: ${state.why}`;
    else if (state.why) text += state.why;
    else if (state.cooling_down) text += "answers again, and is asked again once its cool-down ends";
    else text += node.url === ring.self ? "answers; this page's front" : "answers";
    item.querySelector(".state").textContent = text;
  }
  greyTheSilent();
}

// ---- The flow ----

/** What the library said of a get, as the branches of the flow. */
function branches(get) {
  const { hit, asked, loaded_ms: loaded, waited_ms: waited, renews, stale } = get.trace;
  const handed = get.trace.handed_over;
  // A get that fell back can still find the key in a cache, where another has put it meanwhile.
  const missed = hit === null || asked !== null;
  const remote = missed && (asked !== null || (loaded === null && get.owner !== get.node));
  const fellBack = asked !== null && asked.error !== null;
  const local = missed && (!remote || fellBack);
  return { hit, asked, handed, loaded, waited, missed, remote, fellBack, local, renews, stale };
}

/** The lines of the flow along which a get went. */
function edgesOf(get) {
  const { hit, missed, remote, fellBack } = branches(get);
  if (!missed) return hit === "main" ? ["get", "main-hit"] : ["get", "main-miss", "hot-hit"];
  const rest = !remote ? ["here", "loaded"] : fellBack ? ["ask", "fallback", "loaded"] : ["ask", "answered"];
  return ["get", "main-miss", "hot-miss", ...rest];
}

function outcome(get) {
  const { value, error, bytes: length } = get.answer;
  if (error !== undefined) return "an error";
  return value === null ? "no such key" : `value, ${length === 1 ? "1 byte" : `${count(length)} bytes`}`;
}

/** Breaks text into lines of up to `width` letters, two at the most. */
function lines(text, width) {
  const found = [""];
  for (const word of text.split(" ")) {
    const longer = `${found.at(-1)} ${word}`.trim();
    if (longer.length <= width) found[found.length - 1] = longer;
    else found.push(clip(word, width));
  }
  return found.length > 2 ? [found[0], clip(`${found[1]}……`, width)] : found;
}

/** Its notes at the boxes of the flow, where one get was made. */
function notesOf(get) {
  const b = branches(get);
  const waited = b.waited === null ? null : `waited ${time(b.waited)} for another`;
  const took = b.asked?.took_ms == null ? "not asked" : time(b.asked.took_ms);
  const owner = nameOf(get.owner);
  return {
    owner: b.missed ? (get.owner === get.node ? `${owner}, this node` : owner) : "",
    ask: b.asked ? `${nameOf(b.asked.peer)}, ${took}` : b.remote ? waited ?? "answered meanwhile" : "",
    load: b.handed ? `handed over: ${nameOf(b.handed.peer)}` : b.local ? (b.loaded === null ? waited ?? "cached meanwhile" : time(b.loaded)) : "",
    why: b.fellBack ? lines(b.asked.error, 23) : null,
  };
}

/** Draws the way of one get, or how many of several took which; of none, all that there are. */
function drawFlow(gets) {
  const [first] = gets;
  const one = gets.length === 1;
  const notes = one ? notesOf(first) : {};
  const taken = new Map();
  for (const edge of gets.flatMap(edgesOf)) taken.set(edge, (taken.get(edge) ?? 0) + 1);
  const times = (...edges) => edges.reduce((sum, edge) => sum + (taken.get(edge) ?? 0), 0);

  let step = 0; // in the order of the way, for who likes to see it appear
  const mark = (n, kind, element) => {
    element.setAttribute("class", n > 0 ? `${kind} taken` : kind);
    if (n > 0) element.style.setProperty("--step", step++);
    return element;
  };
  const box = (id, n, [x, y, w, h], title, note = "", kind = "") =>
    mark(n, `stage ${kind}`, svg("g", { "data-stage": id },
      svg("rect", { class: "box", x, y, width: w, height: h, rx: 7 }),
      svg("text", { x: x + w / 2, y: y + h / 2 + (note ? -3 : 5) }, title),
      ...(note ? [svg("text", { class: "note", x: x + w / 2, y: y + h / 2 + 16 }, note)] : [])));
  const edge = (id, d, [x, y]) => {
    const n = times(id);
    const line = mark(n, "edge", svg("path", { d, "data-edge": id, "data-times": n }));
    // Of many gets, the more took a line, the broader it is.
    if (n > 0 && !one) line.style.strokeWidth = `${2 + (8 * n) / gets.length}`;
    return [line, mark(n, "head", svg("path", { d: `M${x} ${y} l-6 -9 h12Z` }))];
  };
  const label = (n, x, y, text) => mark(n, "note label",
    svg("text", { x, y }, gets.length > 1 ? `${text}: ${n}` : text));

  // Lines that were not taken lie below those that were.
  const edges = [
    edge("get", "M115 42 V64", [115, 70]),
    edge("main-hit", "M210 92 H419 V448", [419, 456]),
    edge("main-miss", "M115 114 V136", [115, 142]),
    edge("hot-hit", "M210 164 H419 V448", [419, 456]),
    edge("hot-miss", "M115 186 V208", [115, 214]),
    edge("here", "M210 236 H386 V372", [386, 380]),
    edge("ask", "M115 258 V288", [115, 294]),
    edge("fallback", "M210 316 H386 V372", [386, 380]),
    edge("answered", "M115 344 V448", [115, 456]),
    edge("loaded", "M311 430 V448", [311, 456]),
  ].sort(([a], [b]) => a.dataset.times - b.dataset.times);

  step = 0;
  $("flow").replaceChildren(...edges.flat(),
    box("get", times("get"), [20, 4, 190, 38],
      one ? `get ${clip(first.key, 18)}` : gets.length > 1 ? `${gets.length} gets` : "get"),
    box("main", times("get"), [20, 70, 190, 44], "main cache?"),
    box("hot", times("main-miss"), [20, 142, 190, 44], "hot cache?"),
    box("owner", times("hot-miss"), [20, 214, 190, 44], "who owns the key?", notes.owner),
    box("ask", times("ask"), [20, 294, 190, 50], "ask the owner", notes.ask,
      one && times("fallback") > 0 ? "failed" : ""),
    box("load", times("loaded"), [219, 380, 184, 50], "load from the origin", notes.load),
    box("answer", times("get"), [20, 456, 410, 34],
      one ? outcome(first) : "value, or no such key", "", gets.length > 0 ? "final" : ""),
    label(times("main-hit"), 222, 85, "hit"),
    label(times("hot-hit"), 222, 157, "hit"),
    label(times("main-miss"), 123, 132, "miss"),
    label(times("hot-miss"), 123, 204, "miss"),
    label(times("here"), 222, 229, "this node"),
    label(times("ask"), 123, 280, "another node"),
    label(times("answered"), 123, 368, "answered"),
    label(times("fallback"), 220, 334, notes.why ? "falls back:" : "no answer: fall back"),
    ...(notes.why ?? []).map((line, i) =>
      svg("text", { class: "note label why", x: 220, y: 350 + 16 * i }, line)));
  $("flow").setAttribute("aria-label", one ? steps(first).join(" ") : "The way of a get");
  $("flow-title").textContent =
    one ? `The way of the get, asked of ${nameOf(first.node)}` : "The way of a get";
}

// ---- The answer ----

/** The way of a get in words. */
function steps(get) {
  const b = branches(get);
  const owner = nameOf(get.owner);
  if (!b.missed) {
    const [main, hot] = ["The main cache", "The hot cache"];
    const found = b.hit === "main" ? [`${main} has it.`] : [`${main} does not have it.`, `${hot} has a copy.`];
    return b.renews ? [...found, "It is about to expire, and due to be renewed in the background."] : found;
  }
  const told = ["Neither the main cache nor the hot cache has it."];
  const waited = b.waited === null ? "" : `Another caller was at it already: waited ${time(b.waited)}.`;
  if (!b.remote) {
    told.push(`${owner}, the node that was asked, owns the key itself.`);
  } else if (b.asked) {
    const { peer, took_ms: took, error } = b.asked;
    const fallback = `So ${nameOf(get.node)} falls back.`;
    if (took === null) {
      told.push(`${nameOf(peer)} owns the key, but is not asked: ${error}. ${fallback}`);
    } else {
      told.push(`${nameOf(peer)} owns the key and is asked.`);
      told.push(error === null ? `It answers after ${time(took)}.` :
        `It does not answer, after ${time(took)}: ${error}. ${fallback}`);
    }
  } else {
    told.push(`${owner} owns the key.`, waited || "Another caller has brought the answer meanwhile.");
  }
  if (b.handed) {
    told.push(`${nameOf(b.handed.peer)}, which owned the key before, hands it over: ${time(b.handed.took_ms)}.`);
  } else if (b.local) {
    told.push(b.loaded !== null ? `${nameOf(get.node)} loads from the origin: ${time(b.loaded)}.` :
      waited || (b.stale ? "The origin is left alone for a moment." : "Another caller has loaded it meanwhile."));
  }
  if (b.stale) told.push(`The value is past its time. It is stale: the origin failed: ${b.stale}.`);
  return told;
}

/** What came of a get, as text. */
function valueOf({ value, error, bytes: length }) {
  if (error !== undefined) return error;
  if (value === null) return "no such key";
  const text = typeof value === "string" ? value : `base64 ${value.base64}`;
  return length > 4096 ? `${text}… (the first 4096 of ${count(length)} bytes)` : text;
}

function answer(...children) {
  $("answer").replaceChildren(...children);
}

const problem = text => html("p", { class: "problem" }, text);

function showGet(get) {
  drawKey(get);
  drawFlow([get]);
  const text = valueOf(get.answer);
  answer(
    get.answer.error !== undefined ? problem(text) :
      html("p", { class: text.length > 60 ? "value long" : "value" }, text),
    html("p", { class: "caption" }, `${clip(get.key, 80)}: ${outcome(get)}`),
    html("ol", { class: "steps" }, ...steps(get).map(step => html("li", {}, html("span", {}, step)))));
}

// ---- The counters ----

const ROWS = [
  ["gets", c => c.gets],
  ["from peers", c => c.peer_requests],
  ["main hits", c => c.main_hits],
  ["hot hits", c => c.hot_hits],
  ["from the owner", c => c.peer_loads],
  ["handed over", c => c.handed_over + c.pulled],
  ["fallbacks", c => c.fallbacks],
  ["origin loads", c => c.local_loads],
  ["origin errors", c => c.local_load_errors],
  ["shared loads", c => c.shared],
  ["entries", c => c.entries],
  ["bytes", c => c.bytes, bytes],
  ["of a budget of", c => c.max_bytes, bytes],
];

function buildCounters() {
  const columns = [...ring.nodes.map(node => node.url), "all"];
  $("counters").replaceChildren(
    html("thead", {}, html("tr", {}, html("td"), ...columns.map(url => url === "all" ?
      html("th", { scope: "col" }, "all") :
      html("th", { scope: "col", "data-node": url }, swatch(url), nameOf(url))))),
    html("tbody", {}, ...ROWS.map(([title]) => html("tr", {},
      html("th", { scope: "row" }, title), ...columns.map(() => html("td", {}, "–"))))));
}

function drawCounters() {
  const counters = ring.nodes.map(node => states.get(node.url)?.counters ?? null);
  ROWS.forEach(([, read, format = count], row) => {
    const cells = $("counters").tBodies[0].rows[row].cells;
    const numbers = counters.map(counted => counted && read(counted));
    numbers.forEach((n, i) => { cells[i + 1].textContent = n === null ? "–" : format(n); });
    cells[numbers.length + 1].textContent = format(numbers.reduce((sum, n) => sum + (n ?? 0), 0));
  });
}

// ---- The charts ----

/** The least of 1, 2, 5, 10, 20, … that is not less than `n`. */
function roundUp(n) {
  const power = 10 ** Math.floor(Math.log10(Math.max(n, 1)));
  return power * [1, 2, 5, 10].find(step => step * power >= n);
}

const CHARTS = [
  ["hit ratio", sample => sample.ratio, () => 1, n => `${Math.round(100 * n)}\u00a0%`],
  ["gets per second", sample => sample.rate, roundUp,
    n => (Number.isInteger(n) || n >= 10 ? count(Math.round(n)) : n.toFixed(1))],
];

function buildCharts() {
  $("charts").replaceChildren(...CHARTS.map(([title]) => html("figure", {},
    html("figcaption", {}, html("span", {}, title), html("b", {}, "–")),
    html("div", { class: "plot" },
      svg("svg", { viewBox: "0 0 100 100", preserveAspectRatio: "none", role: "img" },
        svg("path", { class: "line" }), svg("path", { class: "dots" })),
      html("span", { class: "scale top" }), html("span", { class: "scale bottom" }, "0")),
    html("div", { class: "axis", "aria-hidden": "true" },
      html("span", {}, "60 s ago"), html("span", {}, "now")))));
}

/** What has grown since the status before. */
function note(before, status) {
  let [gets, hits, rate, news] = [0, 0, 0, false];
  for (const node of status.nodes) {
    const old = before.get(node.url);
    if (!node.counters || !old?.counters || node.at_ms <= old.at_ms) continue;
    const grown = read => read(node.counters) - read(old.counters);
    const more = grown(c => c.gets);
    if (more < 0) continue; // it began anew
    news = true;
    gets += more;
    hits += grown(c => c.main_hits + c.hot_hits);
    rate += more / ((node.at_ms - old.at_ms) / 1000);
  }
  if (news) samples.push({ time: performance.now(), ratio: gets > 0 ? hits / gets : null, rate });
}

function drawCharts() {
  const now = performance.now();
  samples = samples.filter(sample => sample.time > now - MINUTE);
  CHARTS.forEach(([title, read, top, format], i) => {
    const figure = $("charts").children[i];
    const scale = top(Math.max(0, ...samples.map(read)));
    // A second without gets has no ratio and leaves a gap; what stands alone is a dot.
    const runs = [[]];
    for (const sample of samples) {
      const x = 100 - ((now - sample.time) / MINUTE) * 100;
      const y = 95 - (90 * read(sample)) / scale;
      if (read(sample) === null) runs.push([]);
      else runs.at(-1).push(`${x.toFixed(2)} ${y.toFixed(2)}`);
    }
    const line = runs.filter(run => run.length > 1).map(run => `M${run.join("L")}`).join("");
    const dots = runs.filter(run => run.length === 1).map(([place]) => `M${place}h0.01`).join("");
    const last = samples.length > 0 ? read(samples.at(-1)) : undefined;
    const text = last === undefined ? "–" : last === null ? "no gets" : format(last);
    figure.querySelector(".line").setAttribute("d", line);
    figure.querySelector(".dots").setAttribute("d", dots);
    figure.querySelector("b").textContent = text;
    figure.querySelector(".top").textContent = format(scale);
    figure.querySelector("svg").setAttribute("aria-label", `${title} over the last minute, now: ${text}`);
  });
}

// ---- Questions to the front ----

/** Asks the front. What it refuses, it says why in words of its own. */
async function ask(path, options = {}) {
  const signal = AbortSignal.timeout(60_000);
  let response;
  try {
    response = await fetch(path, { cache: "no-store", signal, ...options });
  } catch {
    throw new Error("The front of this page does not answer.");
  }
  if (response.ok) return response;
  throw new Error((await response.text()).trim() || `The front answered ${response.status}.`);
}

const json = async (path, options) => (await ask(path, options)).json();
const query = values => new URLSearchParams(values).toString();
const trace = (key, node) => json(`/api/trace?${query(node ? { key, node } : { key })}`);

async function learnTheRing() {
  const before = JSON.stringify(ring);
  ring = await json("/api/ring", { signal: AbortSignal.timeout(5000) });
  if (JSON.stringify(ring) === before) return; // what is drawn on it stays
  document.title = `geecache ${nameOf(ring.self)}`;
  $("me").textContent = `group ${ring.group}, seen from the node ${ring.self.replace(/^https?:\/\//, "")}`;
  drawRing();
  buildCounters();
}

function showLost() {
  if (document.body.classList.contains("lost")) return;
  document.body.classList.remove("partly");
  document.body.classList.add("lost");
  const others = ring.nodes.filter(node => node.front && node.url !== ring.self);
  const links = others.flatMap((node, i) => [i > 0 ? ", " : " The other nodes have this page too: ",
    html("a", { href: node.front }, node.front)]);
  $("connection").replaceChildren(
    `${location.host} does not answer; what you see is how it was. Trying again each second.`, ...links);
}

async function refresh() {
  if (document.body.classList.contains("lost") || ring.nodes.length === 0) await learnTheRing();
  const status = await json("/api/status", { signal: AbortSignal.timeout(5000) });
  const before = states;
  states = new Map(status.nodes.map(node => [node.url, node]));
  note(before, status);
  document.body.classList.remove("lost");
  document.body.classList.toggle("partly", status.nodes.some(node => !node.up));
  const silent = first(status.nodes.filter(node => !node.up).map(node => nameOf(node.url)));
  const text = silent.length === 0 ? "all nodes answer" :
    `${silent.join(", ")} ${silent.length === 1 ? "does" : "do"} not answer`;
  // A live region: told again only where it is news.
  if ($("connection").textContent !== text) $("connection").textContent = text;
  drawStates();
  drawCounters();
}

async function refreshForEver() {
  const start = performance.now();
  try {
    await refresh();
  } catch {
    showLost();
  }
  drawCharts();
  setTimeout(refreshForEver, Math.max(200, 1000 - (performance.now() - start)));
}

// ---- What the buttons do ----

/** Does `work` with the key in the box; what goes wrong is said in place of the answer. */
async function withKey(work) {
  if (!$("ask").reportValidity()) return;
  const key = $("key").value;
  history.replaceState(null, "", `/?${query({ key })}`);
  await run(isLatest => work(key, isLatest));
}

async function run(work) {
  const number = ++latest;
  const isLatest = () => number === latest;
  $("answer").setAttribute("aria-busy", "true");
  try {
    await work(isLatest);
  } catch (error) {
    if (isLatest()) {
      drawKey(null);
      drawFlow([]);
      answer(problem(error.message));
    }
  }
  if (isLatest()) $("answer").removeAttribute("aria-busy");
}

async function getOne(key, isLatest) {
  const get = await trace(key);
  if (!isLatest()) return;
  addRecent([get]);
  showGet(get);
}

/** The way of a get in a few words. */
function inShort(get) {
  const b = branches(get);
  if (b.stale) return "stale: the origin failed";
  if (!b.missed) return b.renews ? `${b.hit} hit, due for renewal` : `${b.hit} hit`;
  if (b.handed) return `handed over by ${nameOf(b.handed.peer)}, ${time(b.handed.took_ms)}`;
  const waited = b.waited === null ? "found meanwhile" : `waited ${time(b.waited)} for another caller`;
  const load = b.loaded === null ? waited : `loaded from the origin in ${time(b.loaded)}`;
  if (b.fellBack) return `${nameOf(b.asked.peer)} did not answer, ${load}`;
  if (b.asked) return `asked ${nameOf(b.asked.peer)}, ${time(b.asked.took_ms)}`;
  return b.remote ? waited : load;
}

/** Each line is filled as its node answers, so that a silent node holds nobody up. */
async function getEverywhere(key, isLatest) {
  const start = performance.now();
  const items = ring.nodes.map(node => html("li", { "data-node": node.url }, swatch(node.url),
    html("span", { class: "name" }, nameOf(node.url)),
    html("span", { class: "got" }, "…"), html("span", { class: "way" })));
  const caption = html("p", { class: "caption" }, `${clip(key, 80)}, asked of all nodes at once:`);
  answer(caption, html("ul", { class: "everywhere" }, ...items));
  greyTheSilent();
  await Promise.all(ring.nodes.map(async (node, i) => {
    const [value, way] = [items[i].querySelector(".got"), items[i].querySelector(".way")];
    try {
      const get = await trace(key, node.url);
      value.textContent = clip(valueOf(get.answer), 60);
      way.textContent = inShort(get);
      if (!isLatest() || node.url !== ring.self) return;
      addRecent([get]);
      drawKey(get);
      drawFlow([get]);
    } catch (error) {
      value.textContent = "–";
      way.textContent = error.message;
    }
  }));
  const took = time(performance.now() - start);
  caption.textContent = `${clip(key, 80)}, asked of all nodes at once, in ${took}:`;
}

async function remove(key, isLatest) {
  await ask(`/api?${query({ key })}`, { method: "DELETE" });
  if (!isLatest()) return;
  drawFlow([]);
  answer(html("p", { class: "value" }, "removed"),
    html("p", { class: "caption" },
      `${clip(key, 80)} has left the caches of all nodes. The next get loads it anew.`));
}

/** In which of these a get ended. */
function kindOf(get) {
  const b = branches(get);
  if (get.answer.error !== undefined) return "errors";
  if (!b.missed) return `${b.hit} hits`;
  if (b.fellBack) return "fallbacks";
  if (b.asked) return "from the owner";
  if (b.handed) return "handed over";
  return b.loaded === null ? "shared loads" : "origin loads";
}

async function getHundred(isLatest) {
  const start = performance.now();
  // Few of them popular, most of them not, as in real life.
  const keys = Array.from({ length: 100 }, () =>
    `user:${String(Math.floor(10_000 * Math.random() ** 4)).padStart(8, "0")}`);
  const gets = [];
  const work = async () => {
    for (let key = keys.pop(); key !== undefined && isLatest(); key = keys.pop()) {
      const get = await trace(key);
      gets.push(get);
      if (isLatest()) addRecent([get]);
    }
  };
  drawKey(null);
  drawFlow([]);
  answer(html("p", { class: "caption" }, "Asking for 100 users, few of them popular…"));
  await Promise.all(Array.from({ length: 6 }, work));
  if (!isLatest()) return;
  drawFlow(gets);
  const kinds =
    ["main hits", "hot hits", "from the owner", "handed over", "origin loads", "fallbacks", "shared loads", "errors"];
  const row = kind => {
    const n = gets.filter(get => kindOf(get) === kind).length;
    const bar = html("span", { class: "bar" });
    bar.style.width = `${n}%`;
    return html("tr", {}, html("th", { scope: "row" }, kind),
      html("td", { class: "number" }, String(n)), html("td", {}, bar));
  };
  const took = time(performance.now() - start);
  answer(html("p", { class: "caption" }, `100 users, few of them popular, in ${took}:`),
    html("table", { class: "tally" }, html("tbody", {}, ...kinds.map(row))));
}

$("ask").addEventListener("submit", event => {
  event.preventDefault();
  withKey(getOne);
});
$("everywhere").addEventListener("click", () => withKey(getEverywhere));
$("remove").addEventListener("click", () => withKey(remove));
$("hundred").addEventListener("click", () => run(getHundred));

async function begin() {
  drawRing();
  drawFlow([]);
  buildCharts();
  // The ring first: what a get shows is drawn on it. The states of the nodes can wait.
  await learnTheRing().catch(showLost);
  refreshForEver();
  const key = new URLSearchParams(location.search).get("key");
  if (key) {
    $("key").value = key;
    withKey(getOne);
  }
}

begin();
