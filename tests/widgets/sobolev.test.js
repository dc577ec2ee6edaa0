import assert from "node:assert/strict";
import test from "node:test";
import { event, key, load, mount, pause } from "./setup.js";

const { default: widget, errorOf, even, fit, kernel, solve, target, tell, verdict } = await load("sobolev");
const waves = [[1, 3, 0.4], [0.5, 8, 1]];
const values = () => ({ points: [-0.9, -0.3, 0.3, 0.9], length_scale: 0.3, slope_error: 0, waves });
const handles = (el) => [...el.querySelectorAll("g[role=slider]")];
const input = (el, which) => el.querySelectorAll("input[type=range]")[which];
const lines = (el) => [...el.querySelectorAll("path.tlc-line")].map((path) => path.getAttribute("d"));
const slide = (el, which, value) => { input(el, which).value = String(value); input(el, which).dispatchEvent(event("input")); };
const close = (a, b, far = 1e-9) => assert.ok(Math.abs(a - b) < far, `${a} is not ${b}`);
const pointer = (name, clientX) => Object.assign(event(name), { clientX, pointerId: 1, button: 0 });

test("slopes of target, kernel and fits are their differences", () => {
  const h = 1e-5, difference = (f, x) => (f(x + h) - f(x - h)) / (2 * h);
  close(target(waves, 0.3)[1], difference((x) => target(waves, x)[0], 0.3), 1e-7);
  const [a, b, l] = [0.2, -0.35, 0.4];
  close(kernel(a, true, b, false, l), l * difference((x) => kernel(x, false, b, false, l), a), 1e-8);
  close(kernel(a, false, b, true, l), l * difference((x) => kernel(a, false, x, false, l), b), 1e-8);
  close(kernel(a, true, b, true, l), l * difference((x) => kernel(x, false, b, true, l), a), 1e-8);
  const fitted = fit([-0.5, 0, 0.4], [1, 0, 2], [0, 1, -1], 0.3);
  close(fitted(0.17)[1], difference((x) => fitted(x)[0], 0.17), 1e-6);
});

test("a system of equations is solved by its triangles", () => {
  const a = solve([[4, 2, 0], [2, 5, 1], [0, 1, 3]], [8, 13, 10]);
  [[4 * a[0] + 2 * a[1], 8], [2 * a[0] + 5 * a[1] + a[2], 13], [a[1] + 3 * a[2], 10]].forEach(([l, r]) => close(l, r, 1e-12));
});

test("both fits pass through the points, and the second along the slopes", () => {
  const points = [-0.9, -0.2, 0.4, 0.75], told = points.map((x) => target(waves, x));
  const [without, within] = [null, told.map((t) => t[1])].map((slopes) => fit(points, told.map((t) => t[0]), slopes, 0.3));
  points.forEach((x, i) => {
    close(without(x)[0], told[i][0], 1e-6);
    close(within(x)[0], told[i][0], 1e-6);
    close(within(x)[1], told[i][1], 1e-5);
    assert.ok(Math.abs(without(x)[1] - told[i][1]) > 0.05);
  });
  assert.ok(errorOf(within, waves) < errorOf(without, waves) / 3);
});

test("points at one place break nothing, whatever they are told of the slope", () => {
  for (const [points, wrong] of [[[0.2, 0.2, 0.2], 0], [[0, 0, 0.5, 0.5, 0, -1, 0.5], 1], [[0.2, 0.21, 0.2], 0.5]]) {
    const told = points.map((x) => tell(waves, x, wrong)), fitted = fit(points, told.map((t) => t[0]), told.map((t) => t[1]), 0.6);
    assert.ok(Number.isFinite(errorOf(fitted, waves)));
    points.forEach((x, i) => close(fitted(x)[0], told[i][0], 0.01)); // a ridge lies between what contradicts itself
  }
});

test("even points are round and as many as asked", () => {
  assert.deepEqual(even(3), [-0.9, 0, 0.9]);
  assert.deepEqual(even(4), [-0.9, -0.3, 0.3, 0.9]);
  for (const n of [5, 6, 7]) assert.equal(even(n).length, n);
});

test("the verdict says which way and how much", () => {
  assert.deepEqual([[0.4, 0.05], [0.05, 0.4], [0.4, 0.39], [1e-4, 0], [4, 0.01], [0.4, 0.02]].map(([a, b]) => verdict(a, b)), [
    "Slopes divide the error by 8.0", "Slopes multiply the error by 8.0", "Slopes change little", "Both fits lie on the target",
    "Slopes divide the error by more than 100", "Slopes divide the error by 20"]);
});

