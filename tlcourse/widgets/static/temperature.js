// What temperature does to the probabilities of teacher and students, computed here for the logits that came with the widget.

/** softmax(z / T). */
export function soften(z, T) {
  const top = Math.max(...z);
  const e = Array.from(z, (v) => Math.exp((v - top) / T));
  const total = e.reduce((a, b) => a + b, 0);
  return e.map((v) => v / total);
}

/** In bits. */
export const entropy = (p) => p.reduce((sum, v) => sum - (v > 0 ? v * Math.log2(v) : 0), 0);

/** Size of the soft loss's gradient at the student's logits z: |softmax(z/T) - softmax(v/T)| / T. */
export function gradientSize(z, v, T) {
  const q = soften(z, T), p = soften(v, T);
  return Math.hypot(...q.map((value, k) => value - p[k])) / T;
}

/** Where the slider stops: round numbers, about evenly in log T. The field beside it takes any. */
export const STOPS = [
  0.1, 0.12, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.2, 1.5, 1.75, 2, 2.25, 2.5, 2.75, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9, 10,
  12, 14, 16, 18, 20,
];

/** The stop that is nearest, in log T. */
export const stepOf = (T) => {
  const far = STOPS.map((stop) => Math.abs(Math.log(stop / T)));
  return far.indexOf(Math.min(...far));
};

export const short = (x) => (x === 0 ? "0" : x >= 100 ? x.toFixed(0) : x >= 0.1 ? String(+x.toPrecision(3)) : x >= 0.001 ? x.toFixed(4) : x.toExponential(1));
const percent = (p) => (p >= 0.995 ? (p > 0.99995 ? "100%" : `${(100 * p).toFixed(p >= 0.9995 ? 2 : 1)}%`) : `${(100 * p).toFixed(0)}%`);

const H = 98, TOP = 28, LEFT = 32, FLOOR = 1e-6; // one panel: its floor, the top of a full bar, the left end; the log axis ends at FLOOR
const LOOKS = ["first", "second", "third", "fourth"];

