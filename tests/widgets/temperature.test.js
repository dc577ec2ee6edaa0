import assert from "node:assert/strict";
import test from "node:test";
import { dom, event, key, load, mount, pause, view } from "./setup.js";

const { default: widget, STOPS, stepOf, soften, entropy, gradientSize, short, floats } = await load("temperature");
const [v, alone, distilled] = [[6, 2, -1, 0, 5, 0], [4, 4, 0, 0, 1, 1], [5, 2, -1, 0, 4, 0]]; // two images, three classes
const values = () => ({
  T: 1, image: 0, log: false, names: ["teacher", "alone", "distilled"], classes: ["a", "b", "<b>c</b>"], labels: [0, 2], size: [2, 2],
  logits: view(new Float32Array([...v, ...alone, ...distilled])), pixels: view(new Uint8Array([0, 255, 0, 255, 9, 9, 9, 9])),
});
const slider = (el) => el.querySelector("input[type=range]");
const bars = (el, who) => [...el.querySelectorAll(".tlc-panel")[who].querySelectorAll("rect[fill]")].map((r) => Number(r.getAttribute("height")));
const move = (el, step) => { slider(el).value = String(step); slider(el).dispatchEvent(event("input")); };

test("the slider stops at the temperatures that the text names, and its stops rise", () => {
  for (const T of [0.1, 1, 2, 4, 5, 8, 10, 20]) assert.equal(STOPS[stepOf(T)], T);
  assert.deepEqual([STOPS[0], STOPS.at(-1)], [0.1, 20]);
  STOPS.forEach((T, step) => assert.equal(stepOf(T), step));
  for (let step = 1; step < STOPS.length; step++) assert.ok(STOPS[step] > STOPS[step - 1]);
  assert.equal(STOPS[stepOf(3.3)], 3.5);
});

const field = (el) => el.querySelector("input[type=number]");
const type = (el, text) => { field(el).value = text; field(el).dispatchEvent(event("input")); };

test("the field takes any temperature in the range, and forgets what is none", () => {
  const { el, model, stop } = mount(widget, values());
  type(el, "3.3");
  assert.equal(model.get("T"), 3.3);
  assert.equal(slider(el).value, String(stepOf(3.3)));
  assert.equal(slider(el).getAttribute("aria-valuetext"), "T = 3.3");
  for (const text of ["", "0", "21", "-1", "x", "3.3.3"]) {
    type(el, text);
    assert.equal(model.get("T"), 3.3);
  }
  field(el).dispatchEvent(event("change"));
  assert.equal(field(el).value, "3.3");
  model.set("T", 1 / 3);
  assert.equal(field(el).value, "0.333333");
  move(el, stepOf(8));
  assert.equal(field(el).value, "8");
  stop();
});

test("probabilities sum to one, flatten with T, and do not overflow", () => {
  for (const T of [0.1, 1, 20]) assert.ok(Math.abs(soften([500, -500, 3], T).reduce((a, b) => a + b) - 1) < 1e-12);
  assert.ok(soften([5, 1, 0], 10)[0] < soften([5, 1, 0], 1)[0]);
  assert.ok(Math.abs(entropy(soften([1, 1, 1, 1], 3)) - 2) < 1e-12);
  assert.equal(entropy([1, 0, 0]), 0);
  assert.equal(gradientSize([1, 2, 3], [1, 2, 3], 4), 0);
});

test("buffers are read from their place in a larger one", () => {
  assert.deepEqual([...floats(new DataView(new Float32Array([9, 1, 2]).buffer, 4))], [1, 2]);
});

test("numbers are short", () => {
  assert.deepEqual([0, 123.4, 3.3123, 0.1356, 0.00271, 0.0000123].map(short), ["0", "123", "3.31", "0.136", "0.0027", "1.2e-5"]);
});

test("a moved slider redraws, says so, and tells Python", async () => {
  const { el, model, stop } = mount(widget, values());
  const before = bars(el, 0);
  for (const T of [2, 2.25, 2.5]) move(el, stepOf(T));
  assert.equal(model.get("T"), 2.5);
  assert.notDeepEqual(bars(el, 0), before);
  assert.equal(slider(el).getAttribute("aria-valuetext"), "T = 2.5");
  assert.equal(model.saved, 3); // at once, so that an echo cannot undo the next move
  await pause(450);
  assert.match(el.querySelector("[role=status]").textContent, /^T = 2\.5, label a\. teacher: a \d+%, b \d+%.*alone: .*distilled: .*gradient/);
  stop();
});

