// Copyright 2026 The soupjax Authors
// SPDX-License-Identifier: Apache-2.0
// Runs the script of a page on a small model of its document, without a
// browser. Usage: node dom.js PAGE.js < TREE.json, prints JSON.
"use strict";

class Node {
  constructor(tag, attributes = {}, childNodes = []) {
    Object.assign(this, { tag, attributes, childNodes: [] });
    Object.assign(this, { style: {}, listeners: {}, offsetWidth: 9 });
    this.offsetHeight = 9;
    this.append(...childNodes);
  }
  static of(tree) {
    if (typeof tree === "string") return tree;
    return new Node(tree[0], tree[1], tree[2].map(Node.of));
  }
  get children() { return this.childNodes.filter((n) => n.tag !== "#text"); }
  get textContent() {
    return this.text ?? this.childNodes.map((n) => n.textContent).join("");
  }
  set textContent(value) { this.childNodes = []; this.append(value); }
  getAttribute(name) { return this.attributes[name] ?? null; }
  setAttribute(name, value) { this.attributes[name] = value; }
  removeAttribute(name) { delete this.attributes[name]; }
  insert(nodes, atEnd) {
    nodes = nodes.map((node) => {
      if (typeof node === "string") {
        return Object.assign(new Node("#text"), { text: node });
      }
      if (node.parentNode) {
        const siblings = node.parentNode.childNodes;
        siblings.splice(siblings.indexOf(node), 1);
      }
      return node;
    });
    for (const node of nodes) node.parentNode = this;
    this.childNodes.splice(atEnd ? this.childNodes.length : 0, 0, ...nodes);
  }
  append(...nodes) { this.insert(nodes, true); }
  prepend(...nodes) { this.insert(nodes, false); }
  after(...nodes) {
    const siblings = this.parentNode.childNodes;
    siblings.splice(siblings.indexOf(this) + 1, 0, ...nodes);
  }
  is(word) {
    return word[0] === "[" ? word.slice(1, -1) in this.attributes : word === this.tag;
  }
  closest(word) {
    for (let n = this; n; n = n.parentNode) if (n.is(word)) return n;
    return null;
  }
  querySelectorAll(selector) {
    const [last, above] = selector.split(" ").reverse();
    return this.children.flatMap((n) => [
      ...(n.is(last) && (!above || n.closest(above)) ? [n] : []),
      ...n.querySelectorAll(selector),
    ]);
  }
  querySelector(selector) { return this.querySelectorAll(selector)[0] ?? null; }
  addEventListener(type, f) { (this.listeners[type] ??= []).push(f); }
  dispatch(type, more = {}) {
    const event = { target: this, clientX: 0, clientY: 0, ...more };
    for (let n = this; n; n = n.parentNode) {
      for (const f of n.listeners[type] ?? []) f(event);
    }
  }
}

const tree = JSON.parse(require("fs").readFileSync(0, "utf-8"));
const document = new Node("#document", {}, [Node.of(tree)]);
document.createElement = (tag) => new Node(tag);
document.elementsFromPoint = () => [];
const everything = (n) => [n, ...n.children.flatMap(everything)];
document.getElementById = (id) =>
  everything(document).find((n) => n.getAttribute("id") === id) ?? null;
document.body = document.querySelector("body");
Object.assign(globalThis, { document, innerWidth: 800, innerHeight: 600 });
const { start, key, order } = require(process.argv[2]);
start();

const tip = document.getElementById("tip");
const pointed = document.querySelectorAll("[data-model]").map((point) => {
  (point.children[0] ?? point).dispatch("pointerover");
  return [+point.getAttribute("data-model"), tip.hidden ? "" : tip.textContent];
});
document.body.dispatch("pointerover");
const left = tip.hidden;

// Names of the rows after one and two clicks on each header.
const tables = document.querySelectorAll("table").map((table) =>
  table.querySelectorAll("thead th").map((header) =>
    [1, 2].map(() => {
      header.dispatch("click");
      const rows = table.querySelector("tbody").children;
      return rows.map((row) => row.children[0].textContent);
    }),
  ),
);

// Groups of the members that are hidden while one group is off.
const switches = document.querySelectorAll("figure").map((figure) =>
  Object.fromEntries(
    figure.querySelectorAll("label").map((label) => {
      const box = label.children[0];
      box.checked = false;
      box.dispatch("change");
      const members = figure.querySelectorAll("[data-groups]");
      const hidden = members.filter((m) => m.style.display === "none");
      box.checked = true;
      box.dispatch("change");
      const shown = members.every((m) => !m.style.display);
      const names = hidden.map((m) => JSON.parse(m.getAttribute("data-groups")));
      return [label.textContent.trim(), shown ? names : "not shown again"];
    }),
  ),
);
const texts = ["96.0", "\u22121.0", "~+0.5 [-0.1, 1.1]", "up to 4\u00d7", "a", ""];
const keys = texts.map(key);
const orders = [false, true].map((down) => order([3, null, "b", 1, "a"], down));
console.log(JSON.stringify({ pointed, left, tables, switches, keys, orders }));
