import assert from "node:assert/strict";
import test from "node:test";
import { event, key, load, mount, pause, view } from "./setup.js";

const { default: widget, matrix, averageAccuracy, forgetting } = await load("forgetting");
const N = NaN;
const light = [[90, N], [80, 50], [60, 95]], heavy = [[90, N], [90, 40], [89, 80]], joint = [[90, N], [91, 60], [92, 94]];
const values = () => ({
  weight: 1, shown: ["LwF", "joint"], tasks: ["<b>a</b>", "b"], names: ["LwF", "joint"], weights: [0.1, 1], starts: [0, 1],
  accuracy: view(new Float32Array([...light, ...heavy, ...joint].flat())),
});
const slider = (el) => el.querySelector("input[type=range]");
const cells = (el) => [...el.querySelectorAll("tr:not(:first-child) td")].map((cell) => cell.textContent);
const lines = (el, j) => [...el.querySelectorAll(".tlc-panel")[j].querySelectorAll("path")].reverse().map((path) => path.getAttribute("d")); // the first is drawn last, on top

test("the matrix holds what is true when each task has been learnt", () => {
  assert.deepEqual(matrix(light, [0, 1]), [[90, N], [60, 95]]);
  assert.deepEqual(matrix(light, [0, 2]), [[80, 50], [60, 95]]);
});

test("mean accuracy and forgetting by hand", () => {
  const R = [[90, 30, 20], [70, 80, 40], [50, 60, 90]];
  assert.ok(Math.abs(averageAccuracy(R) - 200 / 3) < 1e-12);
  assert.equal(forgetting(R), 30);
  assert.equal(forgetting([[50, N], [53.5, 90]]), -3.5);
  assert.ok(Number.isNaN(forgetting([[90]])));
});

test("the slider takes the weights of the grid, redraws and tells Python once", async () => {
  const { el, model, stop } = mount(widget, values());
  assert.deepEqual([slider(el).min, slider(el).max, slider(el).value], ["0", "1", "1"]);
  assert.deepEqual(cells(el), ["84.5", "1.0", "93.0", "−2.0"]);
  const before = lines(el, 0);
  slider(el).value = "0";
  slider(el).dispatchEvent(event("input"));
  assert.equal(model.get("weight"), 0.1);
  assert.deepEqual(cells(el), ["77.5", "30.0", "93.0", "−2.0"]);
  assert.notEqual(lines(el, 0)[0], before[0]);
  assert.equal(lines(el, 0)[1], before[1]);
  assert.equal(slider(el).getAttribute("aria-valuetext"), "weight 0.1");
  assert.equal(model.saved, 1);
  await pause(450);
  assert.equal(el.querySelector("[role=status]").textContent, "Weight 0.1. LwF: mean accuracy 77.5, forgetting 30.0. joint: mean accuracy 93.0, forgetting −2.0");
  stop();
});

test("Python moves it, and the picture says what it shows", () => {
  const { el, model, stop } = mount(widget, values());
  model.set("weight", 0.1);
  assert.equal(slider(el).value, "0");
  const said = [...el.querySelectorAll(".tlc-panel")].map((node) => node.getAttribute("aria-label"));
  assert.equal(said[0], "accuracy on <b>a</b> in percent: LwF from 90.0 to 60.0; joint from 90.0 to 92.0");
  assert.equal(el.querySelector("b"), null);
  assert.match(lines(el, 1)[0], /^M[\d. ]+L[\d. ]+$/); // the second task has two points, none before it is learnt
  stop();
});

test("a way can be hidden and shown", () => {
  const { el, model, stop } = mount(widget, values());
  const [lwf, both] = el.querySelectorAll("input[type=checkbox]");
  lwf.checked = false;
  lwf.dispatchEvent(event("change"));
  assert.deepEqual(model.get("shown"), ["joint"]);
  assert.equal(lines(el, 0)[0], "");
  assert.ok(lines(el, 0)[1]);
  model.set("shown", ["LwF"]);
  assert.deepEqual([lwf.checked, both.checked], [true, false]);
  stop();
});

test("keys stay in the widget, but for those that leave it", () => {
  const { el, stop } = mount(widget, values());
  const heard = [];
  el.addEventListener("keydown", (e) => heard.push(e.key));
  for (const name of ["ArrowLeft", "b", "Tab"]) slider(el).dispatchEvent(key(name));
  assert.deepEqual(heard, ["Tab"]);
  stop();
});

test("two of them share no name, and a stopped one no longer draws", () => {
  const { el, model, stop } = mount(widget, values());
  const other = mount(widget, values());
  assert.notEqual(slider(el).id, slider(other.el).id);
  stop();
  const before = cells(el);
  model.set("weight", 0.1);
  assert.deepEqual(cells(el), before);
  other.stop();
});

test("every control has a label", () => {
  const { el, stop } = mount(widget, values());
  for (const input of el.querySelectorAll("input")) assert.ok(input.closest("label") || el.querySelector(`label[for="${input.id}"]`));
  stop();
});