test("bars, entropy and gradient are those of the image and the temperature", () => {
  const { el, model, stop } = mount(widget, values());
  model.set("image", 1);
  model.set("T", 4);
  const p = soften(v.slice(3), 4);
  bars(el, 0).forEach((height, k) => assert.ok(Math.abs(height / 70 - p[k]) < 1e-9));
  const cells = [...el.querySelectorAll("tr:not(:first-child) td")].map((cell) => cell.textContent);
  const size = gradientSize(alone.slice(3), v.slice(3), 4);
  assert.deepEqual(cells.slice(0, 6), [entropy(p).toFixed(2), "–", "–", entropy(soften(alone.slice(3), 4)).toFixed(2), short(size), short(16 * size)]);
  assert.equal(slider(el).value, String(stepOf(4)));
  assert.equal(el.querySelector(".tlc-caption").textContent, "label: <b>c</b>"); // text, never HTML
  assert.equal(el.querySelector("b"), null);
  stop();
});

test("the logarithmic axis ends at one in a million", () => {
  const { el, model, stop } = mount(widget, { ...values(), logits: view(new Float32Array([...[0, -30, -6.907755], ...v.slice(3), ...alone, ...distilled])) });
  model.set("log", true);
  const [top, bottom, middle] = bars(el, 0);
  assert.ok(Math.abs(top - 70) < 0.1);
  assert.equal(bottom, 0);
  assert.ok(Math.abs(middle - 35) < 0.1); // a thousandth
  stop();
});

test("T = 1, the axis and the images are controls of their own", () => {
  const { el, model, stop } = mount(widget, { ...values(), T: 7 });
  el.querySelector("button").click();
  assert.equal(model.get("T"), 1);
  el.querySelector("input[type=checkbox]").click();
  assert.equal(model.get("log"), true);
  el.querySelectorAll("input[type=radio]")[1].click();
  assert.equal(model.get("image"), 1);
  for (const input of el.querySelectorAll("input")) assert.ok(input.ariaLabel ?? input.getAttribute("aria-label") ?? input.closest("label") ?? el.querySelector(`label[for="${input.id}"]`));
  stop();
});

test("without details there is neither table nor talk of entropy and gradients", async () => {
  const { el, model, stop } = mount(widget, { ...values(), details: false });
  assert.equal(el.querySelector("table").hidden, true);
  model.set("T", 2);
  await pause(500);
  assert.doesNotMatch(el.querySelector("[role=status]").textContent, /entropy|gradient/);
  model.set("details", true);
  assert.equal(el.querySelector("table").hidden, false);
  stop();
});

test("keys stay in the widget, but for Tab, Escape and chords", () => {
  const { el, stop } = mount(widget, values());
  const leaked = [], listen = (e) => leaked.push(e.key);
  document.addEventListener("keydown", listen);
  for (const name of ["ArrowRight", "b", "d", "Enter"]) slider(el).dispatchEvent(key(name));
  slider(el).dispatchEvent(key("Enter", { shiftKey: true }));
  slider(el).dispatchEvent(key("Enter", { ctrlKey: true }));
  slider(el).dispatchEvent(key("Tab"));
  slider(el).dispatchEvent(key("Escape"));
  slider(el).dispatchEvent(key("s", { ctrlKey: true }));
  document.removeEventListener("keydown", listen);
  assert.deepEqual(leaked, ["Tab", "Escape", "s"]);
  stop();
});

test("two on one page keep apart; a closed one no longer listens", async () => {
  const first = mount(widget, values()), kept = first.el;
  const second = mount(widget, values());
  document.body.prepend(kept);
  const ids = [...document.querySelectorAll("[id]")].map((node) => node.id);
  assert.equal(new Set(ids).size, ids.length);
  move(second.el, 20);
  assert.equal(first.model.get("T"), 1);
  first.stop();
  const before = bars(kept, 0);
  first.model.set("T", 9);
  assert.deepEqual(bars(kept, 0), before);
  second.stop();
});
