import assert from "node:assert/strict";
import test from "node:test";
import { event, key, load, mount, pause, view } from "./setup.js";

const { default: widget, attentionMap, halfIn, colour, smooth } = await load("attention");
const close = (a, b) => assert.ok(Math.abs(a - b) < 1e-12, `${a} is not ${b}`);
// two pictures of 2 × 2; two networks with one layer of 2 channels, 2 × 2
const values = (more = {}) => ({
  p: 2, strength: 0.6, picture: 0, layer: "top", shown: "attention", names: ["<b>shoe</b>", "bag"], networks: ["teacher", "alone"],
  layers: ["top"], asked: [], shapes: [[1, 2, 2], [2, 2, 2], [2, 2, 2]], pixels: view(new Uint8Array(8)),
  values: view(new Uint8Array([
    255, 0, 0, 0, 0, 0, 0, 51, 0, 0, 255, 0, 0, 0, 0, 0, // teacher: picture 1, picture 2
    0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 0, 255, 0, 0, 0, 0, // alone
  ])), ...more,
});
const one = () => values({
  networks: ["network"], asked: ["cat"], shapes: [[1, 2, 2], [2, 2, 2], [1, 2, 2]],
  values: view(new Uint8Array([255, 0, 0, 0, 0, 0, 0, 51, 0, 0, 255, 0, 0, 0, 0, 0, 0, 0, 0, 255, 0, 128, 255, 0])),
});
const [power, strength] = ["Power p", "Overlay"].map((text) => (el) =>
  el.querySelector(`#${[...el.querySelectorAll("label")].find((label) => label.textContent === text).htmlFor}`));
const cells = (el) => [...el.querySelectorAll("th ~ td")].map((cell) => cell.textContent);
const says = (el) => el.querySelector(".tlc-cell").textContent;

test("a map by hand", () => {
  const map = attentionMap(new Uint8Array([255, 51, 0, 51]), 2, 2, 1); // (1 + 0, 0.2 + 0.2)
  close(map[0], 1);
  close(map[1], 0.4);
  close(attentionMap(new Uint8Array([255, 51, 0, 51]), 2, 2, 2)[1], 0.08);
  assert.deepEqual([...attentionMap(new Uint8Array(4), 2, 2, 2)], [0, 0]);
});

test("half of a map lies in its strongest places", () => {
  assert.equal(halfIn([1, 1, 1, 1]), 2);
  assert.equal(halfIn([0.1, 1, 0.1, 0.1]), 1);
  assert.equal(halfIn([0, 0]), 0);
});

test("colours run from the first to the last, and lighter on the way", () => {
  assert.deepEqual(colour(0), [0, 34, 78]);
  assert.deepEqual(colour(1), [254, 232, 56]);
  const light = Array.from({ length: 101 }, (_, i) => colour(i / 100)).map(([r, g, b]) => 0.2126 * r + 0.7152 * g + 0.0722 * b);
  assert.ok(light.every((v, i) => i === 0 || v > light[i - 1]));
});

test("between the middles of the places a map is smooth, beyond them flat", () => {
  const map = [0, 1, 2, 3];
  close(smooth(map, 2, 2, 0.5, 0.5), 1.5);
  close(smooth(map, 2, 2, 0.25, 0.25), 0);
  close(smooth(map, 2, 2, 0, 0), 0);
  close(smooth(map, 2, 2, 1, 1), 3);
  close(smooth(map, 2, 2, 0.5, 0.25), 0.5);
  close(smooth([7], 1, 1, 0.3, 0.9), 7);
});

test("the power moves, the numbers follow, and Python is told", async () => {
  const { el, model, stop } = mount(widget, values());
  assert.deepEqual(cells(el), ["upper left", "1 of 4 places", "nowhere", "0 of 4 places"]);
  power(el).value = "1";
  power(el).dispatchEvent(event("input"));
  assert.equal(model.get("p"), 1);
  assert.equal(power(el).getAttribute("aria-valuetext"), "p = 1");
  assert.equal(model.saved, 1);
  await pause(450);
  assert.match(el.querySelector("[role=status]").textContent, /^<b>shoe<\/b>, top, p = 1\. teacher: strongest upper left, half of it in 1 of 4 places\. alone: strongest nowhere/);
  stop();
});

