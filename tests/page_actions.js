// A person's actions on a report's page; what comes of them is put where a dump of the page shows it.
const told = { drawn: document.documentElement.dataset.drawn };
const cells = () => [...document.querySelectorAll("#ranking tbody tr")].map((r) => Number(r.dataset.trial));
const press = (name) => [...document.querySelectorAll("#ranking th button")].find((b) => b.textContent === name).click();
const write = (id, text, kind) => { const e = document.getElementById(id); e.value = text; e.dispatchEvent(new Event(kind)); };
told.ranked = cells();
press("optimizer.lr"); told.up = cells();
press("optimizer.lr"); told.down = cells();
write("filter", "state=complete model.width>128", "input"); told.filtered = cells();
const filtered = (text) => { write("filter", text, "input"); return [cells(), document.getElementById("count").textContent]; };
told.filters = Object.fromEntries(["width>=128 width!=256", "val_accuracy>81.5", "epochs=1", "nothing=1", "epochs=>1", "PRUNED"].map((text) => [text, filtered(text)]));
write("filter", "", "input"); write("state", "failed", "change"); told.failed = cells();
told.reason = document.querySelector("#ranking tbody td.reason").textContent;
write("state", "", "change");
const svg = document.querySelector("#curves svg"), box = svg.getBoundingClientRect();
const line = svg.querySelector(".best-line"), end = line.getPointAtLength(line.getTotalLength());
svg.dispatchEvent(new MouseEvent("mousemove", { bubbles: true,
  clientX: box.left + (end.x * box.width) / 560, clientY: box.top + (end.y * box.height) / 340 }));
told.hover = document.getElementById("tip").textContent;
told.hot = svg.querySelectorAll(".hot-line").length;
told.title = document.title; told.wrong = wrong; told.pictures = document.querySelectorAll("figure svg").length;
const out = document.createElement("pre"); out.id = "told";
out.textContent = btoa(unescape(encodeURIComponent(JSON.stringify(told)))); document.body.appendChild(out);
