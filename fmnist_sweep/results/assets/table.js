"use strict";
// The ranked table. A click on a column's head sorts it; words and states filter it.

function columns(data) {
  const per = (v) => (typeof v === "number" ? (100 * v).toFixed(2) : "-");
  const withSpread = (run, name, show) => show(run[name]) + (run.spread[name] === undefined ? "" : ` ± ${show(run.spread[name])}`);
  const failed = data.runs.some((r) => r.state !== "COMPLETE");
  const known = ["val_accuracy", "val_loss"];
  return [
    { name: "rank", value: (r) => r.rank, up: true },
    { name: "trial", value: (r) => r.trial, up: true },
    { name: "state", value: (r) => r.state.toLowerCase(), text: true, up: true },
    ...data.keys.map((key) => ({ name: key, value: (r) => r.params[key], show: (r) => (key in r.params ? short(r.params[key]) : ""), up: true })),
    ...data.objectives.map((g, i) => ({ g, i })).filter(({ g }) => !known.includes(g.name)).map(({ g, i }) => ({ name: g.name, value: (r) => r.values[i], show: (r) => shownValue(g, r.values[i], r.spread[g.name]), up: !g.maximize })),
    ...(data.runs.every((r) => r.val_accuracy === null || r.val_accuracy === undefined) ? [] : [
    { name: "val acc %", key: "val_accuracy", value: (r) => r.val_accuracy, show: (r) => withSpread(r, "val_accuracy", per), scale: 100 },
    { name: "val loss", key: "val_loss", value: (r) => r.val_loss, show: (r) => withSpread(r, "val_loss", (v) => (typeof v === "number" ? v.toFixed(4) : "-")), up: true },
    ]),
    { name: data.steps, value: (r) => r.epochs, up: true },
    ...(data.objectives.some((g) => g.name === "seconds") ? [] : [{ name: "seconds", value: (r) => r.seconds, show: (r) => (typeof r.seconds === "number" ? r.seconds.toFixed(1) : "-"), up: true }]),
    ...(data.runs.some((r) => r.repeats) ? [{ name: "repeats", value: (r) => r.repeats, up: true }] : []),
    ...(failed ? [{ name: "reason", value: (r) => r.reason || "", text: true, up: true, wide: true }] : []),
  ];
}

function compare(a, b) {
  const missing = (v) => v === null || v === undefined || v === "";
  if (missing(a) || missing(b)) return missing(a) - missing(b);
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), "en", { numeric: true });
}

function drawTable(parent, data) {
  const all = columns(data);
  const controls = element("div", { class: "controls" }, parent);
  const number = data.keys.find((key) => data.runs.every((r) => typeof r.params[key] === "number"));
  const example = number ? `, ${number}>${short(data.runs[0].params[number])}` : "";
  const words = element("input", { id: "filter", type: "search", placeholder: `filter: state=complete${example}`, size: 44, "aria-label": "filter rows" }, controls);
  const states = [...new Set(data.runs.map((r) => r.state.toLowerCase()))];
  const state = element("select", { id: "state", "aria-label": "state" }, controls);
  element("option", { value: "" }, state, "all states");
  for (const name of states) element("option", { value: name }, state, name);
  const count = element("span", { class: "note", id: "count", "aria-live": "polite" }, controls);
  const table = element("table", { id: "ranking" }, element("div", { class: "scroll" }, parent));
  const head = element("tr", {}, element("thead", {}, table));
  const body = element("tbody", {}, table);
  let sorted = null, descending = false;

  const heads = all.map((column) => {
    const cell = element("th", { scope: "col", class: column.text ? "text" : "" }, head);
    element("button", { type: "button" }, cell, column.name).addEventListener("click", () => {
      descending = sorted === column ? !descending : !column.up;
      sorted = column;
      fill();
    });
    return cell;
  });
  const rows = data.runs.map((run) => ({ run, row: tableRow(all, run, data) }));

  function fill() {
    const { tests, problem } = parse(words.value, all);
    const kept = rows.filter(({ run }) => (!state.value || run.state.toLowerCase() === state.value) && tests.every((test) => test(run)));
    if (sorted) {
      kept.sort((a, b) => {
        const [x, y] = [sorted.value(a.run), sorted.value(b.run)];
        const missing = [x, y].some((v) => v === null || v === undefined || v === "");
        return compare(x, y) * (descending && !missing ? -1 : 1);
      });
    }
    heads.forEach((cell, i) => {
      if (all[i] === sorted) cell.setAttribute("aria-sort", descending ? "descending" : "ascending");
      else cell.removeAttribute("aria-sort");
    });
    body.replaceChildren(...kept.map(({ row }) => row));
    count.textContent = problem || `${kept.length} of ${rows.length} trials`;
    count.classList.toggle("problem", Boolean(problem));
  }
  words.addEventListener("input", fill);
  state.addEventListener("change", fill);
  fill();
}