function render({ model, el, signal }) {
  const id = unique("temperature"), voice = speaker(), put = setter(model);
  const root = html("section", { class: "tlc tlc-temperature", role: "group", "aria-label": "Temperature" });
  const slider = html("input", { type: "range", id: `${id}-T`, min: "0", max: String(STOPS.length - 1), step: "1" });
  const field = html("input", { type: "number", class: "tlc-field", min: "0.1", max: "20", step: "any", "aria-label": "T = any temperature" });
  const one = html("button", { type: "button" }, "T = 1");
  const log = html("input", { type: "checkbox", id: `${id}-log` });
  const controls = html("div", { class: "tlc-row" },
    html("label", { for: slider.id }, "Temperature"), slider,
    html("span", { class: "tlc-nowrap" }, "T = ", field), one,
    html("span", { class: "tlc-nowrap" }, log, html("label", { for: log.id }, " logarithmic")));
  const canvas = html("canvas", { class: "tlc-picture", role: "img" });
  const caption = html("div", { class: "tlc-caption" });
  const pick = html("fieldset", { class: "tlc-pick" }, html("legend", {}, "Image"));
  const panels = html("div", { class: "tlc-panels" });
  const table = html("table", { class: "tlc-table" });
  root.append(controls, html("div", { class: "tlc-columns" }, html("div", { class: "tlc-side" }, canvas, caption), panels), table, pick, voice.node);
  el.append(root);

  let W = 480, names, classes, labels, logits, pixels, size, drawn = [], cells = [], thumbs = [];
  const row = (who) => {
    const K = classes.length, start = (who * labels.length + model.get("image")) * K;
    return logits.subarray(start, start + K);
  };

  function build() {
    [names, classes, labels, size] = ["names", "classes", "labels", "size"].map((name) => model.get(name));
    logits = floats(model.get("logits"));
    pixels = bytes(model.get("pixels"));
    drawn = names.map((name, who) => panel(name, who));
    panels.replaceChildren(...drawn.map((d) => d.node));
    const head = [html("td"), ...["entropy, bits", "size of gradient", "times T²"].map((text) => html("th", { scope: "col" }, text))];
    cells = names.map(() => [0, 1, 2].map(() => html("td")));
    table.replaceChildren(html("tr", {}, ...head),
      ...names.map((name, who) => html("tr", {}, html("th", { scope: "row" }, name), ...cells[who])));
    thumbs = labels.map((label, i) => thumb(label, i));
    pick.replaceChildren(pick.firstChild, ...thumbs.map((t) => t.node));
    update();
  }

  function panel(name, who) {
    const K = classes.length, step = (W - LEFT) / K, bar = step * 0.72, last = who === names.length - 1;
    const height = H + (last ? 20 : 8), pattern = `${id}-pattern-${who}`;
    const node = svg("svg", { viewBox: `0 0 ${W} ${height}`, class: `tlc-panel tlc-${LOOKS[who]}`, role: "img" });
    const band = svg("rect", { class: "tlc-band", y: 0, width: step, height });
    const stripes = svg("pattern", { id: pattern, width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: `rotate(${who === 1 ? 45 : -45})` },
      svg("rect", { width: 6, height: 6, class: "tlc-fill" }), svg("rect", { width: who === 0 ? 0 : 1.6, height: 6, class: "tlc-stripe" }));
    const lines = svg("g", { class: "tlc-grid" });
    node.append(svg("defs", {}, stripes), band, lines, svg("text", { x: LEFT, y: 12, class: "tlc-name" }, name));
    const bars = classes.map((_, k) => svg("rect", { x: LEFT + k * step + (step - bar) / 2, width: bar, fill: `url(#${pattern})` }));
    const words = classes.map((_, k) => svg("text", { x: LEFT + (k + 0.5) * step, class: "tlc-number" }));
    node.append(...bars, ...words);
    if (last) node.append(...classes.map((c, k) => svg("text", { x: LEFT + (k + 0.5) * step, y: H + 15, class: "tlc-tick" }, c)));
    return { node, band, lines, bars, words, step };
  }

  function thumb(label, i) {
    const input = html("input", { type: "radio", name: `${id}-image`, value: String(i), class: "tlc-unseen" });
    const small = html("canvas", { "aria-hidden": "true" });
    paint(small, i);
    input.addEventListener("change", () => put({ image: i }), { signal });
    return { input, node: html("label", { class: "tlc-thumb" }, input, small, html("span", { class: "tlc-unseen" }, `image ${i + 1}, a ${classes[label]}`)) };
  }

  function paint(where, i) { // black ink on nothing; the dark theme turns it round
    const [h, w] = size, context = (where.width = w, where.height = h, where.getContext?.("2d"));
    if (!context) return;
    const data = context.createImageData(w, h);
    for (let p = 0; p < h * w; p++) data.data[4 * p + 3] = pixels[i * h * w + p];
    context.putImageData(data, 0, 0);
  }

  function update() {
    const T = model.get("T"), isLog = model.get("log"), image = model.get("image"), label = labels[image], details = model.get("details") !== false;
    table.hidden = !details;
    slider.value = String(stepOf(T));
    slider.setAttribute("aria-valuetext", `T = ${short(T)}`);
    if (Number(field.value) !== T) field.value = String(+T.toPrecision(6));
    log.checked = isLog;
    paint(canvas, image);
    canvas.setAttribute("aria-label", `test image ${image + 1} of ${labels.length}, labelled ${classes[label]}`);
    caption.textContent = `label: ${classes[label]}`;
    thumbs.forEach((t, i) => (t.input.checked = i === image));
    const teacher = row(0);
    const spoken = drawn.map((d, who) => {
      const p = soften(row(who), T);
      draw(d, p, label, isLog);
      const gradient = who ? gradientSize(row(who), teacher, T) : null;
      cells[who][0].textContent = entropy(p).toFixed(2);
      cells[who][1].textContent = who ? short(gradient) : "–";
      cells[who][2].textContent = who ? short(T * T * gradient) : "–";
      const likely = [...p.keys()].sort((a, b) => p[b] - p[a]).slice(0, 3).map((k) => `${classes[k]} ${percent(p[k])}`).join(", ");
      const pull = who ? `; gradient ${short(gradient)}, times T squared ${short(T * T * gradient)}` : "";
      const words = `${names[who]}: ${likely}${details ? `; entropy ${entropy(p).toFixed(2)} bits${pull}` : ""}`;
      d.node.setAttribute("aria-label", words);
      return words;
    });
    voice.say(`T = ${short(T)}, label ${classes[label]}. ${spoken.join(". ")}`);
  }

  function draw(d, p, label, isLog) {
    const height = (v) => (H - TOP) * (isLog ? Math.max(0, 1 - Math.log(Math.max(v, FLOOR)) / Math.log(FLOOR)) : v);
    d.band.setAttribute("x", LEFT + label * d.step);
    p.forEach((v, k) => {
      const h = height(v);
      d.bars[k].setAttribute("y", H - h);
      d.bars[k].setAttribute("height", h);
      d.words[k].setAttribute("y", H - h - 3);
      d.words[k].textContent = v >= 0.005 ? percent(v) : "";
    });
    const marks = isLog ? [[1, "1"], [1e-2, "10⁻²"], [1e-4, "10⁻⁴"], [FLOOR, "10⁻⁶"]] : [[1, "1"], [0.5, "½"], [0, "0"]];
    d.lines.replaceChildren(...marks.flatMap(([v, text]) => {
      const y = H - height(v);
      return [svg("line", { x1: LEFT, x2: W, y1: y, y2: y }), svg("text", { x: LEFT - 5, y: y + 3.5 }, text)];
    }));
  }

  slider.addEventListener("input", () => put({ T: STOPS[Number(slider.value)] }), { signal });
  field.addEventListener("input", () => field.value !== "" && field.validity.valid && put({ T: Number(field.value) }), { signal });
  field.addEventListener("change", () => (field.value = String(+model.get("T").toPrecision(6))), { signal }); // what is no temperature goes
  one.addEventListener("click", () => put({ T: 1 }), { signal });
  log.addEventListener("change", () => put({ log: log.checked }), { signal });
  keepKeys(root, signal);
  const stops = [watch(model, ["T", "log", "image", "details"], update), watch(model, ["names", "classes", "labels", "size", "logits", "pixels"], build),
    resized(root, 480, (width) => ((W = width), build()))];
  build();
  return () => (voice.hush(), stops.forEach((stop) => stop()));
}

export default { render };
