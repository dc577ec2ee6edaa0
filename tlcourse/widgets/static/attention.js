// Attention maps over pictures: the sum over channels is done here, on the activations that came with the widget.

/** Σ|A|^p at every place, as shares of the largest. values: bytes of channels × places. */
export function attentionMap(values, channels, places, p) {
  const powers = Float64Array.from({ length: 256 }, (_, v) => (v / 255) ** p), map = new Float64Array(places);
  for (let c = 0, i = 0; c < channels; c++) for (let j = 0; j < places; j++, i++) map[j] += powers[values[i]];
  const largest = Math.max(...map);
  return largest > 0 ? map.map((v) => v / largest) : map;
}

/** In how many places, the strongest first, half of a map lies; 0 for a map of zeros. */
export function halfIn(map) {
  const sorted = Array.from(map).sort((a, b) => b - a), half = sorted.reduce((a, b) => a + b, 0) / 2;
  let many = 0;
  for (let sum = 0; sum < half; many++) sum += sorted[many];
  return many;
}

// cividis, made for colour-blind readers (Nuñez, Anderton and Renslow 2018), at every tenth
const COLOURS = [
  [0, 34, 78], [8, 51, 112], [53, 69, 108], [79, 87, 108], [102, 105, 112], [125, 124, 120],
  [148, 142, 119], [174, 163, 113], [200, 184, 102], [229, 207, 82], [254, 232, 56],
];

/** Red, green and blue of a share in [0, 1]. */
export function colour(share) {
  const at = Math.min(1, Math.max(0, share)) * (COLOURS.length - 1), i = Math.min(COLOURS.length - 2, Math.floor(at));
  return COLOURS[i].map((from, k) => from + (at - i) * (COLOURS[i + 1][k] - from));
}

/** A map of h × w at a point of a picture, u and v in [0, 1] from the upper left: bilinear between the middles of the places. */
export function smooth(map, h, w, u, v) {
  const x = Math.min(w - 1, Math.max(0, u * w - 0.5)), y = Math.min(h - 1, Math.max(0, v * h - 0.5));
  const i = Math.min(Math.max(0, h - 2), Math.floor(y)), j = Math.min(Math.max(0, w - 2), Math.floor(x));
  const down = Math.min(h - 1, i + 1), right = Math.min(w - 1, j + 1), a = x - j, b = y - i;
  return (1 - b) * ((1 - a) * map[i * w + j] + a * map[i * w + right]) + b * ((1 - a) * map[down * w + j] + a * map[down * w + right]);
}

const share = (x) => x.toFixed(2);
const third = (i, n) => Math.min(2, Math.floor((3 * (i + 0.5)) / n));
const where = (i, j, h, w) => {
  const [row, column] = [["upper", "middle", "lower"][third(i, h)], ["left", "", "right"][third(j, w)]];
  return row === "middle" && column === "" ? "middle" : `${row} ${column || "middle"}`;
};

