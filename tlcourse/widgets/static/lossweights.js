// Three losses in one sum, under many recorded weightings: a triangle to move in, and what each task gets at its dots.

/** Shares of the three corners by which weights are drawn: themselves, or, where ratios are distances, their logs, stretched until the outermost lie on an edge. */
export function shares(all, log) {
  if (!log) return all;
  const centred = all.map((w) => w.map((v) => Math.log(v) - w.reduce((sum, u) => sum + Math.log(u), 0) / 3));
  const low = Math.min(...centred.flat());
  return centred.map((u) => u.map((v) => (v - low) / (-3 * low)));
}

const HEIGHT = Math.sqrt(3) / 2;
/** Shares as a place: the first corner on top, the others a unit apart below it. */
export const place = ([a, , c]) => [a / 2 + c, (1 - a) * HEIGHT];

/** Which point is nearest to a place. */
export function nearest(points, [x, y]) {
  const far = points.map(([px, py]) => Math.hypot(px - x, py - y));
  return far.indexOf(Math.min(...far));
}

/** The neighbour of a point in a direction (dx, dy), at most 45° beside it; the point itself where there is none. Of two alike, the one by which the way back is the opposite. */
export function neighbour(points, at, [dx, dy]) {
  let best = at, least = Infinity;
  points.forEach(([px, py], i) => {
    const [x, y] = [px - points[at][0], py - points[at][1]], along = x * dx + y * dy, across = dx * y - dy * x;
    const cost = (x * x + y * y) / along - 1e-6 * across; // the smallest circle through both that begins in this direction
    if (along > 1e-9 && Math.abs(across) <= along * 1.001 && cost < least) [best, least] = [i, cost];
  });
  return best;
}

/** From 0 for the worst fifth to 4 for the best: by how many values are worse. */
export const fifths = (values, better) => values.map((v) => Math.floor((5 * values.filter((u) => (better === "higher" ? u < v : u > v)).length) / values.length));

/** Digits after the point, for three that count in the largest. */
export const digits = (numbers) => Math.min(6, Math.max(0, 2 - Math.floor(Math.log10(Math.max(...numbers.map(Math.abs)) || 1))));

/** 1, 0 or -1: is a value better than the other, as both are said? */
export const compare = (value, other, better, d) => Math.sign(Number(value.toFixed(d)) - Number(other.toFixed(d))) * (better === "higher" ? 1 : -1);

/** Round numbers between two ends, at most six. */
export function ticks(low, high) {
  const size = 10 ** Math.floor(Math.log10((high - low) / 4)), step = size * [1, 2, 5, 10].find((m) => m * size >= (high - low) / 5);
  const first = Math.ceil(low / step), last = Math.floor(high / step), d = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  return Array.from({ length: last - first + 1 }, (_, i) => [(first + i) * step, minus(((first + i) * step).toFixed(d))]);
}

const minus = (text) => text.replace("-", "−");
/** A weight in two digits, or three when it is small. */
export const share = (w) => (w === 0 ? "0" : w.toFixed(w < 0.0995 ? 3 : 2));

const WORDS = { 1: "better than alone", 0: "as good as alone", "-1": "worse than alone" };
const WAYS = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const LEFT = 26, TOP = 44, SIDE = 248, W = 300; // of the triangle, and of both drawings
const END = 10, LINE = 26; // of one task's scale
const set = (node, names) => Object.entries(names).forEach(([name, value]) => node.setAttribute(name, value));

