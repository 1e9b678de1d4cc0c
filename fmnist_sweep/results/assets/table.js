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
    { name: "val acc %", value: (r) => r.val_accuracy, show: (r) => withSpread(r, "val_accuracy", per) },
    { name: "val loss", value: (r) => r.val_loss, show: (r) => withSpread(r, "val_loss", (v) => (typeof v === "number" ? v.toFixed(4) : "-")), up: true },
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
  const words = element("input", { id: "filter", type: "search", placeholder: "filter: adam, state=pruned, width>128", size: 36, "aria-label": "filter rows" }, controls);
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
    const wanted = parse(words.value, all);
    const kept = rows.filter(({ run }) => (!state.value || run.state.toLowerCase() === state.value) && wanted.every((test) => test(run)));
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
    count.textContent = `${kept.length} of ${rows.length} trials`;
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
      if (run.baseline) element("span", { class: "badge baseline" }, cell, "baseline");
    }
    const value = column.show ? column.show(run) : column.value(run);
    cell.append(value === null || value === undefined ? "-" : typeof value === "number" ? short(value) : value);
  }
  return row;
}

// Turns a filter's words into tests. A row must contain each word; `name=value`, `name<value` and
// `name>value` test a column.
function parse(text, all) {
  return text.toLowerCase().split(/\s+/).filter(Boolean).map((word) => {
    const parts = /^([^=<>]+)([=<>])(.+)$/.exec(word);
    const column = parts && all.find((c) => c.name.toLowerCase().replace(/ /g, "_").includes(parts[1]));
    if (!column) return (run) => all.some((c) => String(c.show ? c.show(run) : c.value(run)).toLowerCase().includes(word)) || [run.baseline && "baseline", run.front && "pareto front"].some((m) => m && m.includes(word));
    const [, , sign, value] = parts, number = Number(value);
    return (run) => {
      const own = column.value(run);
      if (sign === "=") return typeof own === "number" && !Number.isNaN(number) ? own === number || short(own) === value : String(own).toLowerCase().includes(value);
      return typeof own === "number" && (sign === "<" ? own < number : own > number);
    };
  });
}