test("arrow keys move a point, redraw, say so, and tell Python at once", async () => {
  const { el, model, stop } = mount(widget, values()), before = lines(el), node = handles(el)[1];
  for (const name of ["ArrowRight", "ArrowUp", "PageDown", "ArrowLeft"]) node.dispatchEvent(key(name));
  assert.deepEqual(model.get("points"), [-0.9, -0.48, 0.3, 0.9]);
  assert.equal(model.saved, 4);
  assert.equal(handles(el)[1], node); // it is the same element: it keeps the focus
  assert.deepEqual([node.getAttribute("aria-valuenow"), node.getAttribute("aria-label")], ["-0.48", "Point 2"]);
  const [value, slope] = target(waves, -0.48).map((v) => v.toFixed(2).replace("-", "−"));
  assert.equal(node.getAttribute("aria-valuetext"), `x = −0.48, value ${value}, slope ${slope}`);
  assert.deepEqual(lines(el).map((d, who) => d === before[who]), [true, false, false]); // the target stays
  node.dispatchEvent(key("End"));
  node.dispatchEvent(key("ArrowRight"));
  assert.equal(model.get("points")[1], 1);
  node.dispatchEvent(key("Home"));
  assert.equal(model.get("points")[1], -1);
  const pressed = [key("PageUp", { cancelable: true }), key("Tab", { cancelable: true })];
  pressed.forEach((e) => node.dispatchEvent(e));
  assert.deepEqual(pressed.map((e) => e.defaultPrevented), [true, false]); // the page does not scroll
  node.dispatchEvent(key("Home"));
  node.dispatchEvent(key("ArrowRight", { ctrlKey: true }));
  assert.equal(model.get("points")[1], -1);
  await pause(450);
  assert.match(el.querySelector("[role=status]").textContent,
    /^Slopes \w+ the error by [\d.]+\. Values alone, 4 numbers told: root mean squared error \d\.\d{3}; values and slopes, 8 numbers told: root mean squared error \d\.\d{3}\.$/);
  stop();
});

test("a point follows the pointer while it is held, and no longer", () => {
  const { el, model, stop } = mount(widget, values()), node = handles(el)[2];
  el.querySelector("svg.tlc-panel").getBoundingClientRect = () => ({ left: 0, top: 0, width: 640, height: 320 });
  const at = (x) => 34 + (590 * (x + 1)) / 2;
  node.dispatchEvent(pointer("pointermove", at(0)));
  assert.equal(model.get("points")[2], 0.3);
  node.dispatchEvent(pointer("pointerdown", at(0.31))); // a little beside it: it does not jump
  assert.equal(document.activeElement, node);
  node.dispatchEvent(pointer("pointermove", at(0.31)));
  assert.equal(model.get("points")[2], 0.3);
  node.dispatchEvent(pointer("pointermove", at(-0.09)));
  assert.equal(model.get("points")[2], -0.1);
  handles(el)[0].dispatchEvent(pointer("pointermove", at(0.5))); // another is not dragged along
  assert.equal(model.get("points")[0], -0.9);
  node.dispatchEvent(pointer("pointermove", at(7)));
  assert.equal(model.get("points")[2], 1);
  node.dispatchEvent(pointer("pointerup", at(7)));
  node.dispatchEvent(pointer("pointermove", at(0)));
  assert.equal(model.get("points")[2], 1);
  node.dispatchEvent(pointer("pointerdown", at(1)));
  model.set("points", [0, 0.1, 0.2, 0.3, 0.4]); // other points come while one is held: none of them is
  handles(el)[2].dispatchEvent(pointer("pointermove", at(-1)));
  assert.equal(model.get("points")[2], 0.2);
  stop();
});

test("number of points, length scale and slope error are sliders with words", () => {
  const { el, model, stop } = mount(widget, values());
  slide(el, 0, 7);
  assert.deepEqual(model.get("points"), even(7));
  assert.equal(handles(el).length, 7);
  slide(el, 1, 0.5);
  slide(el, 2, 0.25);
  assert.deepEqual([model.get("length_scale"), model.get("slope_error")], [0.5, 0.25]);
  assert.deepEqual([0, 1, 2].map((which) => input(el, which).getAttribute("aria-valuetext")), ["7 points", "length scale 0.50", "25 percent of a typical slope"]);
  for (const one of el.querySelectorAll("input")) assert.ok(el.querySelector(`label[for="${one.id}"]`));
  stop();
});

test("Python moves points, and a slope told wrongly turns its stroke but leaves the values", () => {
  const { el, model, stop } = mount(widget, values());
  model.set("points", [0, 0, 0.5]);
  assert.deepEqual(handles(el).map((node) => node.getAttribute("aria-valuenow")), ["0", "0", "0.5"]);
  const before = lines(el), stroke = () => el.querySelector(".tlc-tangent").getAttribute("y1"), was = stroke();
  model.set("slope_error", 0.5);
  assert.notEqual(stroke(), was);
  assert.deepEqual(lines(el).map((d, who) => d === before[who]), [true, true, false]);
  model.set("waves", [[0, 0, 0]]); // nothing to fit: no number is infinite or missing
  assert.doesNotMatch(el.innerHTML, /NaN|Infinity/);
  assert.match(el.textContent, /Both fits lie on the target \(6 numbers told instead of 3\)/);
  stop();
});

test("the errors on show are those of the fits", () => {
  const { el, stop } = mount(widget, values()), told = values().points.map((x) => target(waves, x));
  const errors = [null, told.map((t) => t[1])].map((slopes) => errorOf(fit(values().points, told.map((t) => t[0]), slopes, 0.3), waves).toFixed(3));
  assert.deepEqual([...el.querySelectorAll(".tlc-row strong")].slice(0, 2).map((node) => node.textContent), errors);
  assert.match(el.querySelector("g[role=img]").getAttribute("aria-label"), new RegExp(`${errors[0]}.*${errors[1]}`));
  stop();
});

test("keys stay in the widget, and a stopped one no longer draws", () => {
  const { el, model, stop } = mount(widget, values()), heard = [];
  el.addEventListener("keydown", (e) => heard.push(e.key));
  for (const name of ["ArrowLeft", "b", "Tab"]) handles(el)[0].dispatchEvent(key(name));
  assert.deepEqual(heard, ["Tab"]);
  const before = lines(el);
  stop();
  model.set("length_scale", 0.6);
  assert.deepEqual(lines(el), before);
});
