"use strict";
// Builds the page from its data.

const data = JSON.parse(document.getElementById("data").textContent);
data.byTrial = new Map(data.runs.map((run) => [run.trial, run]));
data.ordered = data.runs.map((run) => run.trial).sort((a, b) => a - b);

function section(title, note) {
  const made = element("section", {}, document.getElementById("main"));
  element("h2", {}, made, title);
  if (note) element("p", { class: "note" }, made, note);
  return made;
}

function verdict() {
  const objective = data.objectives[0], sentences = [];
  const value = (run) => shownValue(objective, run.values[0], run.spread[objective.name]);
  const best = data.byTrial.get(data.best), base = data.byTrial.get(data.baseline);
  const complete = data.runs.filter((r) => r.state === "COMPLETE").length;
  if (!best) sentences.push(`None of ${data.runs.length} trials is complete.`, ...furthest(objective));
  else if (data.objectives.length > 1) sentences.push(`${data.front.length} of ${complete} complete trials are on the Pareto front.`);
  else {
    sentences.push(`Best of ${complete} complete trials: ${objective.name} ${value(best)} (trial ${best.trial}).`);
    if (base && base !== best && base.values[0] !== null) sentences.push(`Baseline: ${value(base)} (trial ${base.trial}).`);
    if (base === best) sentences.push("It is the baseline.");
    const confirmed = (data.facts["Confirmed on fresh seeds"] || {})["Fresh seeds"];
    if (confirmed) sentences.push(`On fresh seeds: ${confirmed}`);
    else if (complete > 1) sentences.push("A best value is a maximum over noise: python -m fmnist_sweep.confirm trains the winners again on fresh seeds.");
  }
  document.getElementById("verdict").textContent = sentences.join(" ");
  const list = document.getElementById("advice");
  list.hidden = !data.advice.length;
  for (const text of data.advice) element("li", {}, list, text);
  const warning = document.getElementById("warning");
  warning.hidden = !data.warning;
  warning.textContent = data.warning || "";
}

// Says which trial has the best value so far if none is complete.
function furthest(objective) {
  const run = data.runs.find((r) => r.values[0] !== null);
  if (!run || data.objectives.length > 1) return [];
  return [`The best so far: ${objective.name} ${shownValue(objective, run.values[0])} after ${run.epochs} ${data.steps} (trial ${run.trial}, ${run.state.toLowerCase()}).`];
}

function facts() {
  const box = element("div", { class: "facts" }, section("What was done"));
  for (const [title, rows] of Object.entries(data.facts)) {
    if (!Object.keys(rows).length) continue;
    const part = element("div", {}, box);
    element("h3", {}, part, title);
    const list = element("dl", {}, part);
    for (const [name, text] of Object.entries(rows)) {
      element("dt", {}, list, name.replace(/([._])/g, "$1\u200b")); // where a long key may be broken
      element("dd", {}, list, text);
    }
  }
}

function stateEntries() {
  const names = { COMPLETE: "complete", PAUSED: "paused (its last value)", PRUNED: "pruned (its last value)", FAILED: "failed" };
  return Object.keys(names).filter((s) => data.runs.some((r) => r.state === s)).map((s) => [names[s], s]);
}

function pictures() {
  const objective = data.objectives[0], hasValues = objective.window !== null;
  const drawable = data.curves.filter((metric) => metric.window);
  if (drawable.length) {
    const part = section("Curves", "All trials. Point at a curve to see whose it is. Curves far on the bad side of the others are cut.");
    const marked = [data.best !== null && [`best (trial ${data.best})`, "best-line"], data.baseline !== null && data.baseline !== data.best && [`baseline (trial ${data.baseline})`, "baseline-line"]];
    legend(part, [...marked.filter(Boolean), ["other trials", "other"], ...(data.runs.some(stoppedEarly) ? [["paused or pruned", "pruned-line"]] : []), ...(data.lineage ? [["first epoch of a copy", "copy"]] : [])]);
    const plots = element("div", { class: "plots", id: "curves" }, part);
    for (const metric of drawable) drawCurves(plots, data, metric);
  }
  if (data.front.length) {
    const part = section("Pareto front", "No other trial beats these in one objective without losing in the other.");
    drawFront(element("div", { class: "plots" }, part), data);
  }
  if (!hasValues) return;
  if (data.grid) {
    const many = Math.max(...data.grid.cells.map((c) => c.n));
    const part = section("Grid", `${data.objectives[0].label}; ${many > 1 ? `mean ± standard deviation over up to ${many} runs each` : "one run each"}.`);
    drawGrid(element("div", { class: "plots" }, part), data);
  }
  const history = section("Optimisation history", "Each trial's value and the best so far. Values beyond the axis lie on its edge.");
  legend(history, [["best so far", "best-line"], ...stateEntries(), ["ringed: best, baseline", "ring"]]);
  drawHistory(history, data);
  if (data.importances.length) {
    const stopped = data.importances_of - data.runs.filter((r) => r.state === "COMPLETE").length;
    const early = stopped > 0 ? `, ${stopped} of which were stopped early and count with their last value` : "";
    const part = section("Which keys mattered", `Share of what separates the best quarter of the trials from all (PED-ANOVA), from ${data.importances_of} trials${early}; with few trials or a narrow range a small share proves nothing.`);
    drawImportances(element("div", { class: "plots" }, part), data);
  } else if (data.importances_from) {
    section("Which keys mattered", `Shown from ${data.importances_from} trials with a value on; this sweep has ${data.importances_of}.`);
  }
  if (data.axes.length) {
    const part = section("Slices", "Each trial against one key, whatever its other keys were.");
    legend(part, stateEntries().filter(([, state]) => state !== "FAILED"));
    const plots = element("div", { class: "plots small" }, part);
    for (const axis of data.axes) drawSlice(plots, data, axis);
  }
  if (data.parallel.lines.length) {
    const part = section("Parallel coordinates", "Complete trials, a line each, over their keys to what they reached.");
    legend(part, [["best tenth", "best-line"], ["better half", "better-line"], ["others", "other"]]);
    drawParallel(part, data);
  }
}

verdict();
facts();
drawTable(section("Trials", "Best first. A click on a head sorts; words and tests such as epochs>10 filter."), data);
pictures();
if (data.time) {
  const part = section("Time", `${short(Number(data.time.per_minute.toPrecision(3)))} trials a minute.`);
  drawTime(element("div", { class: "plots" }, part), data);
}
if (data.time && data.time.schedule.length) {
  const part = section("Schedule", "When each trial was trained. A trial that was paused continues where the scheduler promoted it.");
  legend(part, [["best trial", "best-line"], ...stateEntries(), ...(data.runs.some((r) => r.state === "PAUSED") ? [] : [["paused", "PAUSED"]])]);
  drawSchedule(part, data);
}
if (data.lineage) {
  const part = section("Lineage", "The values of the population's trials. A copy continues from another trial's weights with changed values. Tables have the values that trials began with.");
  legend(part, [["the best trial and its ancestors", "best-line"], ["other trials", "other"], ["a copy begins", "copy"]]);
  const plots = element("div", { class: "plots" }, part);
  for (const key of data.lineage.keys) drawLineage(plots, data, key);
}
document.documentElement.dataset.drawn = String(Math.round(performance.now()));
