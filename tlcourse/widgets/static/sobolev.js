// A function of one variable that is told at a few points: a fit to its values beside a fit to values and slopes, both solved here.

/** Value and slope at x of a sum of sines, a·sin(ωx + φ). */
export const target = (waves, x) => waves.reduce(
  ([value, slope], [a, w, phase]) => [value + a * Math.sin(w * x + phase), slope + a * w * Math.cos(w * x + phase)], [0, 0]);

export const GRID = Array.from({ length: 201 }, (_, i) => (i - 100) / 100);
const rootMeanSquare = (numbers) => Math.sqrt(numbers.reduce((sum, v) => sum + v * v, 0) / numbers.length);

/** Value and slope that the fits are told at x: to the slope comes a ripple, `wrong` times the typical slope of the target. */
export function tell(waves, x, wrong) {
  const [value, slope] = target(waves, x), typical = wrong && rootMeanSquare(GRID.map((at) => target(waves, at)[1]));
  return [value, slope + wrong * typical * Math.SQRT2 * Math.sin(23 * x + 1)];
}

/** The a with A a = y, for a symmetric positive definite A: Cholesky, A = L Lᵀ, then two triangles. */
export function solve(A, y) {
  const n = y.length, L = A.map(() => new Float64Array(n)), a = Float64Array.from(y);
  for (let i = 0; i < n; i++) for (let j = 0; j <= i; j++) {
    let rest = A[i][j];
    for (let k = 0; k < j; k++) rest -= L[i][k] * L[j][k];
    L[i][j] = i === j ? Math.sqrt(rest) : rest / L[j][j];
  }
  for (let i = 0; i < n; i++) {
    for (let k = 0; k < i; k++) a[i] -= L[i][k] * a[k];
    a[i] /= L[i][i];
  }
  for (let i = n - 1; i >= 0; i--) {
    for (let k = i + 1; k < n; k++) a[i] -= L[k][i] * a[k];
    a[i] /= L[i][i];
  }
  return a;
}

/** Kernel exp(-u²/2), u = (a - b) / l, between value or l times slope at a, and value or l times slope at b. */
export function kernel(a, slopeA, b, slopeB, l) {
  const u = (a - b) / l, k = Math.exp((-u * u) / 2);
  return k * (slopeA ? (slopeB ? 1 - u * u : -u) : slopeB ? u : 1);
}

const RIDGE = 1e-10; // on a diagonal of ones: points may coincide

/** The smoothest function through these values, and with these slopes if there are any: x to [value, slope]. */
export function fit(points, values, slopes, l) {
  const n = points.length, told = [...values, ...(slopes ?? []).map((slope) => l * slope)];
  const at = told.map((_, i) => [points[i % n], i >= n]);
  const A = at.map(([a, p], i) => at.map(([b, q], j) => kernel(a, p, b, q, l) + (i === j ? RIDGE : 0)));
  const weights = solve(A, told);
  const sum = (x, slope) => at.reduce((total, [b, q], i) => total + weights[i] * kernel(x, slope, b, q, l), 0);
  return (x) => [sum(x, false), sum(x, true) / l];
}

/** Root mean squared error over the grid. */
export const errorOf = (fitted, waves) => rootMeanSquare(GRID.map((x) => fitted(x)[0] - target(waves, x)[0]));

/** n places, evenly spaced. */
export const even = (n) => Array.from({ length: n }, (_, i) => Math.round(100 * (-0.9 + (1.8 * i) / (n - 1))) / 100);

/** What slopes do to the error, in words. */
export function verdict(without, within) {
  const ratio = without / within, said = (r) => (r >= 100 ? "more than 100" : r.toFixed(r < 9.95 ? 1 : 0));
  if (Math.max(without, within) < 5e-4) return "Both fits lie on the target";
  return ratio >= 1.05 ? `Slopes divide the error by ${said(ratio)}` : ratio <= 1 / 1.05 ? `Slopes multiply the error by ${said(1 / ratio)}` : "Slopes change little";
}

const minus = (text) => text.replace("-", "−");
const two = (x) => minus((Math.abs(x) < 0.005 ? 0 : x).toFixed(2)), three = (x) => (x < 10 ? x.toFixed(3) : "over 10");
const NAMES = ["values alone", "values and slopes"], LINES = ["dotted", "solid"];
const KEYS = { ArrowLeft: -0.02, ArrowDown: -0.02, ArrowRight: 0.02, ArrowUp: 0.02, PageDown: -0.2, PageUp: 0.2, Home: -2, End: 2 };
const LEFT = 34, RIGHT = 16, TOP = 6;

