"use strict";
// A function for each chart. All statistics come from the page's data.

function named(data, trial) {
  const run = data.byTrial.get(trial);
  const marks = [run.trial === data.best && "best", run.baseline && "baseline"].filter(Boolean).join(", ");
  const values = Object.entries(run.params).map(([k, v]) => `${k}=${short(v)}`).join("  ");
  const paused = run.paused_after ? `, paused after ${run.paused_after}` : "";
  return `Trial ${trial}${marks ? ` (${marks})` : ""}${run.state === "COMPLETE" ? "" : ` ${run.state.toLowerCase()}`}${paused}\n${values}`;
}

function shownValue(objective, value, spread) {
  if (value === null || value === undefined) return "-";
  const digits = objective.unit === "%" ? 2 : 4;
  const plain = (v) => (Number.isInteger(v) ? v.toLocaleString("en-US") : String(Number(v.toPrecision(5))));
  const format = (v) => (objective.unit === "%" ? (v * objective.scale).toFixed(digits) : plain(v * objective.scale));
  return format(value) + (spread === undefined ? "" : ` ± ${format(spread)}`) + (objective.unit ? ` ${objective.unit}` : "");
}

function stoppedEarly(run) {
  return run.state === "PRUNED" || run.state === "PAUSED";
}

function lineClass(data, trial) {
  if (trial === data.best) return "best-line";
  if (trial === data.baseline) return "baseline-line";
  return stoppedEarly(data.byTrial.get(trial)) ? "pruned-line" : "other";
}

// Returns the index of the step nearest to `wanted`; steps ascend.
function closest(steps, wanted) {
  let low = 0, high = steps.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (steps[middle] < wanted) low = middle + 1; else high = middle;
  }
  return low > 0 && wanted - steps[low - 1] < steps[low] - wanted ? low - 1 : low;
}

function drawCurves(parent, data, metric) {
  const [low, high] = metric.window;
  const trials = Object.keys(metric.curves).map(Number);
  const steps = {}, values = {};
  for (const trial of trials) {
    const [first, ...rest] = metric.curves[trial];
    values[trial] = rest;
    steps[trial] = Array.isArray(first) ? first : rest.map((_, i) => first + i);
  }
  const from = Math.min(...trials.map((t) => steps[t][0])), to = Math.max(...trials.map((t) => steps[t][steps[t].length - 1]), from + 1);
  const whole = linearTicks(from, to, 8).filter(Number.isInteger);
  const drawn = panel(parent, { kind: "linear", low: from, high: to, ticks: whole, label: metric.steps === "epoch" ? "Epoch" : "Step" }, { kind: "linear", low, high, label: metric.label });
  const points = (trial) => values[trial].map((v, i) => [drawn.x(steps[trial][i]), drawn.y(v)]);
  // One element for all curves of a kind: thousands of elements would make the page slow.
  const together = { other: "", "pruned-line": "" };
  for (const trial of trials) {
    const kind = lineClass(data, trial);
    if (kind in together) together[kind] += path(points(trial));
  }
  for (const [kind, d] of Object.entries(together)) if (d) element("path", { class: kind, d }, drawn.marks);
  for (const trial of [data.baseline, data.best]) {
    if (trial !== null && metric.curves[trial]) element("path", { class: lineClass(data, trial), d: path(points(trial)) }, drawn.marks);
  }
  for (const [epoch, trial] of data.lineage ? data.lineage.copies : []) {
    const at = steps[trial] ? steps[trial].indexOf(epoch + 1) : -1;
    if (at >= 0) element("circle", { class: "copy", cx: drawn.x(epoch + 1), cy: drawn.y(values[trial][at]), r: 2.2 }, drawn.marks);
  }
  hover(drawn, (px, py) => {
    const wanted = drawn.x.invert(px);
    let nearest = null, distance = 30;
    for (const trial of trials) {
      const at = closest(steps[trial], wanted);
      if (Math.abs(drawn.x(steps[trial][at]) - px) > 30) continue;
      const d = Math.abs(drawn.y(values[trial][at]) - py);
      if (d < distance) { distance = d; nearest = [trial, values[trial][at], steps[trial][at]]; }
    }
    if (!nearest) return null;
    const [trial, value, step] = nearest;
    return {
      key: `${trial}:${step}`,
      text: `${named(data, trial)}\n${metric.steps} ${step}: ${value}${metric.unit ? ` ${metric.unit}` : ""}`,
      draw: (over) => {
        element("path", { class: "hot-line", d: path(points(trial)) }, over);
        element("circle", { class: "ring", cx: drawn.x(step), cy: drawn.y(value), r: 4.5 }, over);
      },
    };
  });
  drawn.figure.dataset.chart = "curves";
}