function tableRow(all, run, data) {
  const best = run.trial === data.best && data.objectives.length === 1;
  const row = element("tr", { class: [run.state, (best || run.front) && "best", run.baseline && "baseline"].filter(Boolean).join(" "), "data-trial": run.trial });
  for (const column of all) {
    const cell = element("td", { class: [column.text && "text", column.wide && "reason"].filter(Boolean).join(" ") }, row);
    if (column.name === "state") {
      if (best) element("span", { class: "badge best" }, cell, "best");
      if (run.front) element("span", { class: "badge best" }, cell, "Pareto front");
      if (run.trial === data.winner) element("span", { class: "badge best" }, cell, "confirmed");
      if (run.baseline) element("span", { class: "badge baseline" }, cell, "baseline");
    }
    const value = column.show ? column.show(run) : column.value(run);
    cell.append(value === null || value === undefined ? "-" : typeof value === "number" ? short(value) : value);
  }
  return row;
}

// Turns a filter's words into tests. A row must contain each word; `name=value`, `name<value` and so
// on test a column. A name is a column's head, with _ for spaces, a key, or the last part of a key.
// Returns the tests, and what is wrong with the first word that is none.
const OPERATORS = {
  "=": (a, b) => a === b,
  "!=": (a, b) => a !== b,
  "<": (a, b) => a < b,
  "<=": (a, b) => a <= b,
  ">": (a, b) => a > b,
  ">=": (a, b) => a >= b,
};

function parse(text, all) {
  const tests = [];
  let problem = null;
  for (const word of text.toLowerCase().split(/\s+/).filter(Boolean)) {
    const parts = /^([^=<>!]*)([=<>!]+)(.*)$/.exec(word);
    if (!parts) {
      tests.push((run) => all.some((c) => String(c.show ? c.show(run) : c.value(run)).toLowerCase().includes(word)) || [run.baseline && "baseline", run.front && "pareto front"].some((m) => m && m.includes(word)));
      continue;
    }
    const [, name, sign, value] = parts, column = columnOf(name, all), test = OPERATORS[sign];
    if (!column) problem ||= `no column ${name}; there are ${all.map(filterName).join(", ")}`;
    else if (!test) problem ||= `${sign}: no test; there are ${Object.keys(OPERATORS).join(" ")}`;
    else if (value) tests.push(cellTest(column, sign, test, value));
  }
  return { tests, problem };
}

function filterName(column) {
  return (column.key || column.name).toLowerCase().replace(/ /g, "_");
}

// Heads come before the ends of keys: `epochs` are those done, `trainer.epochs` is the key.
function columnOf(name, all) {
  const ends = all.filter((c) => filterName(c).endsWith(`.${name}`));
  return all.find((c) => filterName(c) === name || c.name.toLowerCase() === name) || (ends.length === 1 ? ends[0] : undefined);
}

function cellTest(column, sign, test, value) {
  const number = Number(value);
  return (run) => {
    const own = column.value(run);
    if (own === null || own === undefined) return false;
    if (typeof own === "number" && !Number.isNaN(number)) {
      // A figure may be given as the table shows it.
      if (column.scale && number > 1) return test(own * column.scale, number);
      return sign === "=" ? own === number || short(own) === value : test(own, number);
    }
    const text = String(own).toLowerCase();
    return sign === "=" ? text.includes(value) : sign === "!=" ? !text.includes(value) : test(text, value);
  };
}
