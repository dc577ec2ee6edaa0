// Predict first, then look: a question, the learner's answer with a reason, and what was measured.

const W = 480, H = 74, EDGE = 24;

/** A round range that holds all of these numbers, with some air. */
export function span(numbers) {
  const low = Math.min(...numbers), high = Math.max(...numbers);
  const air = (high - low) * 0.12 || Math.abs(low) * 0.5 || 1;
  return [low >= 0 ? Math.max(0, low - air) : low - air, high + air];
}

/** What the reveal says first. */
export function verdict(state) {
  const { choices, choice, number, answer, low, high, unit } = state;
  if (choices.length) return choice === answer ? "As you predicted." : `You predicted: ${choice}. Measured: ${answer}.`;
  const measured = low === high ? `${answer} ${unit}` : `${answer} ${unit} (${low} to ${high})`;
  return number >= low && number <= high ? `Your ${number} is within what was measured: ${measured}.` : `You predicted ${number}. Measured: ${measured}.`;
}

const STATE = ["question", "choices", "unit", "choice", "number", "because", "sure", "revealed", "answer", "low", "high", "why", "surprise"];

function render({ model, el, signal }) {
  const id = unique("prediction"), voice = speaker(), put = setter(model);
  const state = () => Object.fromEntries(STATE.map((name) => [name, model.get(name)]));
  const root = html("section", { class: "tlc tlc-prediction", role: "group", "aria-label": "Prediction" });
  const answers = html("fieldset", { class: "tlc-answers" });
  const because = html("textarea", { id: `${id}-because`, rows: "2" });
  const sure = html("input", { type: "range", id: `${id}-sure`, min: "0", max: "100", step: "10" });
  const percent = html("strong", { class: "tlc-value", "aria-hidden": "true" });
  const reveal = html("button", { type: "button", class: "tlc-main" }, "Reveal");
  const result = html("div", { class: "tlc-result", tabindex: "-1" });
  const heading = html("p", { class: "tlc-verdict" }), picture = html("div"), reason = html("p");
  const surprise = html("textarea", { id: `${id}-surprise`, rows: "2" });
  result.append(heading, picture, reason, html("label", { for: surprise.id }, "What surprised you?"), surprise);
  root.append(answers,
    html("label", { for: because.id }, "Because …"), because,
    html("div", { class: "tlc-row" }, html("label", { for: sure.id }, "How sure are you?"), sure, percent, reveal),
    result, voice.node);
  el.append(root);

  let inputs = [];
  function build() {
    const { question, choices, unit } = state();
    const legend = html("legend", {}, question);
    if (choices.length) {
      inputs = choices.map((text) => {
        const input = html("input", { type: "radio", name: `${id}-choice`, value: text });
        input.addEventListener("change", () => put({ choice: text }), { signal });
        return input;
      });
      answers.replaceChildren(legend, ...inputs.map((input) => html("label", { class: "tlc-choice" }, input, ` ${input.value}`)));
    } else {
      const input = html("input", { type: "number", id: `${id}-number`, step: "any" });
      input.addEventListener("input", () => put({ number: input.value === "" ? null : Number(input.value) }), { signal });
      inputs = [input];
      answers.replaceChildren(legend, html("label", { for: input.id }, "Your number "), input, html("span", {}, ` ${unit}`));
    }
    update();
  }

  function update() {
    const now = state(), made = now.choices.length ? now.choice !== "" : now.number !== null;
    for (const input of inputs) {
      if (input.type === "radio") input.checked = input.value === now.choice;
      else if (input.value === "" ? now.number !== null : Number(input.value) !== now.number) input.value = now.number ?? "";
      input.disabled = now.revealed;
    }
    for (const [field, text] of [[because, now.because], [surprise, now.surprise]]) if (field.value !== text) field.value = text;
    sure.value = String(now.sure);
    sure.setAttribute("aria-valuetext", `${now.sure} percent sure`);
    percent.textContent = `${now.sure} %`;
    because.disabled = sure.disabled = now.revealed;
    reveal.disabled = !made || now.revealed;
    result.hidden = !now.revealed;
    if (now.revealed) show(now);
  }

  function show(now) {
    heading.textContent = verdict(now);
    reason.textContent = now.why;
    picture.replaceChildren(...(now.choices.length ? [] : [scale(now)]));
  }

  function scale({ number, answer, low, high, unit }) {
    const [from, to] = span([number, Number(answer), low, high]);
    const x = (v) => EDGE + ((v - from) / (to - from)) * (W - 2 * EDGE);
    const drawing = svg("svg", { viewBox: `0 0 ${W} ${H}`, class: "tlc-scale", role: "img", "aria-label": verdict(state()) });
    const side = (v) => (x(v) < W * 0.2 ? "start" : x(v) > W * 0.8 ? "end" : "middle");
    drawing.append(
      svg("line", { class: "tlc-axis", x1: EDGE, x2: W - EDGE, y1: 37, y2: 37 }),
      svg("line", { class: "tlc-interval", x1: x(low), x2: x(high), y1: 37, y2: 37 }),
      svg("circle", { class: "tlc-measured", cx: x(Number(answer)), cy: 37, r: 6 }),
      svg("path", { class: "tlc-yours", d: `M ${x(number)} 30 l -7 -11 h 14 z` }),
      svg("text", { x: x(number), y: 13, "text-anchor": side(number) }, `you: ${number}`),
      svg("text", { x: x(Number(answer)), y: 62, "text-anchor": side(Number(answer)) }, `measured: ${answer} ${unit}`));
    return drawing;
  }

  because.addEventListener("input", () => put({ because: because.value }), { signal });
  surprise.addEventListener("input", () => put({ surprise: surprise.value }), { signal });
  sure.addEventListener("input", () => put({ sure: Number(sure.value) }), { signal });
  reveal.addEventListener("click", () => {
    put({ revealed: true });
    result.focus(); // the button is disabled now; go on with what it showed
    voice.say(`${verdict(state())} ${model.get("why")}`);
  }, { signal });
  keepKeys(root, signal);
  const stops = [watch(model, ["question", "choices", "unit"], build), watch(model, STATE.slice(3), update)];
  build();
  return () => (voice.hush(), stops.forEach((stop) => stop()));
}

export default { render };