// Draws trials as marks; `where` returns a run's x. Values beyond y's range lie on its edge.
function scatter(drawn, data, objective, index, where) {
  const [low, high] = objective.window;
  const placed = [];
  for (const run of data.runs) {
    const x = where(run), value = run.values[index];
    if (x === null || x === undefined || value === null || value === undefined || run.state === "FAILED") continue;
    const y = Math.min(Math.max(value * objective.scale, low), high);
    placed.push({ run, px: drawn.x(x), py: drawn.y(y) });
  }
  for (const { run, px, py } of placed) mark(drawn.marks, run.state, px, py);
  for (const { run, px, py } of placed) if (run.trial === data.best || run.baseline) {
    element("circle", { class: "ring", cx: px, cy: py, r: run.trial === data.best ? 7 : 5.5, style: run.trial === data.best ? "stroke:var(--vermilion)" : "" }, drawn.marks);
  }
  hover(drawn, (px, py) => {
    let nearest = null, distance = 18;
    for (const one of placed) {
      const d = Math.hypot(one.px - px, one.py - py);
      if (d < distance) { distance = d; nearest = one; }
    }
    return nearest && {
      key: nearest.run.trial,
      text: `${named(data, nearest.run.trial)}\n${data.objectives.map((g, i) => `${g.name} ${shownValue(g, nearest.run.values[i], nearest.run.spread[g.name])}`).join("\n")}`,
      draw: (over) => element("circle", { class: "ring", cx: nearest.px, cy: nearest.py, r: 8 }, over),
    };
  });
}

function drawHistory(parent, data) {
  const objective = data.objectives[0], last = Math.max(...data.runs.map((r) => r.trial), 1);
  const [low, high] = objective.window;
  const ticks = linearTicks(0, last, 8).filter(Number.isInteger);
  const drawn = panel(parent, { kind: "linear", low: -0.02 * last, high: 1.02 * last, ticks, label: "Trial, in the order begun" }, { kind: "linear", low, high, label: objective.label }, { width: 1100, height: 340 });
  let d = "";
  data.ordered.forEach((trial, i) => {
    const value = data.running_best[i];
    if (value === null) return;
    const y = drawn.y(value * objective.scale).toFixed(1), x = drawn.x(trial).toFixed(1);
    d += d ? `H${x}V${y}` : `M${x},${y}`;
  });
  element("path", { class: "best-line", d }, drawn.marks);
  for (const run of data.runs) if (run.state === "FAILED") mark(drawn.marks, "FAILED", drawn.x(run.trial), drawn.y(low) - 6);
  scatter(drawn, data, objective, 0, (run) => run.trial);
}

function drawImportances(parent, data) {
  const rows = data.importances, height = 26 * rows.length + 20;
  const figure = element("figure", {}, parent);
  const root = element("svg", { viewBox: `0 0 560 ${height}`, role: "img", "aria-label": "importances" }, figure);
  const most = Math.max(...rows.map(([, share]) => share));
  rows.forEach(([key, share], i) => {
    const y = 8 + 26 * i, width = (300 * share) / most;
    element("text", { x: 180, y: y + 14, "text-anchor": "end" }, root, key.length > 26 ? `${key.slice(0, 25)}…` : key);
    element("rect", { class: "bar", x: 188, y, width, height: 19 }, root);
    element("text", { x: 194 + width, y: y + 14 }, root, `${(100 * share).toFixed(0)} %`);
  });
}

