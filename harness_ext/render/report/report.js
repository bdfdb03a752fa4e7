"use strict";
// The sample browser. Texts of models and documents only ever become text nodes.
(() => {
  const HEIGHT = 72; // of an item of the list, in pixels; as in the style
  const BESIDE = 6; // items that are drawn above and below the visible ones
  const SHORT = 20; // characters; a last line that is shorter is a label such as "Answer:"
  const MOST_WORDS = 2000; // per side of a word diff
  const UNPARSED = 1, CUT = 2, ABSTAINED = 4; // flags of an answer
  const [ID, PROMPT, GOLD, CLASS, UNIT, CHOICES, ANSWERS] = [0, 1, 2, 3, 4, 5, 6]; // of a row
  const [TEXT, SCORE, FLAGS, LOGPROBS, READ] = [0, 1, 2, 3, 4]; // of an answer
  const ACTING = /[__INVISIBLE__]/gu; // characters that are not seen, or that change how others are

  const browser = document.getElementById("browser");
  if (!browser) return;
  const by = (id) => document.getElementById(id);
  const list = by("list"), spacer = by("spacer"), detail = by("detail");
  const state = { set: null, run: 1, kind: "all", class: "", unit: null, query: "", shown: [], at: 0 };
  const sets = new Map();

  // -- elements ----------------------------------------------------------------------------------------------------

  function make(tag, names, ...children) {
    const element = document.createElement(tag);
    if (names) element.className = names;
    element.append(...children);
    return element;
  }

  function draw(tag, attributes) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  }

  function escaped(character) {
    const code = character.codePointAt(0);
    if (code < 256) return "\\x" + code.toString(16).padStart(2, "0");
    return code < 65536 ? "\\u" + code.toString(16).padStart(4, "0") : "\\U" + code.toString(16).padStart(8, "0");
  }

  function addText(parent, text) { // with what cannot be seen made visible; line ends and tabs stay
    let end = 0;
    for (const match of text.matchAll(ACTING)) {
      if (match[0] === "\n" || match[0] === "\t") continue;
      parent.append(text.slice(end, match.index), make("span", "control", escaped(match[0])));
      end = match.index + match[0].length;
    }
    parent.append(text.slice(end));
    return parent;
  }

  const oneLine = (text) => text.replace(/\s+/g, " ").replace(ACTING, escaped).trim();

  function block(text, names) {
    const element = make("pre", "text " + (names || ""));
    element.dir = "auto";
    if (!text) element.append(make("span", "empty", "empty"));
    return addText(element, text);
  }

  // -- data --------------------------------------------------------------------------------------------------------

  async function load(index) {
    if (!sets.has(index)) {
      const packed = atob(by("samples-" + index).textContent);
      const bytes = Uint8Array.from(packed, (character) => character.charCodeAt(0));
      const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
      sets.set(index, JSON.parse(await new Response(stream).text()));
    }
    return sets.get(index);
  }

  const answer = (row, run) => row[ANSWERS][run] || null;

  function kindOf(row) { // of a row, for the chosen run
    const before = answer(row, 0), after = answer(row, state.run);
    if (!before || !after || before[SCORE] === null || after[SCORE] === null) return "unknown";
    const gain = (after[SCORE] - before[SCORE]) * (state.set.higher ? 1 : -1);
    if (gain > 0) return "fixed";
    if (gain < 0) return "broken";
    const isRight = state.set.higher ? after[SCORE] > 0 : after[SCORE] === 0;
    return isRight ? "right" : "wrong";
  }

  const flagged = (row, flag) => [0, state.run].some((run) => answer(row, run) && answer(row, run)[FLAGS] & flag);

  function kinds() {
    const graded = state.set.graded;
    return [
      ["all", "All", () => true],
      ["fixed", graded ? "Better" : "Fixed", (row) => kindOf(row) === "fixed"],
      ["broken", graded ? "Worse" : "Broken", (row) => kindOf(row) === "broken"],
      ["wrong", graded ? "Both 0" : "Both wrong", (row) => kindOf(row) === "wrong"],
      ["right", graded ? "Same" : "Both right", (row) => kindOf(row) === "right"],
      ["unparsed", "Unparsed", (row) => flagged(row, UNPARSED)],
      ["cut", "Truncated", (row) => flagged(row, CUT)],
      ["abstained", "Abstained", (row) => flagged(row, ABSTAINED)],
    ];
  }

  const searched = new WeakMap(); // row -> its text in lower case
  function textOf(row) {
    if (!searched.has(row)) {
      const answers = row[ANSWERS].map((each) => (each ? each[TEXT] + "\n" + (each[READ] || "") : "")).join("\n");
      searched.set(row, (row[ID] + "\n" + row[PROMPT] + "\n" + row[GOLD] + "\n" + answers).toLowerCase());
    }
    return searched.get(row);
  }

  // -- filters -----------------------------------------------------------------------------------------------------

  function update() {
    const query = state.query.trim().toLowerCase();
    const rows = state.set.rows.filter((row) =>
      (state.class === "" || String(row[CLASS]) === state.class) && (state.unit === null || row[UNIT] === state.unit) &&
      (!query || textOf(row).includes(query)));
    const filters = by("filters");
    filters.replaceChildren();
    for (const [name, label, holds] of kinds()) {
      const count = rows.filter(holds).length;
      if (!count && !["all", "fixed", "broken", "wrong"].includes(name)) continue;
      const button = make("button", "", label + " " + count.toLocaleString("en"));
      button.type = "button";
      button.dataset.kind = name;
      button.setAttribute("aria-pressed", String(state.kind === name));
      button.addEventListener("click", () => { state.kind = name; update(); by("filters").querySelector(`[data-kind="${name}"]`)?.focus(); });
      filters.append(button);
    }
    if (state.unit !== null) {
      const button = make("button", "", "Show all passages");
      button.type = "button";
      button.addEventListener("click", () => { state.unit = null; update(); });
      filters.append(button);
    }
    const chosen = kinds().find(([name]) => name === state.kind) || kinds()[0];
    state.shown = rows.filter(chosen[2]);
    state.at = 0;
    list.scrollTop = 0;
    by("count").textContent = `${state.shown.length.toLocaleString("en")} of ${state.set.rows.length.toLocaleString("en")} samples`;
    spacer.style.height = state.shown.length * HEIGHT + "px";
    drawList();
    drawDetail();
  }

  // -- list --------------------------------------------------------------------------------------------------------

  const LABELS = { fixed: "▲ fixed", broken: "▼ broken", wrong: "✕ both wrong", right: "= both right", unknown: "–" };
  const GRADED = { fixed: "▲ better", broken: "▼ worse", wrong: "✕ both 0", right: "= same", unknown: "–" };
  const label = (kind) => (state.set.graded ? GRADED : LABELS)[kind];

  function shortAnswer(row, run) {
    const each = answer(row, run);
    return each ? oneLine(each[TEXT].slice(0, 200)) || "(empty)" : "(none)";
  }

  function endOf(prompt) { // the last line that says something, mostly the question
    const lines = prompt.slice(-4000).split("\n").filter((line) => line.trim());
    return lines.findLast((line) => line.trim().length > SHORT) || lines.at(-1) || "";
  }

  function item(index) {
    const row = state.shown[index], kind = kindOf(row);
    const question = make("div", "question", oneLine(endOf(row[PROMPT]).slice(0, 200)));
    const answers = make("div", "answers", shortAnswer(row, 0) + " → " + shortAnswer(row, state.run));
    question.dir = answers.dir = "auto";
    const top = make("div", "top", make("span", "", "#" + row[ID]), make("span", kind, label(kind)));
    const element = make("div", "item", top, question, answers);
    element.id = "item-" + index;
    element.setAttribute("role", "option");
    element.setAttribute("aria-selected", String(index === state.at));
    element.setAttribute("aria-setsize", String(state.shown.length));
    element.setAttribute("aria-posinset", String(index + 1));
    element.style.top = index * HEIGHT + "px";
    element.addEventListener("click", () => go(index));
    return element;
  }

  function drawList() {
    const first = Math.max(0, Math.floor(list.scrollTop / HEIGHT) - BESIDE);
    const last = Math.min(state.shown.length, Math.ceil((list.scrollTop + list.clientHeight) / HEIGHT) + BESIDE);
    const items = [];
    for (let index = first; index < last; index++) items.push(item(index));
    spacer.replaceChildren(...items);
    if (state.shown.length) list.setAttribute("aria-activedescendant", "item-" + state.at);
    else list.removeAttribute("aria-activedescendant");
  }

  function go(index) {
    state.at = Math.max(0, Math.min(state.shown.length - 1, index));
    const top = state.at * HEIGHT;
    if (top < list.scrollTop) list.scrollTop = top;
    if (top + HEIGHT > list.scrollTop + list.clientHeight) list.scrollTop = top + HEIGHT - list.clientHeight;
    drawList();
    drawDetail();
  }

  const MOVES = {
    ArrowDown: () => state.at + 1, ArrowUp: () => state.at - 1, Home: () => 0, End: () => state.shown.length - 1,
    PageDown: () => state.at + 8, PageUp: () => state.at - 8, j: () => state.at + 1, k: () => state.at - 1,
  };
  list.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Enter") { detail.focus(); event.preventDefault(); }
    if (!MOVES[event.key]) return;
    go(MOVES[event.key]());
    event.preventDefault();
  });
  detail.addEventListener("keydown", (event) => { if (event.key === "Escape") list.focus(); });
  list.addEventListener("scroll", () => requestAnimationFrame(drawList), { passive: true });
  window.addEventListener("resize", () => { if (state.set) drawList(); });

  // -- one sample --------------------------------------------------------------------------------------------------

  function badges(each) {
    const parts = [];
    if (each[SCORE] !== null) parts.push(`${state.set.metric} ${Number((state.set.unit === "share" ? 100 * each[SCORE] : each[SCORE]).toFixed(3))}`);
    if (each[FLAGS] & UNPARSED) parts.push("unparsed");
    if (each[FLAGS] & CUT) parts.push("truncated");
    if (each[FLAGS] & ABSTAINED) parts.push("abstained");
    return parts.map((part) => make("span", "badge", part));
  }

  function words(text) {
    return text.match(/\s+|[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_]/gu) || [];
  }

  function differing(first, second) { // flags of the words that only one side has; null if it would take too long
    let start = 0, ends = [first.length, second.length];
    while (start < ends[0] && start < ends[1] && first[start] === second[start]) start++;
    while (ends[0] > start && ends[1] > start && first[ends[0] - 1] === second[ends[1] - 1]) ends = [ends[0] - 1, ends[1] - 1];
    const a = first.slice(start, ends[0]), b = second.slice(start, ends[1]);
    if (a.length > MOST_WORDS || b.length > MOST_WORDS) return null;
    const width = b.length + 1, longest = new Uint16Array((a.length + 1) * width);
    for (let i = a.length - 1; i >= 0; i--)
      for (let j = b.length - 1; j >= 0; j--)
        longest[i * width + j] = a[i] === b[j] ? longest[(i + 1) * width + j + 1] + 1
          : Math.max(longest[(i + 1) * width + j], longest[i * width + j + 1]);
    const only = [new Uint8Array(first.length), new Uint8Array(second.length)];
    let i = 0, j = 0;
    while (i < a.length || j < b.length) {
      if (i < a.length && j < b.length && a[i] === b[j]) { i++; j++; }
      else if (j >= b.length || (i < a.length && longest[(i + 1) * width + j] >= longest[i * width + j + 1])) only[0][start + i++] = 1;
      else only[1][start + j++] = 1;
    }
    return only;
  }

  function marked(tokens, only, tag) {
    const element = make("pre", "text");
    element.dir = "auto";
    if (!tokens.length) element.append(make("span", "empty", "empty"));
    for (let index = 0; index < tokens.length;) {
      let end = index, text = "";
      while (end < tokens.length && only[end] === only[index]) text += tokens[end++];
      addText(only[index] ? element.appendChild(make(tag, "")) : element, text);
      index = end;
    }
    return element;
  }

  function outputs(row) {
    const pair = [answer(row, 0), answer(row, state.run)], names = [state.set.runs[0], state.set.runs[state.run]];
    const tokens = pair.map((each) => words(each ? each[TEXT] : ""));
    const only = pair.every(Boolean) ? differing(tokens[0], tokens[1]) : null;
    const panes = pair.map((each, side) => {
      const title = make("h4", "");
      title.dir = "auto";
      addText(title, names[side] + " ");
      if (!each) return make("div", "", title, make("p", "empty", "not evaluated on this document"));
      title.append(...badges(each));
      const text = only ? marked(tokens[side], only[side], side ? "ins" : "del") : block(each[TEXT]);
      const pane = make("div", "", title, text);
      if (each[READ] !== null) pane.append(make("h4", "", "read as"), block(each[READ]));
      return pane;
    });
    const parts = [make("div", "pair", ...panes)];
    if (pair.every(Boolean) && pair[0][TEXT] === pair[1][TEXT]) parts.push(make("p", "hint", "Both outputs are the same."));
    else if (pair.every(Boolean) && !only) parts.push(make("p", "hint", "The outputs are too long for a word diff."));
    return parts;
  }

  function logprobs(row) {
    const runs = [0, state.run].filter((run) => answer(row, run) && answer(row, run)[LOGPROBS]);
    if (!row[CHOICES] || !runs.length) return [];
    const head = make("tr", "", scoped("th", "col", "choice"));
    for (const run of runs) head.append(scoped("th", "col", state.set.runs[run]), scoped("th", "col", "log-probability", "num"));
    const body = make("tbody", "");
    row[CHOICES].forEach((choice, index) => {
      const line = make("tr", "", scoped("th", "row", oneLine(choice.slice(0, 300))));
      for (const run of runs) {
        const values = answer(row, run)[LOGPROBS], top = Math.max(...values);
        const total = values.reduce((sum, value) => sum + Math.exp(value - top), 0);
        const share = Math.exp(values[index] - top) / total;
        const bar = draw("svg", { width: "100%", height: "8", "aria-hidden": "true" });
        bar.append(draw("rect", { class: "track", width: "100%", height: "8" }),
          draw("rect", { class: run ? "t-run" : "t-base", width: 100 * share + "%", height: "8" }));
        line.append(make("td", "", bar, make("small", "", (100 * share).toFixed(1) + " %")), make("td", "num", values[index].toFixed(3)));
      }
      body.append(line);
    });
    const table = make("table", "logprobs", make("thead", "", head), body);
    const region = make("div", "scroll", table);
    region.tabIndex = 0;
    region.setAttribute("role", "region");
    region.setAttribute("aria-label", "Log-probabilities of the choices");
    return [make("h4", "", "Choices"), region];
  }

  function scoped(tag, scope, text, names) {
    const element = make(tag, names || "");
    element.scope = scope;
    element.dir = "auto";
    return addText(element, text);
  }

  function drawDetail() {
    detail.replaceChildren();
    detail.scrollTop = 0;
    const row = state.shown[state.at];
    if (!row) {
      detail.append(make("p", "empty", "No sample fits."));
      return;
    }
    const kind = kindOf(row);
    detail.append(make("h3", "", `Document ${row[ID]} `, make("span", kind, label(kind))));
    detail.append(make("h4", "", "Reference"), block(row[GOLD]));
    detail.append(...outputs(row), ...logprobs(row));
    const prompt = make("pre", "text");
    prompt.dir = "auto";
    if (state.set.prefix) addText(prompt.appendChild(make("span", "shared")), state.set.prefix);
    addText(prompt, row[PROMPT]);
    if (!state.set.prefix && !row[PROMPT]) prompt.append(make("span", "empty", "not logged"));
    detail.append(make("h4", "", "Prompt"), prompt);
    const same = row[UNIT] === null || !state.set.repeatedUnits ? 0 : state.set.rows.filter((each) => each[UNIT] === row[UNIT]).length;
    if (same > 1 && state.unit === null) {
      const button = make("button", "", `Show the ${same} samples of this passage`);
      button.type = "button";
      button.addEventListener("click", () => { state.unit = row[UNIT]; state.kind = "all"; update(); list.focus(); });
      detail.append(make("p", "", button));
    }
  }

  // -- controls ----------------------------------------------------------------------------------------------------

  function options(select, pairs) {
    select.replaceChildren(...pairs.map(([value, text]) => {
      const option = make("option", "", oneLine(text));
      option.value = value;
      return option;
    }));
  }

  async function pickTask(index) {
    state.set = await load(index);
    state.run = Math.min(1, state.set.runs.length - 1);
    Object.assign(state, { kind: "all", class: "", unit: null });
    options(by("pick-run"), state.set.runs.map((name, run) => [String(run), name]).slice(state.set.runs.length > 1 ? 1 : 0));
    by("class-label").hidden = state.set.classes.length < 2;
    options(by("pick-class"), [["", "all"], ...state.set.classes.map((name, number) => [String(number), name])]);
    by("selection").textContent = state.set.selection;
    update();
  }

  by("pick-task").addEventListener("change", (event) => pickTask(Number(event.target.value)));
  by("pick-run").addEventListener("change", (event) => { state.run = Number(event.target.value); update(); });
  by("pick-class").addEventListener("change", (event) => { state.class = event.target.value; update(); });
  let waiting = 0;
  by("query").addEventListener("input", (event) => {
    clearTimeout(waiting);
    waiting = setTimeout(() => { state.query = event.target.value; update(); }, 120);
  });
  browser.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
  const printed = [];
  window.addEventListener("beforeprint", () => {
    for (const each of document.querySelectorAll("details:not([open])")) { each.open = true; printed.push(each); }
  });
  window.addEventListener("afterprint", () => { while (printed.length) printed.pop().open = false; });
  browser.hidden = false;
  by("no-script").remove();
  pickTask(0).catch(() => {
    browser.replaceChildren(make("p", "missing", "The samples in this file cannot be read; is the file complete?"));
  });
})();
