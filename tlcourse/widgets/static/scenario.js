// Four questions about source and target name the setting, and light up the methods that fit.

/** Each question: its name in the state, the question, what it means, and its two signs in a case. */
const QUESTIONS = [
  ["same_domain", "Do the domains agree?", " Are inputs of one kind?", "=≠"],
  ["same_task", "Do the tasks agree?", " Is the same thing asked of them?", "=≠"],
  ["source_labels", "Has the source labels?", "", "+-"],
  ["target_labels", "Has the target labels?", "", "+-"],
];

/** Four answers as a case: yes to the first two is "=", to the others "+". */
export const caseOf = (answers) => answers.map((yes, i) => QUESTIONS[i][3][yes ? 0 : 1]).join("");

/** The setting of a case, and whether only we call it so. */
export function settingOf(settings, key) {
  const setting = settings.find(({ table, ours }) => [...table, ...ours].includes(key));
  return { ...setting, ourReading: setting.ours.includes(key) };
}

/** "a", "a and b", "a, b and c". */
export const listed = (words) => words.join(", ").replace(/, ([^,]*)$/, " and $1");

/** Where another notebook is from here: in Jupyter it lies beside this one; of a page the host knows whether its page does, or null. */
const addressOf = (notebook) => (globalThis.tlcourseHost ? globalThis.tlcourseHost.pageOf(notebook) : encodeURI(notebook));

const SIZES = [13, 13, 8], ROUND = [true, false, true]; // of the three inputs that are drawn
const ASKED = [["which shape?", ["round", "square", "round"]], ["which size?", ["large", "large", "small"]]];
const W = 330, H = 152, PANEL = 140;

