import assert from "node:assert/strict";
import test from "node:test";
import { event, key, load, mount, pause } from "./setup.js";

const { default: widget, compare, digits, fifths, nearest, neighbour, place, share, shares, ticks } = await load("lossweights");
const weights = []; // (i, j, k) / 3, the first corner last
for (let i = 0; i < 4; i++) for (let j = 0; j < 4 - i; j++) weights.push([i / 3, j / 3, (3 - i - j) / 3]);
const powers = weights.map((w) => w.map((v) => 2 ** (3 * v))).map((w) => w.map((v) => v / w.reduce((a, b) => a + b)));
const index = (...ijk) => weights.findIndex((w) => ijk.every((n, k) => Math.abs(w[k] - n / 3) < 1e-9));
const values = (change = {}) => ({
  tasks: [{ name: "<b>seg</b>", unit: "%", better: "higher", alone: 50, learnt: 45 }, { name: "centres", unit: "px", better: "lower", alone: 1.25, learnt: 1.5 },
    { name: "depth", unit: "", better: "lower", alone: 3, learnt: 2 }],
  weightings: weights.map((w, i) => ({ weights: w, values: [40 + 15 * w[0], 2 - w[1], i === 5 ? 3.0049 : 4 - 1.5 * w[2]] })),
  learnt_weights: [0.2, 0.5, 0.3], scale: "linear", at: 5, coloured_by: "", ...change,
});
const radios = (el) => [...el.querySelectorAll("[role=radio]")];
const checked = (el) => radios(el).map((radio, i) => (radio.getAttribute("aria-checked") === "true" ? i : -1)).filter((i) => i >= 0);
const where = (el) => radios(el).map((radio) => radio.getAttribute("transform").match(/[\d.]+/g).map(Number));
const press = (el, name, options) => { const e = key(name, { cancelable: true, ...options }); document.activeElement.dispatchEvent(e); return e; };
const pointer = (name, [x, y], options = {}) => Object.assign(event(name, { cancelable: true }), { clientX: x, clientY: y, pointerId: 1, button: 0, ...options });
const sized = (el) => { const svg = el.querySelector(".tlc-triangle"); svg.getBoundingClientRect = () => ({ left: 0, top: 0, width: 300, height: 300 }); return svg; };
const close = (a, b) => a.forEach((v, i) => assert.ok(Math.abs(v - b[i]) < 1e-9, `${a} is not ${b}`));

test("corners are where one weight is all, and powers of two lie as their exponents", () => {
  close(place([1, 0, 0]), [0.5, 0]);
  close(place([0, 1, 0]), [0, Math.sqrt(3) / 2]);
  close(place([0, 0, 1]), [1, Math.sqrt(3) / 2]);
  assert.equal(shares(weights, false), weights);
  shares(powers, true).forEach((b, i) => close(b, weights[i]));
  const wide = shares([...powers, [0.998, 0.001, 0.001]], true); // one outside of the others: it gets room
  close(wide.at(-1), [1, 0, 0]);
  assert.ok(wide.flat().every((v) => v > -1e-12));
});

test("arrow keys lead to neighbours, back again, and everywhere", () => {
  const points = weights.map(place), ways = { right: [1, 0], left: [-1, 0], up: [0, -1], down: [0, 1] };
  const to = (from, way) => weights[neighbour(points, index(...from), ways[way])].map((v) => Math.round(3 * v));
  assert.deepEqual(to([1, 1, 1], "right"), [1, 0, 2]);
  assert.deepEqual(to([1, 1, 1], "left"), [1, 2, 0]);
  assert.deepEqual(to([1, 1, 1], "up"), [2, 0, 1]);
  assert.deepEqual(to([1, 1, 1], "down"), [0, 2, 1]);
  assert.deepEqual(to([2, 0, 1], "down"), [1, 1, 1]); // the way back
  assert.deepEqual(to([3, 0, 0], "right"), [3, 0, 0]); // none there
  const seen = new Set([0]), next = [0];
  while (next.length) {
    const at = next.pop();
    for (const way of Object.values(ways)) { const i = neighbour(points, at, way); if (!seen.has(i)) next.push(i), seen.add(i); }
  }
  assert.equal(seen.size, points.length);
  assert.equal(nearest(points, [0.52, 0.05]), index(3, 0, 0));
});