test("arrow keys on a map read single places, in all networks at once", () => {
  const { el, model, stop } = mount(widget, values());
  const canvas = el.querySelector("canvas.tlc-look"), press = (name) => canvas.dispatchEvent(key(name));
  press("ArrowDown");
  assert.equal(says(el), "Row 1 of 2, column 1 of 2: teacher 1.00, alone 0.00 of the largest.");
  press("ArrowDown");
  press("ArrowRight");
  assert.equal(says(el), "Row 2 of 2, column 2 of 2: teacher 0.04, alone 0.00 of the largest.");
  press("ArrowRight"); // stays inside
  model.set("p", 1);
  assert.equal(says(el), "Row 2 of 2, column 2 of 2: teacher 0.20, alone 0.00 of the largest.");
  assert.deepEqual([...el.querySelectorAll(".tlc-mark")].map((mark) => mark.style.top), ["50%", "50%"]);
  model.set("picture", 1);
  assert.equal(says(el), "Row 2 of 2, column 2 of 2: teacher 0.00, alone 1.00 of the largest.");
  stop();
});

test("a picture, the overlay and a given map are chosen", () => {
  const { el, model, stop } = mount(widget, one());
  const [first, second] = el.querySelectorAll("input[type=radio]");
  assert.ok(first.checked);
  second.checked = true;
  second.dispatchEvent(event("change"));
  assert.equal(model.get("picture"), 1);
  assert.deepEqual(cells(el), ["lower left", "1 of 4 places"]);
  strength(el).value = "0.25";
  strength(el).dispatchEvent(event("input"));
  assert.equal(model.get("strength"), 0.25);
  assert.equal(strength(el).getAttribute("aria-valuetext"), "25 percent");
  const shown = [...el.querySelectorAll("select")].at(-1);
  assert.deepEqual([...shown.options].map((option) => option.value), ["attention", "cat"]);
  shown.value = "cat";
  shown.dispatchEvent(event("change"));
  assert.equal(model.get("shown"), "cat");
  assert.ok(power(el).disabled);
  assert.deepEqual(cells(el), ["lower left", "1 of 4 places"]);
  model.set("picture", 0);
  assert.deepEqual(cells(el), ["lower right", "1 of 4 places"]);
  stop();
});

test("without given maps there is nothing to choose, and names stay text", () => {
  const { el, stop } = mount(widget, values());
  assert.equal(el.querySelectorAll("select").length, 1);
  assert.equal(el.querySelector("b"), null);
  assert.match(el.querySelector("canvas.tlc-look").getAttribute("aria-label"), /^<b>shoe<\/b>, teacher: strongest upper left/);
  stop();
});

test("keys stay in the widget, but for those that leave it", () => {
  const { el, stop } = mount(widget, values());
  const heard = [];
  el.addEventListener("keydown", (e) => heard.push(e.key));
  for (const name of ["ArrowLeft", "b", "Tab"]) el.querySelector("canvas.tlc-look").dispatchEvent(key(name));
  assert.deepEqual(heard, ["Tab"]);
  stop();
});

test("two of them share no name, a stopped one no longer draws, and every control has a label", () => {
  const { el, model, stop } = mount(widget, one());
  const other = mount(widget, one());
  assert.notEqual(power(el).id, power(other.el).id);
  for (const input of el.querySelectorAll("input, select")) assert.ok(input.closest("label") || el.querySelector(`label[for="${input.id}"]`));
  stop();
  const before = cells(el);
  model.set("picture", 1);
  assert.deepEqual(cells(el), before);
  other.stop();
});