function render({ model, el, signal }) {
  const id = unique("lossweights"), voice = speaker(), put = setter(model);
  const root = html("section", { class: "tlc tlc-lossweights", role: "group", "aria-label": "Weights of three losses" });
  const symbol = (name) => svg("svg", { viewBox: "-9 -9 18 18", class: "tlc-symbol", "aria-hidden": "true" }, mark(name));
  const hint = html("div"), question = html("strong", {}, "Is there a dot where all three tasks do better than alone?");
  const triangle = svg("svg", { viewBox: `0 0 ${W} 300`, class: "tlc-panel tlc-triangle" });
  const select = html("select", { id: `${id}-by` });
  const key = html("div", { class: "tlc-steps", "aria-hidden": "true" }, "worst", ...[0, 1, 2, 3, 4].map((step) => svg("svg", { viewBox: "-11 -11 22 22", class: "tlc-symbol" }, svg("circle", look(step)))), "best fifth");
  const learntHere = html("span"), rows = html("div"), words = html("div", { class: "tlc-verdict" });
  const legend = html("div", { class: "tlc-legend" }, html("span", {}, symbol("here"), " these weights"), html("span", {}, symbol("alone"), " the task alone; shaded: better"),
    html("span", {}, symbol("learnt"), " learnt by uncertainty: ", learntHere));
  root.append(hint, html("div", { class: "tlc-columns" },
    html("div", { class: "tlc-half" }, triangle, html("div", { class: "tlc-row" }, html("label", { for: select.id }, "Size and shade"), select), key),
    html("div", { class: "tlc-half" }, words, rows, legend)), voice.node);
  el.append(root);

  let tasks, weightings, points, dots, ring, corners, scales, held = false;
  const here = () => Math.min(model.get("at"), weightings.length - 1);
  const onDrawing = (share) => { const [x, y] = place(share); return [LEFT + SIDE * x, TOP + SIDE * y]; };

  function build() {
    [tasks, weightings] = ["tasks", "weightings"].map((name) => model.get(name));
    const learnt = model.get("learnt_weights"), all = [...weightings.map((each) => each.weights), learnt];
    const log = model.get("scale") === "log" && all.flat().every((w) => w > 0), drawn = shares(all, log).map(onDrawing);
    points = drawn.slice(0, -1);
    learntHere.textContent = learnt.map(share).join(", ");
    hint.replaceChildren(`Each dot is another choice of weights: the nearer to a corner, the more that task's loss counts${log ? " (distances are ratios)" : ""}. Drag the ring, or use the arrow keys. `, question);
    dots = weightings.map(({ weights }, i) => svg("g", { role: "radio", class: "tlc-weighting", transform: `translate(${points[i].map((v) => v.toFixed(1)).join(" ")})`,
      "aria-label": tasks.map((task, k) => `${task.name} ${share(weights[k])}`).join(", ") }, svg("circle")));
    ring = svg("g", { "aria-hidden": "true" }, svg("circle", { r: 17, class: "tlc-grip" }), mark("here", 12));
    const ends = [[1, 0, 0], [0, 1, 0], [0, 0, 1]].map(onDrawing);
    corners = tasks.map(({ name }, k) => {
      const value = svg("tspan", { class: "tlc-number" }), at = [{ x: W / 2, y: 13, "text-anchor": "middle" }, { x: 0, y: 282 }, { x: W, y: 282, "text-anchor": "end" }][k];
      return { value, node: svg("text", at, svg("tspan", {}, name), value), x: at.x };
    });
    corners.forEach((corner) => set(corner.value, { x: corner.x, dy: 15 }));
    triangle.replaceChildren(
      svg("g", { "aria-hidden": "true" }, svg("path", { class: "tlc-edge", d: `M${ends.map((end) => end.join(" ")).join("L")}Z` }), ...corners.map((corner) => corner.node)),
      svg("g", { role: "radiogroup", "aria-label": `Weights of the losses${log ? ", distances are ratios" : ""}` }, ...dots), ring,
      svg("g", { "aria-hidden": "true", class: "tlc-through", transform: `translate(${drawn.at(-1).map((v) => v.toFixed(1)).join(" ")})` }, mark("learnt")));
    select.replaceChildren(html("option", { value: "" }, "nothing"), ...tasks.map(({ name }) => html("option", { value: name }, name)));
    scales = tasks.map(scale);
    rows.replaceChildren(...scales.map((one) => one.node));
    update();
  }

  function scale({ name, unit, better, alone, learnt }, k) { // one task's numbers on a line: right is better
    const values = weightings.map((each) => each.values[k]), every = [...values, alone, learnt], d = digits(every), span = Math.max(...every) - Math.min(...every) || 1;
    const [low, high] = [Math.min(...every) - 0.04 * span, Math.max(...every) + 0.04 * span];
    const x = (v) => END + ((W - 2 * END) * (better === "higher" ? v - low : high - v)) / (high - low);
    const said = (v) => minus(v.toFixed(d)), to = (v) => `translate(${x(v).toFixed(1)} ${LINE})`;
    const ring = mark("here"), value = html("strong"), word = html("span");
    const drawing = svg("svg", { viewBox: `0 0 ${W} 50`, class: "tlc-panel", role: "img" },
      svg("rect", { class: "tlc-better", x: x(alone), width: W - x(alone), y: LINE - 10, height: 20 }), svg("text", { x: W, y: 11, "text-anchor": "end" }, `${better} is better →`),
      svg("line", { class: "tlc-stem", x1: 0, x2: W, y1: LINE, y2: LINE }), ...values.map((v) => svg("circle", { class: "tlc-other", cx: x(v), cy: LINE, r: 2.5 })),
      ...ticks(low, high).map(([v, text]) => svg("text", { class: "tlc-number", x: x(v), y: 47 }, text)),
      svg("g", { transform: to(alone) }, mark("alone")), svg("g", { transform: to(learnt) }, mark("learnt")), ring);
    return { name, drawing, node: html("div", { class: "tlc-task" }, html("div", { class: "tlc-gets" }, html("strong", {}, name), value), html("div", { class: "tlc-gets" }, word), drawing),
      draw(i) {
        const v = values[i], how = compare(v, alone, better, d), text = `${said(v)}${unit && ` ${unit}`}`;
        ring.setAttribute("transform", to(v));
        value.textContent = text;
        word.replaceChildren(html(how > 0 ? "strong" : "span", {}, WORDS[how]), ` (${said(alone)}); learnt: ${said(learnt)}`);
        drawing.setAttribute("aria-label", `${name}, ${better} is better: ${text} with these weights, ${said(alone)} alone, ${said(learnt)} with learnt weights; ${said(Math.min(...values))} to ${said(Math.max(...values))} over all dots`);
        return { how, spoken: `${name} ${text}, ${WORDS[how]}` };
      } };
  }

  function update() {
    const at = here(), { weights } = weightings[at], by = tasks.findIndex(({ name }) => name === model.get("coloured_by"));
    const steps = by < 0 ? null : fifths(weightings.map((each) => each.values[by]), tasks[by].better);
    dots.forEach((dot, i) => {
      set(dot, { "aria-checked": i === at, tabindex: i === at ? 0 : -1 });
      set(dot.firstChild, look(steps?.[i]));
    });
    ring.setAttribute("transform", dots[at].getAttribute("transform"));
    corners.forEach((corner, k) => (corner.value.textContent = share(weights[k])));
    select.value = by < 0 ? "" : tasks[by].name;
    key.style.visibility = by < 0 ? "hidden" : "visible";
    const found = scales.map((one) => one.draw(at)), better = found.filter(({ how }) => how > 0).length;
    words.textContent = `Better than alone: ${better} of 3 tasks`;
    voice.say(`Weights: ${dots[at].getAttribute("aria-label")}. ${found.map((one) => one.spoken).join("; ")}. ${better} of 3 tasks better than alone.`);
  }

  const go = (i) => {
    if (i !== here()) put({ at: i });
    dots[i].focus({ preventScroll: true });
  };
  const pointed = (e) => {
    const box = triangle.getBoundingClientRect();
    return nearest(points, [((e.clientX - box.left) / box.width) * W, ((e.clientY - box.top) / box.width) * W]);
  };
  triangle.addEventListener("pointerdown", (e) => {
    if (e.button || (e.pointerType === "touch" && !ring.contains(e.target))) return; // a thumb beside the ring scrolls; a tap is a click
    e.preventDefault();
    triangle.setPointerCapture?.(e.pointerId);
    held = true;
    go(pointed(e));
  }, { signal });
  triangle.addEventListener("pointermove", (e) => held && go(pointed(e)), { signal });
  triangle.addEventListener("click", (e) => go(pointed(e)), { signal });
  for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) triangle.addEventListener(end, () => (held = false), { signal });
  triangle.addEventListener("keydown", (e) => {
    const corner = { Home: 0, End: 2, 1: 0, 2: 1, 3: 2 }[e.key];
    if (!(e.key in WAYS || corner >= 0) || e.ctrlKey || e.metaKey || e.altKey) return;
    e.preventDefault();
    go(corner >= 0 ? nearest(points, onDrawing([0, 1, 2].map((k) => Number(k === corner)))) : neighbour(points, here(), WAYS[e.key]));
  }, { signal });
  select.addEventListener("change", () => put({ coloured_by: select.value }), { signal });
  keepKeys(root, signal);
  const stops = [watch(model, ["at", "coloured_by"], update), watch(model, ["tasks", "weightings", "learnt_weights", "scale"], build)];
  build();
  return () => (voice.hush(), stops.forEach((stop) => stop()));
}

/** A ring for these weights, a diamond for learnt ones, a bar for a task alone. */
const mark = (name, r = 6) => svg("path", { class: `tlc-mark-${name}`,
  d: { here: `M${-r} 0A${r} ${r} 0 1 1 ${r} 0A${r} ${r} 0 1 1 ${-r} 0Z`, learnt: "M0-8L7 0L0 8L-7 0Z", alone: "M0-10V10" }[name] });

/** Size and shade of a dot: the better its fifth, the larger and the darker. */
const look = (step) => (step === undefined ? { r: 5, class: "tlc-run" } : { r: [3.5, 5, 6.5, 8, 9.5][step], class: `tlc-run tlc-step-${step}` });

export default { render };