function keyAxis(axis, runs) {
  if (axis.kind === "category") return { kind: "linear", low: -0.5, high: axis.choices.length - 0.5, ticks: axis.choices.map((_, i) => i), names: axis.choices, label: axis.key };
  const values = runs.filter((r) => r.state !== "FAILED").map((r) => r.params[axis.key]).filter((v) => typeof v === "number");
  let low = Math.min(...values), high = Math.max(...values);
  if (axis.kind === "log") { const pad = (high / low) ** 0.04; low /= pad; high *= pad; } else { const pad = 0.04 * (high - low); low -= pad; high += pad; }
  const named = axis.choices.length > 0 && axis.choices.length <= 8;
  return { kind: axis.kind, low, high, ticks: named ? axis.choices : null, label: axis.key };
}

function place(axis, run) {
  const value = run.params[axis.key];
  if (value === undefined || value === null) return null;
  return axis.kind === "category" ? axis.choices.indexOf(String(value)) : value;
}

function drawSlice(parent, data, axis) {
  const objective = data.objectives[0], [low, high] = objective.window;
  const drawn = panel(parent, keyAxis(axis, data.runs), { kind: "linear", low, high, label: objective.label }, { width: 400, height: 300 });
  scatter(drawn, data, objective, 0, (run) => {
    const x = place(axis, run);
    // Points of a category would lie on top of each other.
    return x === null || axis.kind !== "category" ? x : x + (((run.trial * 7) % 11) / 11 - 0.45) * 0.4;
  });
}