function render({ model, el, signal }) {
  const id = unique("scenario"), voice = speaker(), put = setter(model);
  const root = html("section", { class: "tlc tlc-scenario", role: "group", "aria-label": "Which setting is this?" });
  const inputs = new Map(), questions = html("div", { class: "tlc-questions" });
  for (const [name, question, meaning] of QUESTIONS) {
    const both = [true, false].map((value) => {
      const input = html("input", { type: "radio", name: `${id}-${name}`, id: `${id}-${name}-${value ? "yes" : "no"}` });
      input.addEventListener("change", () => put({ [name]: value }), { signal });
      return input;
    });
    inputs.set(name, both);
    const choices = both.map((input, i) => html("span", { class: "tlc-nowrap" }, input, html("label", { for: input.id }, i ? "no" : "yes")));
    const legend = html("legend", {}, question);
    if (meaning) legend.append(html("span", { class: "tlc-meaning" }, meaning));
    questions.append(html("fieldset", {}, legend, html("div", { class: "tlc-row" }, ...choices)));
  }
  const drawing = svg("svg", { viewBox: `0 0 ${W} ${H}`, class: "tlc-panel", role: "img" });
  const name = html("strong"), whose = html("span", { class: "tlc-whose" }), why = html("p"), count = html("p", { class: "tlc-count" });
  const list = html("ul", { class: "tlc-methods" });
  root.append(html("div", { class: "tlc-columns" }, questions, html("div", { class: "tlc-pair" }, drawing)),
    html("div", { class: "tlc-setting" }, html("p", { class: "tlc-named" }, name, " ", whose), why), count, list, voice.node);
  el.append(root);

  let items = [];
  function build() {
    items = model.get("methods").map((method) => {
      const fits = html("span", { class: "tlc-unseen" }), mark = html("span", { class: "tlc-tick-mark", "aria-hidden": "true" });
      const node = html("li", {}, mark, html("div", {}, named(method), fits, html("div", { class: "tlc-matches" }, `matches ${method.matches}`)));
      return { method, node, fits, mark };
    });
    list.replaceChildren(...items.map(({ node }) => node));
    update();
  }

  /** A method's name, which leads to its chapter where there is one to go to. */
  function named({ name, chapter, notebook, written }) {
    const here = notebook === model.get("here"), address = written && !here && addressOf(notebook);
    const title = html(address ? "a" : "span", { class: "tlc-method" }, name);
    if (address) title.setAttribute("href", address);
    if (address && !globalThis.tlcourseHost) for (const [key, value] of [["target", "_blank"], ["rel", "noopener"], ["title", "opens in a tab of its own"]]) title.setAttribute(key, value);
    return html("div", {}, title, html("span", { class: "tlc-chapter" }, here ? " this chapter" : ` chapter\u00a0${chapter}${written ? "" : ", to\u00a0come"}`));
  }

  function update() {
    const answers = QUESTIONS.map(([name]) => model.get(name)), setting = settingOf(model.get("settings"), caseOf(answers));
    QUESTIONS.forEach(([name], i) => inputs.get(name).forEach((input, no) => (input.checked = answers[i] !== Boolean(no))));
    const fitting = [];
    for (const { method, node, fits, mark } of items) {
      const yes = method.fits.includes(setting.name);
      node.className = yes ? "tlc-lit" : "tlc-unlit";
      mark.textContent = yes ? "✓" : "–";
      fits.textContent = yes ? ", fits" : ", does not fit";
      if (yes) fitting.push(method.name);
    }
    name.textContent = setting.name[0].toUpperCase() + setting.name.slice(1);
    whose.textContent = setting.ourReading ? "our reading: Pan and Yang have no such case" : "Pan and Yang 2010";
    why.textContent = setting.why;
    count.textContent = fitting.length ? `Methods of this course that fit: ${fitting.length} of ${items.length}` : "No method of this course fits.";
    draw(answers);
    voice.say(`${name.textContent}. ${setting.why} ${fitting.length ? `Fitting: ${listed(fitting)}.` : count.textContent}`);
  }

  /** Two panels: inputs, what is asked of them, and the answers that are known. */
  function draw([domain, task, source, target]) {
    const [shape, size] = ASKED, sides = [["source", 0, true, shape, source], ["target", W - PANEL, domain, task ? shape : size, target]];
    const words = sides.map(([side, , filled, [question], labels]) => `${side}: ${filled ? "filled" : "outlined"} shapes, ${question} ${labels ? "With" : "Without"} labels`);
    drawing.setAttribute("aria-label", `${words.join(". ")}.`);
    drawing.replaceChildren(...sides.map(panel), ...[["domain", 48, domain], ["task", 98, task]].flatMap(([word, y, same]) => [
      svg("text", { class: "tlc-between", x: W / 2, y: y - 10 }, word), svg("text", { class: `tlc-sign${same ? "" : " tlc-differs"}`, x: W / 2, y: y + 12 }, same ? "=" : "≠")]));
  }

  function panel([side, left, filled, [question, answers], labels]) {
    const middle = left + PANEL / 2, node = svg("g", { "aria-hidden": "true" },
      svg("rect", { class: "tlc-box", x: left + 1, y: 1, width: PANEL - 2, height: H - 2, rx: 8 }), svg("text", { class: "tlc-side", x: middle, y: 20 }, side), svg("text", { class: "tlc-between", x: middle, y: 103 }, question));
    answers.forEach((answer, i) => {
      const x = left + 26 + 44 * i, r = SIZES[i], look = { class: filled ? "tlc-filled" : "tlc-outlined" };
      node.append(ROUND[i] ? svg("circle", { ...look, cx: x, cy: 56, r }) : svg("rect", { ...look, x: x - r, y: 56 - r, width: 2 * r, height: 2 * r }),
        svg("rect", { class: labels ? "tlc-label" : "tlc-no-label", x: x - 21, y: 116, width: 42, height: 21, rx: 4 }), svg("text", { class: "tlc-answer", x, y: 130.5 }, labels ? answer : "?"));
    });
    return node;
  }

  keepKeys(root, signal);
  const stops = [watch(model, QUESTIONS.map(([name]) => name), update), watch(model, ["settings", "methods", "here"], build)];
  build();
  return () => (voice.hush(), stops.forEach((stop) => stop()));
}

export default { render };