test("fifths, digits, ticks and weights as they are said", () => {
  assert.deepEqual(fifths([1, 2, 3, 4, 5], "higher"), [0, 1, 2, 3, 4]);
  assert.deepEqual(fifths([1, 2, 3, 4, 5], "lower"), [4, 3, 2, 1, 0]);
  assert.deepEqual(fifths([7, 7, 7], "lower"), [0, 0, 0]);
  assert.deepEqual([[54.3], [1.234, 0.1], [0.025], [5432], [0], [-12]].map(digits), [1, 2, 4, 0, 2, 1]);
  assert.deepEqual(ticks(40.2, 55.1).map(([v]) => v), [45, 50, 55]);
  assert.deepEqual(ticks(-0.13, 0.11).map(([, text]) => text), ["−0.10", "−0.05", "0.00", "0.05", "0.10"]);
  for (let k = 0; k < 300; k++) { const [low, high] = [k ** 1.7 / 1e3 - 1, k ** 1.7 / 1e3 + 1.1 ** (k % 90) / 50]; if (high > low) assert.ok(ticks(low, high).length >= 2 && ticks(low, high).length <= 6, `${low} ${high}`); }
  assert.deepEqual([0, 0.0152, 0.0999, 0.3333, 1].map(share), ["0", "0.015", "0.10", "0.33", "1.00"]);
  assert.deepEqual([compare(2, 1, "higher", 1), compare(2, 1, "lower", 1), compare(1.04, 1.01, "lower", 1)].map((c) => c + 0), [1, -1, 0]);
});

test("keys move the ring, say it in words and tell Python at once", async () => {
  const { el, model, stop } = mount(widget, values());
  assert.deepEqual(checked(el), [5]);
  assert.deepEqual(radios(el).map((radio) => radio.getAttribute("tabindex")).filter((tab) => tab === "0").length, 1);
  radios(el)[5].focus();
  for (const [name, ijk] of [["ArrowRight", [1, 0, 2]], ["ArrowRight", [1, 0, 2]], ["Home", [3, 0, 0]], ["End", [0, 0, 3]], ["2", [0, 3, 0]], ["1", [3, 0, 0]], ["3", [0, 0, 3]], ["ArrowLeft", [0, 1, 2]]]) {
    assert.ok(press(el, name).defaultPrevented);
    assert.equal(model.get("at"), index(...ijk), name);
    assert.equal(document.activeElement, radios(el)[index(...ijk)]);
  }
  assert.equal(model.saved, 7); // one of the keys led nowhere
  press(el, "Home", { ctrlKey: true });
  assert.equal(press(el, "Tab").defaultPrevented, false);
  assert.equal(model.get("at"), index(0, 1, 2));
  assert.equal(document.activeElement.getAttribute("aria-label"), "<b>seg</b> 0, centres 0.33, depth 0.67");
  await pause(450);
  assert.equal(el.querySelector("[role=status]").textContent, "Weights: <b>seg</b> 0, centres 0.33, depth 0.67. " +
    "<b>seg</b> 40.0 %, worse than alone; centres 1.67 px, worse than alone; depth 3.00, as good as alone. 0 of 3 tasks better than alone.");
  assert.equal(el.querySelector("b"), null);
  stop();
});

test("a click leads to the nearest dot, and the ring follows the pointer while it is held", () => {
  const { el, model, stop } = mount(widget, values()), svg = sized(el), at = where(el);
  const beside = (i) => [at[i][0] + 12, at[i][1] - 9];
  svg.dispatchEvent(pointer("pointermove", beside(0)));
  assert.equal(model.get("at"), 5);
  svg.dispatchEvent(pointer("pointerdown", beside(2)));
  assert.equal(model.get("at"), 2);
  assert.equal(document.activeElement, radios(el)[2]);
  svg.dispatchEvent(pointer("pointermove", beside(7)));
  svg.dispatchEvent(pointer("pointermove", [-500, 900]));
  assert.equal(model.get("at"), index(0, 3, 0));
  svg.dispatchEvent(pointer("pointerup", beside(7)));
  svg.dispatchEvent(pointer("pointermove", beside(7)));
  assert.equal(model.get("at"), index(0, 3, 0));
  svg.dispatchEvent(pointer("pointerdown", beside(7), { button: 2 }));
  svg.dispatchEvent(pointer("pointerdown", beside(7), { pointerType: "touch" })); // it may be the beginning of a scroll
  assert.equal(model.get("at"), index(0, 3, 0));
  svg.dispatchEvent(pointer("click", beside(7)));
  assert.equal(model.get("at"), 7);
  el.querySelector(".tlc-grip").dispatchEvent(pointer("pointerdown", at[7], { pointerType: "touch" })); // the ring itself can be dragged
  svg.dispatchEvent(pointer("pointermove", beside(8)));
  assert.equal(model.get("at"), 8);
  stop();
});