function drawParallel(parent, data) {
  const { axes, lines, top, middle } = data.parallel;
  const width = 1100, height = 380, head = 34, foot = 20, left = 70, right = 60;
  const root = element("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "parallel coordinates" }, element("figure", {}, parent));
  const x = (i) => left + (i * (width - left - right)) / (axes.length - 1);
  const y = (p) => height - foot - p * (height - head - foot);
  const kind = (line) => (line.rank < top ? "best-line" : line.rank < middle ? "better-line" : "other");
  const drawnLines = lines.map((line) => ({ line, points: line.places.map((p, i) => (p === null ? null : [x(i), y(p)])).filter(Boolean) }));
  for (const wanted of ["other", "better-line", "best-line"]) {
    const d = drawnLines.filter(({ line }) => kind(line) === wanted).map(({ points }) => path(points)).join("");
    if (d) element("path", { class: wanted, d, style: wanted === "best-line" ? "stroke-width:1.6" : "" }, root);
  }
  axes.forEach((axis, i) => {
    element("line", { class: "axis", x1: x(i), x2: x(i), y1: y(0), y2: y(1) }, root);
    const anchor = i === 0 ? "start" : i === axes.length - 1 ? "end" : "middle";
    const shift = i === 0 ? -left + 6 : i === axes.length - 1 ? right - 6 : 0;
    element("text", { x: x(i) + shift, y: 16, "text-anchor": anchor }, root, axis.name);
    const before = i === axes.length - 1;
    for (const [at, value] of axis.ticks) {
      element("text", { class: "tick halo", x: x(i) + (before ? 6 : -6), y: y(at) + 4, "text-anchor": before ? "start" : "end" }, root, short(value).slice(0, 18));
    }
  });
  hover({ root, width, height }, (px, py) => {
    let nearest = null, distance = 14;
    for (const one of drawnLines) {
      for (let i = 1; i < one.points.length; i++) {
        const [ax, ay] = one.points[i - 1], [bx, by] = one.points[i];
        if (px < ax || px > bx) continue;
        const d = Math.abs(ay + ((px - ax) / (bx - ax)) * (by - ay) - py);
        if (d < distance) { distance = d; nearest = one; }
      }
    }
    if (!nearest) return null;
    const run = data.byTrial.get(nearest.line.trial), objective = data.objectives[0];
    return { key: run.trial, text: `${named(data, run.trial)}\n${objective.name} ${shownValue(objective, run.values[0], run.spread[objective.name])}`, draw: (over) => element("path", { class: "hot-line", d: path(nearest.points) }, over) };
  });
}

function drawGrid(parent, data) {
  const { axes, cells } = data.grid, objective = data.objectives[0];
  if (axes.length === 2) { drawHeat(parent, axes, cells, objective); return; }
  const ends = cells.flatMap((c) => [c.mean - (c.spread || 0), c.mean + (c.spread || 0)].map((v) => v * objective.scale));
  const pad = (Math.max(...ends) - Math.min(...ends)) * 0.06 || 1;
  const drawn = panel(parent, keyAxis(axes[0], data.runs), { kind: "linear", low: Math.min(...ends) - pad, high: Math.max(...ends) + pad, label: objective.label });
  const points = cells.map((c) => [drawn.x(c.where[0]), drawn.y(c.mean * objective.scale)]);
  if (axes[0].kind !== "category") element("path", { class: "better-line", d: path(points) }, drawn.marks);
  cells.forEach((c, i) => {
    const [px, py] = points[i];
    if (c.spread) {
      const [a, b] = [c.mean - c.spread, c.mean + c.spread].map((v) => drawn.y(v * objective.scale));
      element("path", { class: "error", d: `M${px},${a}V${b}M${px - 5},${a}h10M${px - 5},${b}h10` }, drawn.marks);
    }
    mark(drawn.marks, "COMPLETE", px, py);
  });
  hover(drawn, (px, py) => {
    const i = points.findIndex(([x, y]) => Math.hypot(x - px, y - py) < 16);
    if (i < 0) return null;
    const c = cells[i], value = axes[0].kind === "category" ? axes[0].choices[c.where[0]] : c.where[0];
    return { key: i, text: `${axes[0].key}=${short(value)}\n${shownValue(objective, c.mean, c.spread === null ? undefined : c.spread)}, n = ${c.n}`, draw: (over) => element("circle", { class: "ring", cx: points[i][0], cy: points[i][1], r: 8 }, over) };
  });
}

// Cividis looks the same to colour-blind and other eyes and is monotonic in grey.
const CIVIDIS = [[0, 34, 78], [53, 69, 108], [102, 105, 112], [148, 142, 119], [200, 184, 102], [254, 232, 56]];
function cividis(t) {
  const at = Math.min(Math.max(t, 0), 1) * (CIVIDIS.length - 1), i = Math.min(Math.floor(at), CIVIDIS.length - 2);
  return CIVIDIS[i].map((v, k) => Math.round(v + (CIVIDIS[i + 1][k] - v) * (at - i)));
}

function drawHeat(parent, [across, up], cells, objective) {
  const width = Math.max(420, 130 + 84 * across.choices.length), height = 70 + 48 * up.choices.length;
  const root = element("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "heat map", style: `max-width:${width * 1.15}px` }, element("figure", {}, parent));
  const means = cells.map((c) => c.mean), low = Math.min(...means), high = Math.max(...means);
  const left = 120, w = (width - left - 10) / across.choices.length, h = 46;
  const index = (axis, v) => (axis.kind === "category" ? v : axis.choices.indexOf(v));
  for (const c of cells) {
    const px = left + w * index(across, c.where[0]), py = 8 + h * (up.choices.length - 1 - index(up, c.where[1]));
    const good = objective.maximize ? (c.mean - low) / (high - low || 1) : (high - c.mean) / (high - low || 1);
    const [r, g, b] = cividis(good), ink = good < 0.5 ? "#fff" : "#000";
    element("rect", { x: px, y: py, width: w - 2, height: h - 2, fill: `rgb(${r},${g},${b})` }, root);
    element("text", { x: px + w / 2 - 1, y: py + (c.spread === null ? 26 : 20), "text-anchor": "middle", style: `fill:${ink}` }, root, shownValue(objective, c.mean));
    if (c.spread !== null) element("text", { x: px + w / 2 - 1, y: py + 36, "text-anchor": "middle", style: `fill:${ink};font-size:11px` }, root, `± ${shownValue(objective, c.spread)}`);
  }
  across.choices.forEach((v, i) => element("text", { class: "tick", x: left + w * (i + 0.5), y: 8 + h * up.choices.length + 16, "text-anchor": "middle" }, root, short(v).slice(0, 14)));
  up.choices.forEach((v, i) => element("text", { class: "tick", x: left - 8, y: 8 + h * (up.choices.length - 0.5 - i) + 4, "text-anchor": "end" }, root, short(v).slice(0, 12)));
  element("text", { x: (left + width) / 2, y: height - 8, "text-anchor": "middle" }, root, across.key);
  element("text", { x: 14, y: height / 2 - 20, "text-anchor": "middle", transform: `rotate(-90 14 ${height / 2 - 20})` }, root, up.key);
}

function drawFront(parent, data) {
  const [first, second] = data.objectives;
  const drawn = panel(parent, { kind: "linear", low: first.window[0], high: first.window[1], label: first.label }, { kind: "linear", low: second.window[0], high: second.window[1], label: second.label }, { width: 700, height: 380 });
  const points = data.front.map((t) => data.byTrial.get(t).values).map(([a, b]) => [drawn.x(a * first.scale), drawn.y(b * second.scale)]);
  element("path", { class: "best-line", d: path(points) }, drawn.marks);
  scatter(drawn, data, second, 1, (run) => (run.values[0] === null ? null : run.values[0] * first.scale));
}

function drawTime(parent, data) {
  const parts = Object.entries(data.time.parts), most = Math.max(...parts.map(([, s]) => s));
  const root = element("svg", { viewBox: `0 0 560 ${28 * parts.length + 16}`, role: "img", "aria-label": "where the time went" }, element("figure", {}, parent));
  parts.forEach(([name, seconds], i) => {
    const y = 8 + 28 * i, width = (260 * seconds) / most;
    element("text", { x: 190, y: y + 14, "text-anchor": "end" }, root, name);
    element("rect", { class: "bar", x: 198, y, width, height: 19 }, root);
    element("text", { x: 204 + width, y: y + 14 }, root, `${short(Number(seconds.toPrecision(3)))} s`);
  });
  const done = data.time.done, end = data.time.wall / 60;
  const drawn = panel(parent, { kind: "linear", low: 0, high: end, label: "Time since the first trial began, without pauses (min)" }, { kind: "linear", low: 0, high: Math.max(1, done.length), ticks: linearTicks(0, Math.max(1, done.length)).filter(Number.isInteger), label: "Trials ended" }, { width: 560, height: 240 });
  element("path", { class: "better-line", d: `M${drawn.x(0)},${drawn.y(0)}` + done.map(([s, n]) => `H${drawn.x(s / 60).toFixed(1)}V${drawn.y(n).toFixed(1)}`).join("") }, drawn.marks);
  drawBestOverTime(parent, data, end);
}

// When each trial was trained, and the epochs after which it was paused or ended.
function drawSchedule(parent, data) {
  const parts = data.time.schedule, last = Math.max(...data.ordered, 1), end = data.time.wall / 60;
  const ticks = linearTicks(0, last, 10).filter(Number.isInteger);
  const drawn = panel(parent, { kind: "linear", low: 0, high: end, label: "Time since the first trial began, without pauses of the sweep (min)" }, { kind: "linear", low: last + 0.7, high: -0.7, ticks, label: "Trial" }, { width: 1100, height: Math.min(900, 110 + 9 * last) });
  const spans = { bar: "", "best-bar": "" };
  const placed = parts.map(([trial, began, ended, epochs, state]) => ({ trial, epochs, state, from: drawn.x(began / 60), to: drawn.x(ended / 60), py: drawn.y(trial) }));
  for (const { trial, from, to, py } of placed) spans[trial === data.best ? "best-bar" : "bar"] += `M${from.toFixed(1)},${py.toFixed(1)}H${to.toFixed(1)}`;
  for (const [kind, d] of Object.entries(spans)) if (d) element("path", { class: `${kind} span`, d }, drawn.marks);
  for (const { state, to, py } of placed) mark(drawn.marks, state, to, py, 3.2);
  hover(drawn, (px, py) => {
    let nearest = null, distance = 14;
    for (const one of placed) {
      const d = Math.hypot(Math.max(one.from - px, px - one.to, 0), one.py - py);
      if (d < distance) { distance = d; nearest = one; }
    }
    if (!nearest) return null;
    const rest = placed.filter((one) => one.trial === nearest.trial);
    return {
      key: `${nearest.trial}:${nearest.epochs}`,
      text: `${named(data, nearest.trial)}\n${nearest.state === "PAUSED" ? "paused" : nearest.state.toLowerCase()} after ${nearest.epochs} ${data.steps}`,
      draw: (over) => element("path", { class: "hot-line", d: rest.map((one) => `M${one.from},${one.py}H${one.to}`).join("") }, over),
    };
  });
}

// A key's values in a population: a line for each trial between two copies.
function drawLineage(parent, data, key) {
  const { epochs, pieces, copies } = data.lineage;
  const ticks = linearTicks(0, epochs, 8).filter(Number.isInteger), room = key.kind === "log" ? 1.15 : 0;
  const low = room ? key.low / room : key.low, high = room ? key.high * room : key.high;
  const drawn = panel(parent, { kind: "linear", low: 0, high: epochs, ticks, label: "Epochs done" }, { kind: key.kind, low, high, label: key.key }, { width: 560, height: 240 });
  const placed = pieces.map(([trial, began, ended, values, isWinners]) => ({ trial, isWinners, from: drawn.x(began), to: drawn.x(ended), py: drawn.y(values[key.key]), value: values[key.key], began, ended }));
  const line = (one) => `M${one.from.toFixed(1)},${one.py.toFixed(1)}H${one.to.toFixed(1)}`;
  for (const kind of [false, true]) {
    const d = placed.filter((one) => one.isWinners === kind).map(line).join("");
    if (d) element("path", { class: kind ? "best-line" : "other", d }, drawn.marks);
  }
  for (const [epoch, trial] of copies) {
    const begun = placed.find((one) => one.trial === trial && one.began === epoch);
    if (begun) element("circle", { class: "copy", cx: begun.from, cy: begun.py, r: 2.2 }, drawn.marks);
  }
  hover(drawn, (px, py) => {
    let nearest = null, distance = 12;
    for (const one of placed) {
      const d = Math.hypot(Math.max(one.from - px, px - one.to, 0), one.py - py);
      if (d < distance) { distance = d; nearest = one; }
    }
    if (!nearest) return null;
    const copy = copies.find(([epoch, trial]) => trial === nearest.trial && epoch === nearest.began);
    const origin = copy ? `, as a copy of trial ${copy[2]}` : "";
    return {
      key: `${nearest.trial}:${nearest.began}`,
      text: `Trial ${nearest.trial}, epochs ${nearest.began + 1} to ${nearest.ended}${origin}\n${key.key}=${short(nearest.value)}`,
      draw: (over) => element("path", { class: "hot-line", d: placed.filter((one) => one.trial === nearest.trial).map(line).join("") }, over),
    };
  });
  drawn.figure.dataset.chart = "lineage";
}

// The best value at each time, of all trials that had ended or were paused by then.
function drawBestOverTime(parent, data, end) {
  const objective = data.objectives[0], best = data.time.best;
  if (!best.length || !objective.window) return;
  const [low, high] = objective.window, inside = (v) => Math.min(Math.max(v * objective.scale, low), high);
  const drawn = panel(parent, { kind: "linear", low: 0, high: end, label: "Time since the first trial began, without pauses (min)" }, { kind: "linear", low, high, label: `Best ${objective.name}${objective.unit ? ` (${objective.unit})` : ""}` }, { width: 560, height: 240 });
  const steps = best.map(([s, v], i) => `${i ? "H" : "M"}${drawn.x(s / 60).toFixed(1)}${i ? "V" : ","}${drawn.y(inside(v)).toFixed(1)}`);
  element("path", { class: "best-line", d: `${steps.join("")}H${drawn.x(end).toFixed(1)}` }, drawn.marks);
}