function render({ model, el, signal }) {
  const id = unique("attention"), voice = speaker(), put = setter(model);
  const root = html("section", { class: "tlc tlc-attention", role: "group", "aria-label": "Attention maps" });
  const control = (name, input) => ({ input, node: html("div", { class: "tlc-row" }, html("label", { for: input.id }, name), input) });
  const power = html("input", { type: "range", id: `${id}-p`, min: "1", max: "8", step: "0.1" });
  const value = html("strong", { class: "tlc-value", "aria-hidden": "true" });
  const strength = html("input", { type: "range", id: `${id}-strength`, min: "0", max: "1", step: "0.05" });
  const layer = html("select", { id: `${id}-layer` }), shown = html("select", { id: `${id}-shown` });
  const powers = control("Power p", power);
  powers.node.append(value);
  const picks = html("div", { class: "tlc-row" }, html("label", { for: layer.id }, "Layer"), layer);
  const choose = html("span", { class: "tlc-nowrap" }, html("label", { for: shown.id }, "Map "), shown);
  const columns = html("div", { class: "tlc-columns tlc-looks" });
  const bar = html("div", { class: "tlc-row tlc-colours", "aria-hidden": "true" }, "0", html("div", { class: "tlc-ramp" }), "largest");
  bar.children[0].style.background = `linear-gradient(to right, ${COLOURS.map((c) => `rgb(${c.join(" ")})`).join(", ")})`;
  const cell = html("p", { class: "tlc-cell" });
  const table = html("table", { class: "tlc-table" });
  const pick = html("fieldset", { class: "tlc-pick" }, html("legend"));
  root.append(powers.node, picks, control("Overlay", strength).node, columns, bar, cell, table, pick, voice.node);
  el.append(root);

  let names, networks, layers, asked, shapes, pixels, values, starts, panels = [], cells = [], thumbs = [], maps = [], cursor = null;
  const isAttention = () => model.get("shown") === "attention";
  const block = (who) => { // which of the shapes is on show for a network: 0 is the picture's own
    const given = asked.indexOf(model.get("shown"));
    return given < 0 ? 1 + who * layers.length + layers.indexOf(model.get("layer")) : 1 + networks.length * layers.length + given;
  };

  function build() {
    [names, networks, layers, asked, shapes] = ["names", "networks", "layers", "asked", "shapes"].map((name) => model.get(name));
    [pixels, values] = [bytes(model.get("pixels")), bytes(model.get("values"))];
    const sizes = shapes.slice(1).map((shape) => names.length * shape.reduce((a, b) => a * b, 1));
    starts = [0, ...sizes.map((_, i) => sizes.slice(0, i).reduce((a, b) => a + b, 0))];
    layer.replaceChildren(...layers.map((name) => html("option", { value: name }, name)));
    shown.replaceChildren(...["attention", ...asked].map((name) => html("option", { value: name }, name)));
    asked.length ? picks.append(choose) : choose.remove();
    panels = networks.map(panel);
    columns.replaceChildren(...panels.map((p) => p.node));
    cells = networks.map(() => [html("td"), html("td")]);
    const head = [html("td"), ...["strongest", "half of it lies in"].map((text) => html("th", { scope: "col" }, text))];
    table.replaceChildren(html("tr", {}, ...head), ...networks.map((name, who) => html("tr", {}, html("th", { scope: "row" }, name), ...cells[who])));
    thumbs = names.map(thumb);
    pick.replaceChildren(pick.firstChild, ...thumbs.map((t) => t.node));
    update();
  }

  function panel(name) {
    const canvas = html("canvas", { class: "tlc-look", tabindex: "0", role: "application" });
    const mark = html("div", { class: "tlc-mark", hidden: "" });
    const frame = html("div", { class: "tlc-frame" }, canvas, mark);
    canvas.addEventListener("pointermove", (e) => {
      const box = canvas.getBoundingClientRect(), [, h, w] = shapes[block(0)];
      point(Math.floor(((e.clientY - box.top) / box.height) * h), Math.floor(((e.clientX - box.left) / box.width) * w));
    }, { signal });
    canvas.addEventListener("keydown", (e) => {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[e.key];
      if (!step) return;
      e.preventDefault();
      const [i, j] = cursor ?? [0, 0];
      cursor ? point(i + step[0], j + step[1]) : point(0, 0);
      voice.say(cell.textContent);
    }, { signal });
    return { canvas, mark, node: html("figure", {}, frame, html("figcaption", {}, name)) };
  }

  function thumb(name, i) {
    const input = html("input", { type: "radio", name: `${id}-picture`, value: String(i), class: "tlc-unseen" });
    const small = html("canvas", { "aria-hidden": "true" });
    paint(small, i, null, 0);
    input.addEventListener("change", () => put({ picture: i }), { signal });
    return { input, node: html("label", { class: "tlc-thumb" }, input, small, html("span", { class: "tlc-unseen" }, name)) };
  }

  function paint(canvas, i, map, over) {
    const [C, H, W] = shapes[0], scale = map && H < 112 ? Math.ceil(112 / H) : 1; // small pictures get whole squares for pixels
    const context = ((canvas.width = W * scale), (canvas.height = H * scale), canvas.getContext?.("2d"));
    if (!context) return;
    const data = context.createImageData(W * scale, H * scale), start = i * C * H * W;
    for (let y = 0, at = 0; y < H * scale; y++) for (let x = 0; x < W * scale; x++, at += 4) {
      const place = start + Math.floor(y / scale) * W + Math.floor(x / scale);
      const tint = map ? colour(smooth(map.values, map.h, map.w, (x + 0.5) / (W * scale), (y + 0.5) / (H * scale))) : [0, 0, 0];
      for (let k = 0; k < 3; k++) {
        const ink = C === 1 ? 255 - pixels[place] : pixels[place + k * H * W]; // grey ones are ink on paper
        data.data[at + k] = (1 - over) * ink + over * tint[k];
      }
      data.data[at + 3] = 255;
    }
    context.putImageData(data, 0, 0);
  }

  function update() {
    const i = model.get("picture"), p = model.get("p");
    power.value = String(p);
    power.disabled = layer.disabled = !isAttention();
    power.setAttribute("aria-valuetext", `p = ${+p.toFixed(2)}`);
    value.textContent = `p = ${+p.toFixed(2)}`;
    layer.value = model.get("layer");
    shown.value = model.get("shown");
    thumbs.forEach((t, k) => (t.input.checked = k === i));
    pick.firstChild.textContent = `Picture: ${names[i]}`;
    maps = networks.map((_, who) => {
      const b = block(who), [K, h, w] = shapes[b], start = starts[b] + i * K * h * w;
      return { h, w, values: attentionMap(values.subarray(start, start + K * h * w), K, h * w, isAttention() ? p : 1) };
    });
    const spoken = maps.map((map, who) => {
      const top = map.values.indexOf(1), places = map.h * map.w;
      const at = top < 0 ? "nowhere" : where(Math.floor(top / map.w), top % map.w, map.h, map.w), half = `${halfIn(map.values)} of ${places}`;
      cells[who][0].textContent = at;
      cells[who][1].textContent = `${half} places`;
      panels[who].canvas.setAttribute("aria-label", `${names[i]}, ${networks[who]}: strongest ${at}, half of it in ${half} places. Arrow keys read single places.`);
      return `${networks[who]}: strongest ${at}, half of it in ${half} places`;
    });
    repaint();
    const what = isAttention() ? `${model.get("layer")}, p = ${+p.toFixed(2)}` : model.get("shown");
    voice.say(`${names[i]}, ${what}. ${spoken.join(". ")}`);
    cursor ? point(...cursor) : (cell.textContent = "Point at a map, or focus it and use the arrow keys, to read its numbers.");
  }

  function repaint() {
    const over = model.get("strength");
    strength.value = String(over);
    strength.setAttribute("aria-valuetext", `${Math.round(100 * over)} percent`);
    maps.forEach((map, who) => paint(panels[who].canvas, model.get("picture"), map, over));
  }

  function point(i, j) { // the same place in every map
    const { h, w } = maps[0];
    cursor = [Math.min(h - 1, Math.max(0, i)), Math.min(w - 1, Math.max(0, j))];
    const read = maps.map((map, who) => `${networks[who]} ${share(map.values[cursor[0] * map.w + cursor[1]] ?? 0)}`);
    cell.textContent = `Row ${cursor[0] + 1} of ${h}, column ${cursor[1] + 1} of ${w}: ${read.join(", ")} of the largest.`;
    for (const { mark } of panels) {
      mark.hidden = false;
      Object.assign(mark.style, { top: `${(100 * cursor[0]) / h}%`, left: `${(100 * cursor[1]) / w}%`, height: `${100 / h}%`, width: `${100 / w}%` });
    }
  }

  power.addEventListener("input", () => put({ p: Number(power.value) }), { signal });
  strength.addEventListener("input", () => put({ strength: Number(strength.value) }), { signal });
  layer.addEventListener("change", () => put({ layer: layer.value }), { signal });
  shown.addEventListener("change", () => put({ shown: shown.value }), { signal });
  keepKeys(root, signal);
  const stops = [
    watch(model, ["p", "picture", "layer", "shown"], update), watch(model, ["strength"], repaint),
    watch(model, ["names", "networks", "layers", "asked", "shapes", "pixels", "values"], build),
  ];
  build();
  return () => (voice.hush(), stops.forEach((stop) => stop()));
}

export default { render };
