"use strict";
const $ = (id) => document.getElementById(id);

// The only way in which the text of rows gets into the page: as a text node, never as markup.
function el(tag, { text, on, ...attributes } = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value) node.setAttribute(name, value);
  if (text !== undefined && text !== null) node.textContent = text;
  if (on) node.addEventListener("click", on);
  node.append(...children.filter(Boolean));
  return node;
}

const BAD = ["attack_success", "compromised", "benign_failure", "bad"], GOOD = ["correct", "refusal", "resisted", "benign_success", "good"];

function badge(name, attributes = {}) {
  const color = BAD.includes(name) ? " bad" : GOOD.includes(name) ? " good" : "";
  return el("span", { class: "badge" + color, text: name, ...attributes });
}

// Spans are in code points, as in Python; JavaScript strings are indexed by UTF-16 units.
function marked(text, spans) {
  const pre = el("pre"), points = Array.from(text);
  let at = 0;
  for (const { start, end } of [...spans].sort((a, b) => a.start - b.start)) {
    pre.append(points.slice(at, start).join(""), el("mark", { text: points.slice(start, end).join("") }));
    at = end;
  }
  pre.append(points.slice(at).join(""));
  return pre;
}

// A completion with its special tokens highlighted.
function raw(text, attributes = {}) {
  const pre = el("pre", attributes);
  for (const piece of text.split(/(<\|[a-z_]+\|>)/)) pre.append(/^<\|[a-z_]+\|>$/.test(piece) ? el("span", { class: "special", text: piece }) : piece);
  return pre;
}

function turn(message, index, row) {
  const spans = (row.injection || []).filter((span) => span.message === index);
  return el("div", { class: "turn " + message.role },
    el("b", { text: [message.role, message.name, message.tool_call_id].filter(Boolean).join(" \u00b7 ") }),
    marked(message.content || "", spans),
    ...(message.tool_calls || []).map((call) => el("pre", { text: `\u2192 ${call.function.name}(${call.function.arguments})` })));
}

function pairs(values) {
  return el("table", { class: "pairs" }, ...Object.entries(values).filter(([, value]) => value !== null && value !== undefined && value !== "")
    .map(([name, value]) => el("tr", {}, el("td", { text: name }), el("td", { text: typeof value === "object" ? JSON.stringify(value) : String(value) }))));
}

// Buttons with bars for the values of each facet. `counts` is { facet: { value: number of rows } }.
function facetButtons(counts, selected, filter) {
  return Object.entries(counts).flatMap(([facet, values]) => {
    const most = Math.max(...Object.values(values));
    return [el("h3", { text: facet }), ...Object.entries(values).map(([value, number]) => {
      const bar = el("span", { class: "bar" });
      bar.style.width = `${(100 * number) / most}%`;
      const on = selected[facet] === value;
      return el("button", { class: on ? "facet on" : "facet", title: value, on: () => filter(facet, on ? undefined : value) },
        bar, el("span", { text: value || "none" }), el("span", { text: number.toLocaleString("en") }));
    })];
  });
}

// Keyboard shortcuts, which are off in text fields; Escape leaves a text field.
function onKeys(keys) {
  document.addEventListener("keydown", (event) => {
    const typing = ["INPUT", "TEXTAREA", "SELECT"].includes(event.target.tagName);
    if (typing && event.key === "Escape") event.target.blur();
    if (typing || event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });
}
