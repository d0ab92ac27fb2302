// The live page. Frames come by websocket (daskfleet/scheduler/http/live.py says what is in one); everything in them is
// put into the page as text, since names and keys are whatever users choose.
"use strict";

const WINDOW = 120; // seconds that the charts reach back
const STREAM = 30; // and the task stream
const SHOWN = 250; // rows of the table of workers
const LANES = 60; // workers in the task stream
const STATES = ["memory", "erred", "processing", "queued", "waiting", "no-worker", "released"];
const STATE_NAMES = {
  memory: "in memory", erred: "failed", processing: "processing", queued: "queued", waiting: "waiting",
  "no-worker": "no worker fits", released: "released",
};

// Text ------------------------------------------------------------------------------------------------------------------

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function bytes(n) {
  if (!(n >= 1)) return "0 B";
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  const i = Math.min(Math.floor(Math.log2(n) / 10), units.length - 1);
  const value = n / 1024 ** i;
  return `${value.toFixed(i && value < 100 ? 1 : 0)} ${units[i]}`;
}

function seconds(s) {
  if (s < 0.001) return `${(s * 1e6).toFixed(0)} µs`;
  if (s < 1) return `${(s * 1e3).toFixed(s < 0.01 ? 1 : 0)} ms`;
  if (s < 60) return `${s.toFixed(s < 10 ? 1 : 0)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${Math.floor(s % 60)} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

const count = (n) => Math.round(n).toLocaleString("en");
const rate = (n) => (n > 0 && n < 10 ? n.toFixed(1) : count(n));
const sum = (list, of) => list.reduce((total, item) => total + of(item), 0);

// One colour a prefix, in the order in which they are met: the golden angle keeps neighbours apart.
const hues = new Map();

function colourOf(prefix) {
  if (!hues.has(prefix)) hues.set(prefix, (210 + hues.size * 137.508) % 360);
  return `hsl(${hues.get(prefix)} 55% ${matchMedia("(prefers-color-scheme: dark)").matches ? 60 : 48}%)`;
}

// Parts -----------------------------------------------------------------------------------------------------------------

function bar(parts, total, label) {
  const node = el("div", { class: "bar", role: "img", "aria-label": label });
  for (const [kind, value] of parts) {
    if (!value) continue;
    const part = el("i", { class: kind });
    part.style.width = `${Math.min((100 * value) / total, 100)}%`;
    node.append(part);
  }
  return node;
}

function meter(value, limit, text, extra = "") {
  const share = limit ? value / limit : 0;
  const kind = share > 0.8 ? "full" : share > 0.6 ? "high" : "ok";
  return el("div", { class: `meter ${extra}` }, bar([[kind, value]], limit || Infinity, text), el("span", {}, text));
}

// A line over the last WINDOW seconds: `points` are [time, value].
function chart(points, now, format, { limit = 0, least = 1, steps = [1, 2, 2.5, 5, 10] } = {}) {
  const NS = "http://www.w3.org/2000/svg";
  const make = (tag, attributes, text) => {
    const node = document.createElementNS(NS, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const width = 600, height = 144, left = 62, bottom = 18;
  const top = nice(Math.max(limit, ...points.map((point) => point[1]), least), steps);
  const x = (time) => left + (width - left) * (1 - (now - time) / WINDOW);
  const y = (value) => (height - bottom) * (1 - value / top) + 4;
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img" });
  const last = points.length ? points[points.length - 1][1] : 0;
  svg.setAttribute("aria-label", `now ${format(last)}`);
  for (const share of [0, 0.5, 1]) {
    svg.append(make("line", { class: "grid", x1: left, x2: width, y1: y(top * share), y2: y(top * share) }));
    svg.append(make("text", { x: left - 8, y: y(top * share) + 4, "text-anchor": "end" }, format(top * share)));
  }
  for (const ago of [120, 90, 60, 30]) {
    svg.append(make("text", { x: x(now - ago), y: height - 1, "text-anchor": ago === 120 ? "start" : "middle" }, `−${ago} s`));
  }
  svg.append(make("text", { x: width, y: height - 1, "text-anchor": "end" }, "now"));
  if (limit) svg.append(make("line", { class: "limit", x1: left, x2: width, y1: y(limit), y2: y(limit) }));
  const seen = points.filter((point) => now - point[0] <= WINDOW);
  if (seen.length > 1) {
    const line = seen.map((point) => `${x(point[0]).toFixed(1)},${y(point[1]).toFixed(1)}`).join(" ");
    svg.append(make("polygon", { class: "area", points: `${x(seen[0][0])},${y(0)} ${line} ${x(seen[seen.length - 1][0])},${y(0)}` }));
    svg.append(make("polyline", { class: "lines", points: line }));
  }
  return svg;
}

// The round number above `value`: one of `steps`, which end in the base of the numbers, times a power of that base.
function nice(value, steps) {
  const radix = steps[steps.length - 1];
  const base = radix ** Math.floor(Math.log(value) / Math.log(radix));
  return steps.map((step) => step * base).find((step) => step >= value * 0.999) || radix * base;
}

// What was seen ---------------------------------------------------------------------------------------------------------

const past = { id: null, done: [], speed: [], memory: [], bars: [], end: 0 };

// Tasks a second over the last second and a half; the scheduler's own record gives what was before we came.
function remember(frame) {
  if (past.id !== frame.id) Object.assign(past, { id: frame.id, done: [], speed: [], memory: [], bars: [], end: 0 });
  const news = past.done.length ? [[frame.time, frame.computed]] : [...frame.recent, [frame.time, frame.computed]];
  for (const point of news) {
    const before = past.done.findLast((earlier) => point[0] - earlier[0] >= 1.4) || past.done[0];
    if (before && point[0] > before[0]) past.speed.push([point[0], (point[1] - before[1]) / (point[0] - before[0])]);
    past.done.push(point);
  }
  past.memory.push([frame.time, sum(frame.workers, (worker) => worker.memory)]);
  for (const [worker, prefix, start, end] of frame.stream.bars) past.bars.push({ worker, prefix, start, end });
  const used = new Map();
  const threads = new Map(frame.workers.map((worker) => [worker.name, worker.nthreads]));
  const from = past.end || frame.time - 0.5;
  for (const [worker, prefix, runs, spent] of frame.stream.sums) {
    const start = used.get(worker) ?? from;
    const end = Math.min(start + spent / (threads.get(worker) || 1), frame.time);
    used.set(worker, end);
    past.bars.push({ worker, prefix, start, end, runs });
  }
  past.end = frame.time;
  for (const name of ["done", "speed", "memory"]) past[name] = past[name].filter((point) => frame.time - point[0] <= WINDOW + 2);
  past.bars = past.bars.filter((one) => frame.time - one.end <= STREAM).slice(-20000);
}

// Panels: each fills `body` and may set a note beside its heading ------------------------------------------------------

const panels = {
  states(body, frame, note) {
    const total = sum(STATES, (state) => frame.tasks[state] || 0);
    note(`${count(total)} known`);
    const parts = STATES.map((state) => [state, frame.tasks[state] || 0]);
    const legend = el("ul", { class: "legend" });
    for (const [state, n] of parts) {
      legend.append(el("li", {}, el("i", { class: state }), STATE_NAMES[state], el("b", {}, count(n))));
    }
    body.replaceChildren(bar(parts, total, parts.map(([state, n]) => `${n} ${STATE_NAMES[state]}`).join(", ")), legend);
  },

  progress(body, frame, note) {
    const rows = el("div", { class: "rows" });
    for (const [name, states, runs, erred, duration] of frame.prefixes) {
      const known = sum(STATES, (state) => states[state] || 0);
      const done = (states.memory || 0) + (states.released || 0);
      const text = known ? `${count(done)} of ${count(known)}` : "nothing open";
      const figure = el("span", { class: "figure" }, text);
      if (erred || states.erred) figure.append(el("span", { class: "bad" }, ` · ${count(Math.max(erred, states.erred || 0))} failed`));
      figure.append(` · ${count(runs)} runs${duration === null ? "" : ` of ${seconds(duration)}`}`);
      rows.append(
        el("span", { class: "name", title: name }, name),
        bar(STATES.map((state) => [state, states[state] || 0]), known, `${name}: ${text}`),
        figure,
      );
    }
    const age = frame.time - frame.counted;
    note(frame.prefixes.length ? `tasks known, by the prefix of their key${age > 3 ? `; counted ${seconds(age)} ago` : ""}` : "");
    keepScroll(body, rows, frame.prefixes.length ? rows : el("p", { class: "muted" }, "No tasks yet."));
  },

  throughput(body, frame, note) {
    const speed = past.speed.length ? past.speed[past.speed.length - 1][1] : 0;
    note(`${rate(speed)} tasks/s`);
    body.replaceChildren(chart(past.speed, frame.time, (value) => `${rate(value)}/s`, { least: 10 }));
  },

  memory(body, frame, note) {
    const used = sum(frame.workers, (worker) => worker.memory);
    const limit = sum(frame.workers, (worker) => worker.memory_limit);
    const held = sum(frame.workers, (worker) => worker.nbytes);
    note(`${bytes(used)}${limit ? ` of ${bytes(limit)}` : ""} in use, ${bytes(held)} of it task results`);
    const shown = used > limit / 4 ? limit : 0;
    body.replaceChildren(chart(past.memory, frame.time, bytes, { limit: shown, least: 2 ** 20, steps: [1, 2, 4, 8, 16] }));
  },

  stream(body, frame, note) {
    let canvas = body.querySelector("canvas");
    if (!canvas) {
      canvas = el("canvas", { role: "img", "aria-label": "What each worker ran over the last half minute" });
      body.replaceChildren(canvas, el("ul", { class: "legend" }));
    }
    drawStream(canvas, body.querySelector("ul"), frame);
    const more = frame.workers.length > LANES ? `; the first ${LANES} of ${count(frame.workers.length)} workers` : "";
    note(`one row a worker, colour by prefix; tasks under 0.1 s are summed up${more}`);
  },

  workers(body, frame, note) {
    const rows = frame.workers.filter((worker) => `${worker.name} ${worker.address} ${worker.status}`.includes(table.filter));
    rows.sort((a, b) => table.direction * compare(a[table.by], b[table.by]));
    const cut = rows.length > SHOWN ? `, the first ${SHOWN} of ${count(rows.length)} shown` : "";
    note(`${count(frame.workers.length)} connected${cut}`);
    if (!frame.workers.length) {
      body.replaceChildren(el("p", { class: "muted" }, "No workers are connected. One starts with: dask-worker ", frame.address));
      return;
    }
    if (!body.querySelector("table")) body.replaceChildren(workersTable(() => panels.workers(body, last, note)));
    for (const head of body.querySelectorAll("th")) {
      head.setAttribute("aria-sort", head.dataset.by !== table.by ? "none" : table.direction > 0 ? "ascending" : "descending");
    }
    body.querySelector("tbody").replaceChildren(...rows.slice(0, SHOWN).map(workerRow));
  },
};

const table = { by: "name", direction: 1, filter: "" };
const COLUMNS = [
  ["name", "Name"], ["address", "Address"], ["status", "Status"], ["nthreads", "Threads", "number"], ["cpu", "CPU"],
  ["memory", "Memory"], ["nbytes", "Results", "number"], ["processing", "Processing", "number"], ["keys", "Keys held", "number"],
];

function compare(a, b) {
  return typeof a === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true });
}

function workersTable(redraw) {
  const head = el("tr");
  for (const [by, title, kind] of COLUMNS) {
    const button = el("button", { type: "button" }, title);
    button.addEventListener("click", () => {
      Object.assign(table, { by, direction: table.by === by ? -table.direction : 1 });
      redraw();
    });
    const cell = el("th", { scope: "col", class: kind || "", "data-by": by }, button);
    if (by === "name") {
      const input = el("input", { class: "filter", type: "search", placeholder: "filter", "aria-label": "Show workers whose name, address or status has this" });
      input.addEventListener("input", () => {
        table.filter = input.value.trim();
        redraw();
      });
      cell.append(input);
    }
    head.append(cell);
  }
  return el("div", { class: "scroll", tabindex: "0" }, el("table", {}, el("thead", {}, head), el("tbody")));
}

function workerRow(worker) {
  const silent = worker.seen > 5 ? ` silent, ${seconds(worker.seen)}` : "";
  const memory = worker.memory_limit ? `${bytes(worker.memory)} / ${bytes(worker.memory_limit)}` : bytes(worker.memory);
  const number = (value) => el("td", { class: "number" }, value);
  return el(
    "tr", {},
    el("td", {}, el("span", { class: "name", title: worker.name }, worker.name)),
    el("td", {}, worker.address),
    el("td", {}, el("span", { class: `status ${silent ? "silent" : worker.status}` }, worker.status + silent)),
    number(count(worker.nthreads)),
    el("td", {}, meter(worker.cpu, 100 * worker.nthreads, `${count(worker.cpu)} %`, "cpu")),
    el("td", {}, meter(worker.memory, worker.memory_limit, memory)),
    number(bytes(worker.nbytes)), number(count(worker.processing)), number(count(worker.keys)),
  );
}

function drawStream(canvas, legend, frame) {
  const names = frame.workers.slice(0, LANES).map((worker) => worker.name).sort((a, b) => compare(a, b));
  const row = Math.max(10, Math.min(26, 420 / Math.max(names.length, 1))), bottom = 18, left = 130;
  const width = canvas.clientWidth, height = Math.max(names.length, 1) * row + bottom, scale = devicePixelRatio || 1;
  canvas.style.height = `${height}px`;
  canvas.width = width * scale;
  canvas.height = height * scale;
  const draw = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  draw.scale(scale, scale);
  draw.font = `11px ${getComputedStyle(document.body).fontFamily}`;
  const x = (time) => left + (width - left) * (1 - (frame.time - time) / STREAM);
  const index = new Map(names.map((name, i) => [name, i]));
  const threads = new Map(frame.workers.map((worker) => [worker.name, worker.nthreads]));
  draw.textBaseline = "middle";
  names.forEach((name, i) => {
    draw.fillStyle = colour("--track");
    draw.fillRect(left, i * row, width - left, row - 2);
    draw.fillStyle = colour("--muted");
    draw.fillText(name.length > 20 ? `${name.slice(0, 9)}…${name.slice(-9)}` : name, 0, i * row + row / 2 - 1);
  });
  const seen = new Map(), lanes = new Map();
  const visible = past.bars.filter((one) => index.has(one.worker)).sort((a, b) => a.start - b.start);
  for (const one of visible) {
    seen.set(one.prefix, (seen.get(one.prefix) || 0) + one.end - one.start);
    draw.fillStyle = colourOf(one.prefix);
    const y = index.get(one.worker) * row, from = Math.max(x(one.start), left);
    const n = one.runs ? 1 : Math.min(threads.get(one.worker) || 1, 8);
    const busy = lanes.get(one.worker) || [];
    let lane = 0;
    if (n > 1) { // side by side, as the threads ran
      while (lane < n - 1 && (busy[lane] || 0) > one.start + 0.01) lane++;
      busy[lane] = one.end;
      lanes.set(one.worker, busy);
    }
    draw.fillRect(from, y + (lane * (row - 2)) / n, Math.max(x(one.end) - from - (one.runs ? 0 : 0.5), 0.5), (row - 2) / n);
  }
  draw.fillStyle = colour("--muted");
  for (const ago of [30, 20, 10, 0]) {
    draw.textAlign = ago === STREAM ? "left" : ago ? "center" : "right";
    draw.fillText(ago ? `−${ago} s` : "now", x(frame.time - ago), height - 6);
  }
  const busiest = [...seen].sort((a, b) => b[1] - a[1]).slice(0, 12);
  legend.replaceChildren(...busiest.map(([prefix, spent]) => {
    const mark = el("i");
    mark.style.background = colourOf(prefix);
    return el("li", {}, mark, prefix, el("b", {}, seconds(spent)));
  }));
}

function keepScroll(body, rows, content) {
  const top = body.firstElementChild ? body.firstElementChild.scrollTop : 0;
  body.replaceChildren(content);
  rows.scrollTop = top;
}

function tiles(frame) {
  const list = document.getElementById("tiles");
  if (!list) return;
  const speed = past.speed.length ? past.speed[past.speed.length - 1][1] : 0;
  const used = sum(frame.workers, (worker) => worker.memory), limit = sum(frame.workers, (worker) => worker.memory_limit);
  const open = frame.tasks.queued + frame.tasks.waiting + frame.tasks["no-worker"];
  const figures = [
    ["Workers", count(frame.workers.length), `${count(sum(frame.workers, (worker) => worker.nthreads))} threads`],
    ["Processing", count(frame.tasks.processing), `${count(open)} to come`],
    ["Throughput", `${rate(speed)}/s`, `${count(frame.computed)} runs done`],
    ["Failed", count(frame.tasks.erred), frame.tasks.erred ? "see Exceptions" : "tasks"],
    ["Memory", bytes(used), limit ? `of ${bytes(limit)}` : ""],
    ["Clients", count(frame.clients), "connected"],
    ["Scheduler", `${count(frame.cpu)} %`, bytes(frame.memory)],
    ["Up", seconds(frame.time - frame.started), `since ${new Date(frame.started * 1000).toLocaleTimeString()}`],
  ];
  list.replaceChildren(...figures.map(([name, value, more]) =>
    el("div", {}, el("dt", {}, name), el("dd", {}, value, el("small", {}, more)))));
  document.getElementById("address").textContent = frame.address;
}

// Connection ------------------------------------------------------------------------------------------------------------

let last = null, wait = 500, painted = 0;

function paint() {
  painted = 0;
  tiles(last);
  for (const section of document.querySelectorAll("section[data-panel]")) {
    const note = section.querySelector("[data-note]");
    panels[section.dataset.panel](section.querySelector(".body"), last, (text) => { note.textContent = text; });
  }
}

function show(message) {
  const frame = JSON.parse(message);
  frame.workers = frame.workers.map((row) => Object.fromEntries(frame.columns.map((name, i) => [name, row[i]])));
  last = frame;
  remember(frame);
  if (!painted) painted = requestAnimationFrame(paint); // a tab in the background remembers, and draws when it is seen
}

function connection(kind, text) {
  const line = document.getElementById("connection");
  if (line.textContent !== text) line.textContent = text;
  line.className = kind;
  document.body.classList.toggle("stale", kind === "lost" && last !== null);
}

function connect() {
  const page = document.querySelector("meta[name=page]").content;
  const url = new URL(`events?page=${encodeURIComponent(page)}`, location.href);
  url.protocol = url.protocol.replace("http", "ws");
  const socket = new WebSocket(url);
  socket.onmessage = (event) => {
    wait = 500;
    connection("live", "live");
    show(event.data);
  };
  socket.onclose = async () => {
    const since = last ? ` Shown is what was at ${new Date(last.time * 1000).toLocaleTimeString()}.` : "";
    connection("lost", `The scheduler does not answer: reconnecting…${since}`);
    await new Promise((resolve) => setTimeout(resolve, wait));
    wait = Math.min(wait * 1.6, 5000);
    if (await replaced(page)) location.reload();
    else connect();
  };
}

// Whether another scheduler answers here by now: its page is another, and only that one gets frames.
async function replaced(page) {
  try {
    const answer = await fetch(location.href, { cache: "no-store", signal: AbortSignal.timeout(4000) });
    return answer.ok && !(await answer.text()).includes(page);
  } catch {
    return false;
  }
}

connect();
