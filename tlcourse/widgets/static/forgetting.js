// How the accuracy on every task goes while one is learnt after the other, for several ways of learning and a weight on a grid.

/** R[i][j]: what is true of task j at the last point of task i. points: rows of accuracies; starts: the first point of each task. */
export const matrix = (points, starts) => starts.map((_, i) => points[(i + 1 < starts.length ? starts[i + 1] : points.length) - 1]);

/** Mean over all tasks at the end. */
export const averageAccuracy = (R) => R.at(-1).reduce((a, b) => a + b, 0) / R.length;

/** From the best before the last task to the end, mean over all tasks but the last. */
export function forgetting(R) {
  const T = R.length;
  const lost = R.slice(1).map((_, j) => Math.max(...R.slice(0, -1).map((row) => row[j]).filter((v) => !Number.isNaN(v))) - R[T - 1][j]);
  return lost.length ? lost.reduce((a, b) => a + b, 0) / lost.length : NaN;
}

const STYLES = ["solid", "dashed", "dotted", "dashdot"];
const H = 94, TOP = 16, LEFT = 34, RIGHT = 6; // one panel
const number = (x) => (Number.isNaN(x) ? "–" : (Math.abs(x) < 0.05 ? 0 : x).toFixed(1).replace("-", "−"));

function render({ model, el, signal }) {
  const id = unique("forgetting"), voice = speaker(), put = setter(model);
  const root = html("section", { class: "tlc tlc-forgetting", role: "group", "aria-label": "Forgetting" });
  const slider = html("input", { type: "range", id: `${id}-weight`, min: "0", step: "1" });
  const value = html("strong", { class: "tlc-value", "aria-hidden": "true" });
  const label = html("label", { for: slider.id });
  const toggles = html("fieldset", { class: "tlc-row" }, html("legend", { class: "tlc-unseen" }, "Ways shown"));
  const panels = html("div");
  const table = html("table", { class: "tlc-table" });
  root.append(html("div", { class: "tlc-row" }, label, slider, value), toggles, panels, table, voice.node);
  el.append(root);

  let W = 640, tasks, names, weights, starts, points, all, low, drawn = [], boxes = [], cells = [];
  const curve = (who) => { // rows of accuracies; the first of the names is the one with the slider
    const block = who === 0 ? weights.indexOf(model.get("weight")) : weights.length + who - 1;
    const J = tasks.length, start = block * points * J;
    return Array.from({ length: points }, (_, p) => Array.from(all.subarray(start + p * J, start + (p + 1) * J)));
  };
  const x = (p) => LEFT + ((W - LEFT - RIGHT) * p) / Math.max(1, points - 1);
  const y = (v) => TOP + (H - TOP) * (1 - (v - low) / (100 - low));
  const border = (j) => (j === 0 ? LEFT : (x(starts[j] - 1) + x(starts[j])) / 2);

  function build() {
    [tasks, names, weights, starts] = ["tasks", "names", "weights", "starts"].map((name) => model.get(name));
    all = floats(model.get("accuracy"));
    points = all.length / (tasks.length * (weights.length + names.length - 1));
    low = Math.max(0, Math.floor(Math.min(...all.filter((v) => !Number.isNaN(v))) / 10) * 10);
    slider.max = String(weights.length - 1);
    label.textContent = `${names[0]}: weight of the old tasks`;
    drawn = tasks.map(panel);
    panels.replaceChildren(...drawn.map((d) => d.node));
    boxes = names.map((name, who) => {
      const input = html("input", { type: "checkbox" });
      input.addEventListener("change", () => put({ shown: names.filter((_, i) => boxes[i].input.checked) }), { signal });
      const sample = svg("svg", { viewBox: "0 0 30 8", class: `tlc-sample tlc-line-${STYLES[who]}`, "aria-hidden": "true" }, svg("path", { d: "M1 4H29" }));
      return { input, node: html("label", { class: "tlc-nowrap" }, input, sample, ` ${name}`) };
    });
    toggles.replaceChildren(toggles.firstChild, ...boxes.map((box) => box.node));
    cells = names.map(() => [html("td"), html("td")]);
    const head = ["at the end", "mean accuracy, %", "forgetting, points"].map((text) => html("th", { scope: "col" }, text));
    table.replaceChildren(html("tr", {}, ...head), ...names.map((name, who) => html("tr", {}, html("th", { scope: "row" }, name), ...cells[who])));
    update();
  }

  function panel(name, j) {
    const last = j === tasks.length - 1, height = H + (last ? 22 : 8);
    const node = svg("svg", { viewBox: `0 0 ${W} ${height}`, class: "tlc-panel", role: "img" });
    const marks = [low, (low + 100) / 2, 100].flatMap((v) => [
      svg("line", { x1: LEFT, x2: W - RIGHT, y1: y(v), y2: y(v) }), svg("text", { x: LEFT - 5, y: y(v) + 3.5 }, String(v))]);
    const paths = names.map((_, who) => svg("path", { class: `tlc-line tlc-line-${STYLES[who]}` }));
    node.append(
      ...(j ? [svg("rect", { class: "tlc-band", x: LEFT, width: border(j) - LEFT, y: TOP, height: H - TOP })] : []),
      svg("g", { class: "tlc-grid" }, ...marks),
      svg("g", { class: "tlc-border" }, ...starts.slice(1).map((_, k) => svg("line", { x1: border(k + 1), x2: border(k + 1), y1: TOP, y2: H }))),
      svg("text", { x: LEFT, y: 11, class: "tlc-name" }, `accuracy on ${name}, %`), ...paths.toReversed()); // the first lies on top
    if (last) node.append(...tasks.map((task, k) => {
      const to = k + 1 < tasks.length ? border(k + 1) : W - RIGHT;
      return svg("text", { x: (border(k) + to) / 2, y: H + 15, class: "tlc-stage" }, k ? (W > 500 ? `learns ${task}` : `${k + 1}`) : "");
    }));
    return { node, paths };
  }

  function update() {
    const weight = model.get("weight"), shown = model.get("shown");
    slider.value = String(weights.indexOf(weight));
    slider.setAttribute("aria-valuetext", `weight ${weight}`);
    value.textContent = `λ = ${weight}`;
    const curves = names.map((_, who) => curve(who));
    boxes.forEach((box, who) => (box.input.checked = shown.includes(names[who])));
    drawn.forEach((d, j) => {
      const ends = [];
      d.paths.forEach((path, who) => {
        const there = shown.includes(names[who]), line = curves[who].map((row, p) => [p, row[j]]).filter(([, v]) => !Number.isNaN(v));
        path.setAttribute("d", there ? `M${line.map(([p, v]) => `${x(p).toFixed(1)} ${y(v).toFixed(1)}`).join("L")}` : "");
        if (there) ends.push(`${names[who]} from ${number(line[0][1])} to ${number(line.at(-1)[1])}`);
      });
      d.node.setAttribute("aria-label", `accuracy on ${tasks[j]} in percent: ${ends.join("; ")}`);
    });
    const spoken = names.map((name, who) => {
      const R = matrix(curves[who], starts), found = [averageAccuracy(R), forgetting(R)].map(number);
      found.forEach((text, i) => (cells[who][i].textContent = text));
      return `${name}: mean accuracy ${found[0]}, forgetting ${found[1]}`;
    });
    voice.say(`Weight ${weight}. ${spoken.join(". ")}`);
  }

  slider.addEventListener("input", () => put({ weight: weights[Number(slider.value)] }), { signal });
  keepKeys(root, signal);
  const stops = [watch(model, ["weight", "shown"], update), watch(model, ["tasks", "names", "weights", "starts", "accuracy"], build),
    resized(root, 640, (width) => ((W = width), build()))];
  build();
  return () => (voice.hush(), stops.forEach((stop) => stop()));
}

export default { render };