test("each task has its own scale, on which right is better", () => {
  const { el, model, stop } = mount(widget, values({ at: index(3, 0, 0) }));
  const rows = [...el.querySelectorAll(".tlc-task")], told = () => rows.map((row) => row.textContent.replace(/(higher|lower) is better.*/, ""));
  assert.deepEqual(told(), ["<b>seg</b>55.0 %better than alone (50.0); learnt: 45.0", "centres2.00 pxworse than alone (1.25); learnt: 1.50", "depth4.00worse than alone (3.00); learnt: 2.00"]);
  assert.match(rows[1].textContent, /lower is better →/);
  assert.equal(el.querySelector(".tlc-verdict").textContent, "Better than alone: 1 of 3 tasks");
  const x = (row, name) => Number(row.querySelector(`.tlc-mark-${name}`).parentNode.getAttribute("transform")?.match(/[\d.]+/)[0] ?? row.querySelector(`.tlc-mark-${name}`).getAttribute("transform").match(/[\d.]+/)[0]);
  const ring = (row) => Number(row.querySelector(".tlc-mark-here").getAttribute("transform").match(/[\d.]+/)[0]);
  assert.ok(ring(rows[0]) > x(rows[0], "alone") && x(rows[0], "alone") > x(rows[0], "learnt")); // 55 > 50 > 45
  assert.ok(ring(rows[1]) < x(rows[1], "learnt") && x(rows[1], "learnt") < x(rows[1], "alone")); // 2 > 1.5 > 1.25, and less is better
  assert.equal(rows[1].querySelector("svg").getAttribute("aria-label"),
    "centres, lower is better: 2.00 px with these weights, 1.25 alone, 1.50 with learnt weights; 1.00 to 2.00 over all dots");
  model.set("at", index(0, 3, 0)); // Python moves it
  assert.deepEqual(checked(el), [index(0, 3, 0)]);
  assert.match(told()[1], /^centres1.00 pxbetter than alone/);
  assert.deepEqual([...el.querySelectorAll(".tlc-triangle tspan.tlc-number")].map((node) => node.textContent), ["0", "1.00", "0"]);
  model.set("tasks", values().tasks.map((task) => ({ ...task, alone: 0, learnt: 0 })));
  model.set("weightings", weights.map((w) => ({ weights: w, values: [0, 0, 0] }))); // nothing differs: no number is infinite or missing
  assert.doesNotMatch(el.innerHTML, /NaN|Infinity/);
  stop();
});

test("size and shade of the dots are those of one task, in five steps", () => {
  const { el, model, stop } = mount(widget, values()), select = el.querySelector("select"), sizes = () => radios(el).map((radio) => Number(radio.firstChild.getAttribute("r")));
  assert.deepEqual([...select.options].map((option) => option.textContent), ["nothing", "<b>seg</b>", "centres", "depth"]);
  assert.equal(new Set(sizes()).size, 1);
  select.value = "centres";
  select.dispatchEvent(event("change"));
  assert.deepEqual([model.get("coloured_by"), model.saved], ["centres", 1]);
  assert.equal(Math.max(...sizes()), sizes()[index(0, 3, 0)]);
  assert.equal(radios(el)[index(0, 3, 0)].firstChild.getAttribute("class"), "tlc-run tlc-step-4");
  model.set("coloured_by", "<b>seg</b>");
  assert.equal(Math.max(...sizes()), sizes()[index(3, 0, 0)]);
  assert.equal(el.querySelector(".tlc-steps").style.visibility, "visible");
  model.set("coloured_by", "");
  assert.deepEqual([select.value, el.querySelector(".tlc-steps").style.visibility], ["", "hidden"]);
  assert.ok(el.querySelector(`label[for="${select.id}"]`));
  stop();
});

test("ratios are distances on a log scale, unless a weight is 0", () => {
  const runs = values().weightings.map((each, i) => ({ ...each, weights: powers[i] }));
  const log = mount(widget, values({ weightings: runs, scale: "log" })), drawn = where(log.el);
  assert.match(log.el.textContent, /distances are ratios/);
  log.stop();
  const linear = mount(widget, values()), even = where(linear.el);
  linear.stop();
  assert.deepEqual(drawn, even); // exponents lie as even steps do
  const zeros = mount(widget, values({ scale: "log" }));
  assert.deepEqual(where(zeros.el), even);
  zeros.stop();
});

test("keys stay in the widget, and a stopped one no longer draws", () => {
  const { el, model, stop } = mount(widget, values()), heard = [];
  el.addEventListener("keydown", (e) => heard.push(e.key));
  for (const name of ["ArrowLeft", "b", "Tab"]) radios(el)[0].dispatchEvent(key(name));
  assert.deepEqual(heard, ["Tab"]);
  const before = el.innerHTML;
  stop();
  model.set("at", 0);
  assert.equal(el.innerHTML, before);
});
