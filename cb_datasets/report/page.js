/* rows.js */
const { models, changes, turns, prompts } = JSON.parse($("data").textContent);
// `model` is compared with the base model, `shown` are the filtered prompts, `at` is the open one's index in them.
const state = { model: models[1], selected: {}, q: "", shown: [], at: 0 };
const ROW_HEIGHT = 54;

const comparison = (prompt) => prompt.comparison[state.model];
const FACETS = {
  change: (prompt) => comparison(prompt).change,
  outcomes: (prompt) => `${prompt.answers.base.outcome} \u2192 ${prompt.answers[state.model].outcome}`,
  task: (prompt) => prompt.task,
  family: (prompt) => prompt.family || "",
  place: (prompt) => prompt.place || "",
  turn: (prompt) => prompt.turn,
  source: (prompt) => prompt.source || "",
};

// Returns whether a prompt contains the text. Each turn is searched once, however many prompts share it.
function searcher(q) {
  const has = (text) => (text || "").toLowerCase().includes(q);
  const matches = turns.map((message) => has(message.content) || (message.tool_calls || []).some((call) => has(call.function.name + call.function.arguments)));
  const any = (indices) => (indices || []).some((index) => matches[index]);
  return (prompt) => has(prompt.id) || any(prompt.turns) || Object.values(prompt.answers).some((answer) => has(answer.text) || any(answer.turns));
}

function filterPrompts() {
  const matches = state.q ? searcher(state.q.toLowerCase()) : () => true;
  const selected = Object.entries(state.selected);
  state.shown = prompts.filter((prompt) => selected.every(([facet, value]) => FACETS[facet](prompt) === value) && matches(prompt));
  // Regressions first, the largest at the top. Differences are far below 100, so they sort within a change only.
  const order = (prompt) => changes.indexOf(comparison(prompt).change) * 100 + comparison(prompt).difference;
  state.shown.sort((a, b) => order(a) - order(b));
}

function countFacets() {
  const counts = {};
  for (const [facet, valueOf] of Object.entries(FACETS)) {
    const values = {};
    for (const prompt of state.shown) values[valueOf(prompt)] = (values[valueOf(prompt)] || 0) + 1;
    const rank = (value) => (facet === "change" ? changes.indexOf(value) : -values[value]);
    counts[facet] = Object.fromEntries(Object.keys(values).sort((a, b) => rank(a) - rank(b)).map((value) => [value, values[value]]));
  }
  $("facets").replaceChildren(...facetButtons(counts, state.selected, filter));
}

function filter(facet, value) {
  if (value === undefined) delete state.selected[facet]; else state.selected[facet] = value;
  refresh();
}

function refresh() {
  filterPrompts();
  countFacets();
  $("total").textContent = `${state.shown.length.toLocaleString("en")} of ${prompts.length.toLocaleString("en")} prompts`;
  $("all").style.height = `${state.shown.length * ROW_HEIGHT}px`;
  $("rows").scrollTop = 0;
  show(0);
}

const CHANGE_COLOR = { regressed: "bad", improved: "good" };
const changeBadge = (prompt) => el("span", { class: "badge " + (CHANGE_COLOR[comparison(prompt).change] || ""), text: comparison(prompt).change });

// Only the visible rows are in the document, so that thousands of prompts stay fast.
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

// A live run: the whole conversation, from the user's request on, with the injection marked.
function conversationBox(answer, model) {
  const hits = Object.entries(answer.hits).filter(([, hit]) => hit).map(([name]) => el("span", { class: "badge", text: name }));
  return el("div", { class: "turn answer" + (model === state.model ? " on" : ""), "data-model": model },
    el("b", { text: model + " " }), badge(answer.outcome), ...hits,
    ...answer.turns.map((number, position) => turns[number].role !== "system" && turn(turns[number], position, answer)));
}

function completionBox(prompt, model) {
  if (prompt.answers[model].turns) return conversationBox(prompt.answers[model], model);
  const { text, outcome, gibberish, arguments_match: match, reported, second_step: second } = prompt.answers[model];
  const prefill = prompt.target?.prefill || "", prefilled = prefill && (text || "").startsWith(prefill);
  const pre = raw(prefilled ? text.slice(prefill.length) : text || "");
  if (prefilled) pre.prepend(el("span", { class: "prefill", title: "prefilled, not generated", text: prefill }));
  return el("div", { class: "turn answer" + (model === state.model ? " on" : ""), "data-model": model },
    el("b", { text: model + " " }), badge(outcome), gibberish && el("span", { class: "badge bad", text: "gibberish" }),
    match === true && el("span", { class: "badge good", text: "right arguments" }), match === false && el("span", { class: "badge bad", text: "wrong arguments" }),
    reported === true && el("span", { class: "badge good", text: "instruction reported" }),
    text === null ? el("p", { text: prompt.task === "live" ? "No finished run." : "No completion: the prompt is too long." }) : pre,
    ...(second ? [el("b", { text: "second step " }), badge(second.outcome), raw(second.text || "")] : []));
}

function show(at) {
  const prompt = state.shown[at];
  state.at = at;
  if (!prompt) { $("row").replaceChildren(el("p", { text: "No prompts." })); list(); return; }
  const target = prompt.target || {};
  $("row").replaceChildren(
    el("div", {}, changeBadge(prompt), el("span", { class: "badge", text: prompt.task }), el("a", { href: "#id=" + encodeURIComponent(prompt.id), id: "link", text: prompt.id })),
    el("div", { class: "answers" }, ...models.map((model) => completionBox(prompt, model))),
    pairs({ expected: target.expected_tool, simulated: target.simulated_tool, "expected calls": target.expected_calls, "goal calls": target.goal_calls,
      family: prompt.family, place: prompt.place, repetition: prompt.repetition, turn: prompt.turn, category: prompt.category, subtype: prompt.subtype, source: prompt.source }),
    ...prompt.turns.map((number, position) => turn(turns[number], position, prompt)));
  $("row").scrollTop = 0;
  // Scroll the list only; `scrollIntoView` would scroll the whole page as well.
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

// Opens the prompt that the address links to. Filters that hide it are cleared.
function openLinked() {
  if (!location.hash.startsWith("#id=")) return;
  const id = decodeURIComponent(location.hash.slice(4)), position = () => state.shown.findIndex((prompt) => prompt.id === id);
  if (position() < 0) {
    Object.assign(state, { selected: {}, q: "" });
    $("search").value = "";
    refresh();
  }
  if (position() >= 0) { show(position()); $("prompts").scrollIntoView(); }
}

onKeys({ j: () => step(1), k: () => step(-1), "/": () => $("search").focus() });
$("rows").addEventListener("scroll", list);
$("search").addEventListener("input", (event) => { state.q = event.target.value; refresh(); });
$("model").addEventListener("change", (event) => { state.model = event.target.value; state.selected = {}; refresh(); });
window.addEventListener("hashchange", openLinked);
window.addEventListener("resize", list);

$("model").append(...models.slice(1).map((model) => el("option", { value: model, text: model })));
refresh();
openLinked();
