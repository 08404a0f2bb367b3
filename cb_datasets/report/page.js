/* rows.js */
const { models, kinds, turns, prompts } = JSON.parse($("data").textContent);
const state = { model: models[1], wanted: {}, q: "", shown: [], at: 0 };
const ROW_HEIGHT = 54;

const change = (prompt) => prompt.change[state.model];
const FACETS = {
  change: (prompt) => change(prompt).kind,
  outcomes: (prompt) => `${prompt.answers.base.outcome} \u2192 ${prompt.answers[state.model].outcome}`,
  task: (prompt) => prompt.task,
  family: (prompt) => prompt.family || "",
  source: (prompt) => prompt.source || "",
};

// Which prompts hold the text that is sought; every turn is looked through once, however many prompts share it.
function sought(q) {
  const has = (text) => (text || "").toLowerCase().includes(q);
  const found = turns.map((message) => has(message.content) || (message.tool_calls || []).some((call) => has(call.function.name + call.function.arguments)));
  return (prompt) => has(prompt.id) || prompt.turns.some((at) => found[at]) || Object.values(prompt.answers).some((answer) => has(answer.text));
}

function select() {
  const matches = state.q ? sought(state.q.toLowerCase()) : () => true;
  const wanted = Object.entries(state.wanted);
  state.shown = prompts.filter((prompt) => wanted.every(([facet, value]) => FACETS[facet](prompt) === value) && matches(prompt));
  // What got worse comes first, and of that what got worst.
  const order = (prompt) => kinds.indexOf(change(prompt).kind) * 100 + change(prompt).by;
  state.shown.sort((a, b) => order(a) - order(b));
}

function count() {
  const counts = {};
  for (const [facet, of] of Object.entries(FACETS)) {
    const values = {};
    for (const prompt of state.shown) values[of(prompt)] = (values[of(prompt)] || 0) + 1;
    const rank = (value) => (facet === "change" ? kinds.indexOf(value) : -values[value]);
    counts[facet] = Object.fromEntries(Object.keys(values).sort((a, b) => rank(a) - rank(b)).map((value) => [value, values[value]]));
  }
  $("facets").replaceChildren(...facetButtons(counts, state.wanted, filter));
}

function filter(facet, value) {
  if (value === undefined) delete state.wanted[facet]; else state.wanted[facet] = value;
  refresh();
}

function refresh() {
  select();
  count();
  $("total").textContent = `${state.shown.length.toLocaleString("en")} of ${prompts.length.toLocaleString("en")} prompts`;
  $("all").style.height = `${state.shown.length * ROW_HEIGHT}px`;
  $("rows").scrollTop = 0;
  show(0);
}

const CHANGE_MARK = { regressed: "bad", improved: "good" };
const changeBadge = (prompt) => el("span", { class: "badge " + (CHANGE_MARK[change(prompt).kind] || ""), text: change(prompt).kind });

// Only the rows in view are on the page, however many there are.
function list() {
  const first = Math.max(0, Math.floor($("rows").scrollTop / ROW_HEIGHT) - 5), number = Math.ceil($("rows").clientHeight / ROW_HEIGHT) + 10;
  $("all").replaceChildren(...state.shown.slice(first, first + number).map((prompt, index) => {
    const at = first + index;
    const button = el("button", { class: at === state.at ? "on" : "", on: () => show(at) },
      changeBadge(prompt), el("span", { text: FACETS.outcomes(prompt) }), el("small", { text: prompt.id }));
    button.style.top = `${at * ROW_HEIGHT}px`;
    return button;
  }));
}

function answered(prompt, model) {
  const { text, outcome, gibberish, arguments_match: match } = prompt.answers[model];
  const prefill = prompt.target?.prefill || "", begun = prefill && (text || "").startsWith(prefill);
  const pre = raw(begun ? text.slice(prefill.length) : text || "");
  if (begun) pre.prepend(el("span", { class: "given", title: "put into its mouth", text: prefill }));
  return el("div", { class: "turn answer" + (model === state.model ? " on" : ""), "data-model": model },
    el("b", { text: model + " " }), badge(outcome), gibberish && el("span", { class: "badge bad", text: "gibberish" }),
    match === true && el("span", { class: "badge good", text: "right arguments" }), match === false && el("span", { class: "badge bad", text: "wrong arguments" }),
    text === null ? el("p", { text: "The engine gave no answer." }) : pre);
}

function show(at) {
  const prompt = state.shown[at];
  state.at = at;
  if (!prompt) { $("row").replaceChildren(el("p", { text: "No prompts." })); list(); return; }
  const target = prompt.target || {};
  $("row").replaceChildren(
    el("div", {}, changeBadge(prompt), el("span", { class: "badge", text: prompt.task }), el("a", { href: "#id=" + encodeURIComponent(prompt.id), id: "link", text: prompt.id })),
    el("div", { class: "answers" }, ...models.map((model) => answered(prompt, model))),
    pairs({ expected: target.expected_tool, simulated: target.simulated_tool, "expected calls": target.expected_calls, "goal calls": target.goal_calls,
      family: prompt.family, category: prompt.category, subtype: prompt.subtype, source: prompt.source }),
    ...prompt.turns.map((number, index) => turn(turns[number], index, prompt)));
  $("row").scrollTop = 0;
  // Into view in its own list; `scrollIntoView` would move the page too.
  const rows = $("rows"), top = at * ROW_HEIGHT;
  if (top < rows.scrollTop) rows.scrollTop = top;
  if (top + ROW_HEIGHT > rows.scrollTop + rows.clientHeight) rows.scrollTop = top + ROW_HEIGHT - rows.clientHeight;
  list();
}

function step(by) {
  const at = state.at + by;
  if (at >= 0 && at < state.shown.length) show(at);
  $("prompts").scrollIntoView();
}

// The address may name a prompt, which is then shown, whatever is filtered.
function open() {
  if (!location.hash.startsWith("#id=")) return;
  const id = decodeURIComponent(location.hash.slice(4)), found = () => state.shown.findIndex((prompt) => prompt.id === id);
  if (found() < 0) {
    Object.assign(state, { wanted: {}, q: "" });
    $("search").value = "";
    refresh();
  }
  if (found() >= 0) { show(found()); $("prompts").scrollIntoView(); }
}

onKeys({ j: () => step(1), k: () => step(-1), "/": () => $("search").focus() });
$("rows").addEventListener("scroll", list);
$("search").addEventListener("input", (event) => { state.q = event.target.value; refresh(); });
$("model").addEventListener("change", (event) => { state.model = event.target.value; state.wanted = {}; refresh(); });
window.addEventListener("hashchange", open);
window.addEventListener("resize", list);

$("model").append(...models.slice(1).map((model) => el("option", { value: model, text: model })));
refresh();
open();
