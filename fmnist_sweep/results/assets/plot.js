"use strict";
// Scales, axes and elements for all charts. Text is always inserted as text, never as markup.

function element(tag, attributes, parent, text) {
  const svg = ["svg", "g", "path", "circle", "line", "rect", "text", "clipPath", "defs"].includes(tag);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.appendChild(made);
  return made;
}

function short(value) {
  if (value === null || value === undefined) return "-";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value)) return Math.abs(value) < 1e15 ? String(value) : value.toExponential(3);
  const text = String(Number(value.toPrecision(4)));
  return text;
}

// Returns a function from values to pixels. kind: linear, log or category (positions 0, 1, ...).
// `ticks`: the values of the ticks; by default they are chosen.
function scale(kind, low, high, from, to, ticks) {
  const turn = kind === "log" ? Math.log10 : (v) => v;
  const a = turn(low), b = turn(high);
  const place = (v) => from + ((turn(v) - a) / (b - a || 1)) * (to - from);
  place.invert = (p) => { const v = a + ((p - from) / (to - from)) * (b - a); return kind === "log" ? 10 ** v : v; };
  place.ticks = ticks && ticks.length ? ticks : kind === "log" ? logTicks(low, high) : linearTicks(low, high);
  return place;
}

function linearTicks(low, high, wanted = 5) {
  const rough = (high - low) / wanted || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

function logTicks(low, high) {
  const found = [];
  for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) {
    for (const m of [1, 2, 5]) found.push(Number((m * 10 ** e).toPrecision(6)));
  }
  const inside = found.filter((v) => v >= low * 0.999 && v <= high * 1.001);
  const tens = inside.filter((v) => /^1(e|0*$)|^0\.0*1$/.test(String(v)));
  return inside.length > 6 && tens.length > 1 ? tens : inside;
}

// Draws a panel with axes. x and y: {kind, low, high, ticks, names, label}. Returns the element for marks
// and both scales.
let clips = 0;
function panel(parent, x, y, size) {
  const { width = 560, height = 340, left = 62, right = 16, top = 12, bottom = 46 } = size || {};
  const figure = element("figure", {}, parent);
  const root = element("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${y.label} against ${x.label}` }, figure);
  const sx = scale(x.kind, x.low, x.high, left, width - right, x.ticks);
  const sy = scale(y.kind, y.low, y.high, height - bottom, top, y.ticks);
  for (const tick of sy.ticks) {
    element("line", { class: "rule", x1: left, x2: width - right, y1: sy(tick), y2: sy(tick) }, root);
    element("text", { class: "tick", x: left - 7, y: sy(tick) + 4, "text-anchor": "end" }, root, label(y, tick));
  }
  const slant = x.names && Math.max(...x.names.map((n) => n.length)) * x.names.length * 7 > width - left - right;
  let free = -1e9;
  for (const tick of sx.ticks) {
    const text = label(x, tick), half = text.length * 3.2, at = sx(tick);
    element("line", { class: "rule", x1: at, x2: at, y1: top, y2: height - bottom }, root);
    if (slant) {
      element("text", { class: "tick", x: at, y: height - bottom + 14, "text-anchor": "end", transform: `rotate(-30 ${at} ${height - bottom + 14})` }, root, text.slice(0, 12));
    } else if (at - half > free) {
      element("text", { class: "tick", x: at, y: height - bottom + 16, "text-anchor": "middle" }, root, text);
      free = at + half + 6;
    }
  }
  element("text", { x: (left + width - right) / 2, y: height - 8, "text-anchor": "middle" }, root, x.label);
  const middle = (top + height - bottom) / 2;
  if (y.label) element("text", { x: 14, y: middle, "text-anchor": "middle", transform: `rotate(-90 14 ${middle})` }, root, y.label);
  const id = `clip${clips++}`;
  const clip = element("clipPath", { id }, element("defs", {}, root));
  element("rect", { x: left - 5, y: top - 5, width: width - left - right + 10, height: height - top - bottom + 10 }, clip);
  return { root, figure, marks: element("g", { "clip-path": `url(#${id})` }, root), x: sx, y: sy, width, height, left, right, top, bottom };
}

function label(axis, tick) {
  return axis.names ? axis.names[tick] : short(tick);
}

// Draws a trial's mark. States differ in shape as well as colour.
function mark(parent, state, x, y, r = 4) {
  if (state === "PRUNED") return element("path", { class: state, d: `M${x - r},${y + r * 0.8}h${2 * r}l${-r},${-1.8 * r}z` }, parent);
  if (state === "PAUSED") return element("path", { class: state, d: `M${x - r},${y}l${r},${-r}l${r},${r}l${-r},${r}z` }, parent);
  if (state === "FAILED") return element("path", { class: state, d: `M${x - r},${y - r}l${2 * r},${2 * r}m0,${-2 * r}l${-2 * r},${2 * r}` }, parent);
  return element("circle", { class: state, cx: x, cy: y, r }, parent);
}

function path(points) {
  return points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)},${y.toFixed(1)}`).join("");
}

// Returns the position of the mouse in the panel's units.
function at(drawn, event) {
  const box = drawn.root.getBoundingClientRect();
  return [((event.clientX - box.left) * drawn.width) / box.width, ((event.clientY - box.top) * drawn.height) / box.height];
}

const tip = document.getElementById("tip");
function say(event, text) {
  tip.hidden = !text;
  if (!text) return;
  tip.textContent = text;
  const box = tip.getBoundingClientRect();
  tip.style.left = `${Math.min(event.clientX + 14, innerWidth - box.width - 8)}px`;
  tip.style.top = `${event.clientY + 18 + box.height > innerHeight ? event.clientY - box.height - 10 : event.clientY + 18}px`;
}

// Highlights the item nearest to the mouse. `nearest(x, y)` returns {key, text, draw} or null; `draw` runs
// when `key` changes.
function hover(drawn, nearest) {
  let shown = null;
  const over = element("g", { "pointer-events": "none" }, drawn.root);
  const clear = () => { over.replaceChildren(); shown = null; };
  drawn.root.addEventListener("mousemove", (event) => {
    const found = nearest(...at(drawn, event));
    if (!found) { clear(); say(event, null); return; }
    if (shown !== found.key) { clear(); shown = found.key; found.draw(over); }
    say(event, found.text);
  });
  drawn.root.addEventListener("mouseleave", (event) => { clear(); say(event, null); });
}

function legend(parent, entries) {
  const box = element("div", { class: "legend" }, parent);
  for (const [name, kind] of entries) {
    const item = element("span", {}, box);
    const picture = element("svg", { viewBox: "0 0 28 12" }, item);
    if (kind.endsWith("-line") || kind === "other") element("path", { class: kind, d: "M0,6H28" }, picture);
    else if (kind === "copy") element("circle", { class: kind, cx: 14, cy: 6, r: 2.2 }, picture);
    else if (kind === "ring") element("circle", { class: "ring", cx: 14, cy: 6, r: 4.5 }, picture);
    else mark(picture, kind, 14, 6);
    item.append(name);
  }
}