function render({ model, el, signal }) {
  const id = unique("sobolev"), voice = speaker(), put = setter(model);
  const root = html("section", { class: "tlc tlc-sobolev", role: "group", "aria-label": "Values alone, or values and slopes" });
  const control = (name, label, min, max, step) => {
    const input = html("input", { type: "range", id: `${id}-${name}`, min, max, step }), value = html("strong", { class: "tlc-value", "aria-hidden": "true" });
    return { input, value, node: html("div", { class: "tlc-row" }, html("label", { for: input.id }, label), input, value) };
  };
  const many = control("many", "Points", "3", "7", "1");
  const scale = control("scale", "Length scale", "0.1", "0.6", "0.02");
  const wrong = control("wrong", "Slope error", "0", "1", "0.05");
  const sample = (line) => svg("svg", { viewBox: "0 0 30 8", class: `tlc-sample tlc-line-${line}`, "aria-hidden": "true" }, svg("path", { d: "M2 4H29" }));
  const read = NAMES.map(() => html("strong"));
  const legend = html("div", { class: "tlc-row" }, html("span", { class: "tlc-nowrap" }, sample("dashed"), " target"),
    ...NAMES.map((name, who) => html("span", {}, sample(LINES[who]), ` ${name}: RMSE `, read[who])));
  const hint = html("div", {}, "Drag the numbered points, or move them with the arrow keys.");
  const place = html("div"), words = html("p", { class: "tlc-cell tlc-verdict" });
  root.append(hint, legend, place, words, many.node, scale.node, wrong.node, voice.node);
  el.append(root);

  let W = 640, H, waves, low, high, picture, paths, handles = [], held = null;
  const x = (at) => LEFT + ((W - LEFT - RIGHT) * (at + 1)) / 2;
  const y = (value) => TOP + ((H - TOP) * (high - value)) / (high - low);
  const inside = (at) => Math.min(1, Math.max(-1, Math.round(100 * at) / 100));
  const move = (i, at) => put({ points: model.get("points").map((old, k) => (k === i ? inside(at) : old)) });

  function build() {
    waves = model.get("waves");
    H = W < 500 ? 230 : 290;
    const seen = GRID.map((at) => target(waves, at)[0]), most = Math.max(0.1, ...seen), least = Math.min(-0.1, ...seen);
    [low, high] = [least - 0.25 * (most - least), most + 0.25 * (most - least)];
    const step = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20].find((s) => (high - low) / s < 6);
    const marks = Array.from({ length: 13 }, (_, i) => (i - 6) * step).filter((v) => v > low && v < high);
    const plot = svg("svg", { x: LEFT, y: TOP, width: W - LEFT - RIGHT, height: H - TOP, viewBox: `${LEFT} ${TOP} ${W - LEFT - RIGHT} ${H - TOP}` }); // cuts off what leaves it
    paths = ["dashed", ...LINES].map((line) => svg("path", { class: `tlc-line tlc-line-${line}` }));
    plot.append(...paths);
    picture = svg("g", { role: "img" },
      svg("g", { class: "tlc-grid" },
        ...marks.flatMap((v) => [svg("line", { x1: LEFT, x2: W - RIGHT, y1: y(v), y2: y(v) }), svg("text", { x: LEFT - 5, y: y(v) + 3.5 }, minus(String(+v.toFixed(1))))]),
        svg("line", { class: "tlc-floor", x1: LEFT, x2: W - RIGHT, y1: H, y2: H })),
      ...[-1, -0.5, 0, 0.5, 1].map((at) => svg("text", { x: x(at), y: H + 26, class: "tlc-tick" }, minus(String(at)))), plot);
    handles = [];
    place.replaceChildren(svg("svg", { viewBox: `0 0 ${W} ${H + 32}`, class: "tlc-panel", role: "group", "aria-label": "Points to move" }, picture));
    update();
  }

  function handle(i) { // a strip from the curve down to a knob on the axis; all of it can be dragged
    const stem = svg("line", { class: "tlc-stem" }), dot = svg("circle", { class: "tlc-dot", r: 5 }), tangent = svg("line", { class: "tlc-tangent" });
    const knob = svg("circle", { class: "tlc-knob", r: 9, cy: H }), strip = svg("rect", { class: "tlc-strip", width: 26, y: TOP, height: H + 12 - TOP });
    const node = svg("g", { class: "tlc-handle", tabindex: "0", role: "slider", "aria-label": `Point ${i + 1}`, "aria-valuemin": "-1", "aria-valuemax": "1" },
      strip, stem, tangent, dot, knob, svg("text", { class: "tlc-number", y: H + 3.5 }, String(i + 1)));
    const pointed = (e) => {
      const box = picture.ownerSVGElement.getBoundingClientRect();
      return (2 * (((e.clientX - box.left) / box.width) * W - LEFT)) / (W - LEFT - RIGHT) - 1;
    };
    node.addEventListener("pointerdown", (e) => {
      if (e.button) return;
      e.preventDefault();
      node.focus();
      node.setPointerCapture?.(e.pointerId);
      held = { i, off: model.get("points")[i] - pointed(e) };
    }, { signal });
    node.addEventListener("pointermove", (e) => held?.i === i && move(i, pointed(e) + held.off), { signal });
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) node.addEventListener(end, () => (held = null), { signal });
    node.addEventListener("keydown", (e) => {
      if (!(e.key in KEYS) || e.ctrlKey || e.metaKey || e.altKey) return;
      e.preventDefault();
      move(i, model.get("points")[i] + KEYS[e.key]);
    }, { signal });
    return { node, draw(at, [value, slope]) {
      const rise = slope * (y(0) - y(1)) / (x(1) - x(0)), reach = (W < 500 ? 20 : 26) / Math.hypot(1, rise);
      const set = (part, names) => Object.entries(names).forEach(([name, v]) => part.setAttribute(name, v));
      set(strip, { x: x(at) - 13 });
      set(stem, { x1: x(at), x2: x(at), y1: y(value), y2: H });
      set(tangent, { x1: x(at) - reach, x2: x(at) + reach, y1: y(value) + reach * rise, y2: y(value) - reach * rise });
      set(dot, { cx: x(at), cy: y(value) });
      set(knob, { cx: x(at) });
      set(node.lastChild, { x: x(at) });
      set(node, { "aria-valuenow": at, "aria-valuetext": `x = ${two(at)}, value ${two(value)}, slope ${two(slope)}` });
    } };
  }

  function update() {
    const [points, l, ripple] = ["points", "length_scale", "slope_error"].map((name) => model.get(name));
    if (handles.length !== points.length) {
      held = null;
      handles.forEach((old) => old.node.remove());
      handles = points.map((_, i) => handle(i));
      picture.after(...handles.map((each) => each.node));
    }
    const told = points.map((at) => tell(waves, at, ripple)), values = told.map(([value]) => value), slopes = told.map(([, slope]) => slope);
    const fits = [fit(points, values, null, l), fit(points, values, slopes, l)], errors = fits.map((fitted) => errorOf(fitted, waves));
    [(at) => target(waves, at), ...fits].forEach((curve, who) => paths[who].setAttribute("d",
      `M${GRID.map((at) => `${x(at).toFixed(1)} ${Math.min(1e4, Math.max(-1e4, y(curve(at)[0]))).toFixed(1)}`).join("L")}`));
    handles.forEach((each, i) => each.draw(points[i], told[i]));
    errors.forEach((error, who) => (read[who].textContent = three(error)));
    const n = points.length, spoken = NAMES.map((name, who) => `${name}, ${(who + 1) * n} numbers told: root mean squared error ${three(errors[who])}`).join("; ");
    words.textContent = `${verdict(...errors)} (${2 * n} numbers told instead of ${n}).`;
    many.input.value = String(n);
    many.value.textContent = `n = ${n}`;
    scale.input.value = String(l);
    scale.value.textContent = `ℓ = ${two(l)}`;
    wrong.input.value = String(ripple);
    wrong.value.textContent = `${Math.round(100 * ripple)} %`;
    many.input.setAttribute("aria-valuetext", `${n} points`);
    scale.input.setAttribute("aria-valuetext", `length scale ${two(l)}`);
    wrong.input.setAttribute("aria-valuetext", `${Math.round(100 * ripple)} percent of a typical slope`);
    picture.setAttribute("aria-label", `A target and two fits on −1 to 1. ${spoken}.`);
    voice.say(`${verdict(...errors)}. ${spoken[0].toUpperCase()}${spoken.slice(1)}.`);
  }

  many.input.addEventListener("input", () => put({ points: even(Number(many.input.value)) }), { signal });
  scale.input.addEventListener("input", () => put({ length_scale: Number(scale.input.value) }), { signal });
  wrong.input.addEventListener("input", () => put({ slope_error: Number(wrong.input.value) }), { signal });
  keepKeys(root, signal);
  const stops = [watch(model, ["points", "length_scale", "slope_error"], update), watch(model, ["waves"], build),
    resized(root, 640, (width) => ((W = width), build()))];
  build();
  return () => (voice.hush(), stops.forEach((stop) => stop()));
}

export default { render };
