// Copyright 2026 The soupjax Authors
// SPDX-License-Identifier: Apache-2.0
// Makes the page interactive: pointing at a mark shows its model, boxes hide
// groups of marks, and tables can be sorted. The page is readable without it.
"use strict";

/** Returns a score as text; accuracies in percent, with gains in points. */
function score(metric, cell) {
  const number = (x) => (typeof x === "number" ? +x.toPrecision(4) : x);
  if (metric !== "prec@1") return `${metric} ${number(cell.value)}`;
  const points = (x) => (100 * x).toFixed(1);
  const text = `${points(cell.value)} %`;
  if (typeof cell.difference !== "number") return text;
  const unclear = cell.low <= 0 && cell.high >= 0 ? "~" : "";
  const sign = cell.difference > 0 ? `${unclear}+` : unclear;
  const ends = `[${points(cell.low)}, ${points(cell.high)}]`;
  return `${text} (${sign}${points(cell.difference)} ${ends})`;
}

/** Returns lines about a model: name, hyperparameters, scores. */
function describe(model) {
  const plain = (x) => (typeof x === "string" ? x : JSON.stringify(x));
  const lines = [`${model.name} (${model.kind})`];
  for (const [key, value] of Object.entries(model.hyperparameters)) {
    lines.push(`${key} = ${plain(value)}`);
  }
  for (const [dataset, metrics] of Object.entries(model.scores)) {
    const cells = Object.entries(metrics);
    const texts = cells.map(([metric, cell]) => score(metric, cell));
    const split = dataset.slice(dataset.indexOf("/") + 1);
    lines.push(`${split}, n = ${cells[0][1].n}: ${texts.join(", ")}`);
  }
  return lines;
}

/** Returns the sort key of a cell: a number, a text, or null if it is empty. */
function key(text) {
  const plain = text.trim().replace(/\u2212/g, "-");
  if (["", "-", "\u2013"].includes(plain)) return null;
  const found = plain.match(/^(?:~|up to )?([-+]?[\d.]+(?:e[-+]?\d+)?)(?!\w)/i);
  return found && isFinite(found[1]) ? +found[1] : plain.toLowerCase();
}

/** Returns indices of keys in order: numbers, then texts; nulls always last. */
function order(keys, descending) {
  const rank = (k) => (k === null ? 2 : typeof k === "string" ? 1 : 0);
  const sign = descending ? -1 : 1;
  return keys.map((_, i) => i).sort((i, j) => {
    const [a, b] = [keys[i], keys[j]];
    if (rank(a) !== rank(b)) return rank(a) - rank(b);
    return a === b ? i - j : a < b ? -sign : sign;
  });
}

function sort(header) {
  const body = header.closest("table").querySelector("tbody");
  const place = [...header.parentNode.children].indexOf(header);
  const rows = [...body.children];
  const first = (row) => row.children[place].childNodes[0];
  const keys = rows.map((row) => key(first(row)?.textContent ?? ""));
  const previous = header.getAttribute("aria-sort");
  // Numbers start with the highest, texts with A.
  const descending = previous
    ? previous === "ascending"
    : keys.some((k) => typeof k === "number");
  for (const other of header.parentNode.children) {
    other.removeAttribute("aria-sort");
  }
  const direction = descending ? "descending" : "ascending";
  header.setAttribute("aria-sort", direction);
  body.append(...order(keys, descending).map((i) => rows[i]));
}

function addSwitches(figure) {
  const members = [...figure.querySelectorAll("[data-groups]")];
  const lists = members.map((m) => JSON.parse(m.getAttribute("data-groups")));
  const bars = [];
  // Group -> box, for each position in the lists (such as shift and kind).
  const boxes = [];
  const update = () => {
    members.forEach((member, i) => {
      const hidden = lists[i].some((g, k) => boxes[k].get(g)?.checked === false);
      member.style.display = hidden ? "none" : "";
    });
  };
  for (let k = 0; k < Math.max(...lists.map((list) => list.length)); k++) {
    const groups = [...new Set(lists.map((list) => list[k]))];
    boxes.push(new Map());
    if (groups.length < 2) continue;
    const bar = document.createElement("p");
    bar.setAttribute("class", "switches");
    for (const group of groups.filter((g) => g !== undefined)) {
      const label = document.createElement("label");
      const box = document.createElement("input");
      box.setAttribute("type", "checkbox");
      box.checked = true;
      box.addEventListener("change", update);
      boxes[k].set(group, box);
      label.append(box, ` ${group}`);
      bar.append(label);
    }
    if (groups.length > 4) bar.append(switchOfAll([...boxes[k].values()], update));
    bars.push(bar);
  }
  figure.prepend(...bars);
}

/** Returns a button that switches all boxes off, or on again. */
function switchOfAll(boxes, update) {
  const button = document.createElement("button");
  button.textContent = "none";
  button.addEventListener("click", () => {
    const on = button.textContent === "all";
    for (const box of boxes) box.checked = on;
    button.textContent = on ? "none" : "all";
    update();
  });
  return button;
}

function start() {
  const block = document.getElementById("results");
  const models = block ? JSON.parse(block.textContent) : [];
  const tip = document.createElement("div");
  tip.setAttribute("id", "tip");
  tip.hidden = true;
  document.body.append(tip);
  const pointOf = (element) => element.closest?.("[data-model]");
  document.addEventListener("pointerover", (event) => {
    // Models with equal scores lie on top of each other.
    const { clientX: x, clientY: y } = event;
    const under = [event.target, ...document.elementsFromPoint(x, y)];
    const points = pointOf(event.target) ? under.map(pointOf) : [];
    const names = points.filter(Boolean).map((p) => p.getAttribute("data-model"));
    const found = [...new Set(names)].map((i) => models[i]).filter(Boolean);
    tip.hidden = !found.length;
    const texts = found.slice(0, 2).map((m) => describe(m).join("\n"));
    const rest = found.slice(2).map((m) => m.name);
    if (rest.length) texts.push(`Also here: ${rest.join(", ")}`);
    tip.textContent = texts.join("\n\n");
    const inside = (at, size, all) => `${Math.max(0, Math.min(at, all - size))}px`;
    tip.style.left = inside(x + 14, tip.offsetWidth + 8, innerWidth);
    tip.style.top = inside(y + 14, tip.offsetHeight + 8, innerHeight);
  });
  document.querySelectorAll("figure").forEach(addSwitches);
  const headers = document.querySelectorAll("thead th");
  const hints = [];
  if (document.querySelectorAll("[data-model]").length) {
    hints.push("Point at a mark in a figure to see its model.");
  }
  if (headers.length) hints.push("Click on a column header to sort its table.");
  const hint = document.createElement("p");
  hint.setAttribute("class", "hint");
  hint.textContent = hints.join(" ");
  document.querySelector("h1")?.after(hint);
  for (const header of headers) {
    header.setAttribute("tabindex", "0");
    header.setAttribute("title", "Sort");
    header.addEventListener("click", () => sort(header));
    header.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault(); // Space would scroll the page.
      sort(header);
    });
  }
}

if (typeof window === "object") start();
else module.exports = { describe, key, order, start };
