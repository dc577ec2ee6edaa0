import assert from "node:assert/strict";
import test from "node:test";
import { event, key, load, mount, pause } from "./setup.js";

const { default: widget, span, verdict } = await load("prediction");
const blank = { choice: "", number: null, because: "", sure: 50, revealed: false, surprise: "", why: "It says more.", unit: "" };
const choices = () => ({ ...blank, question: "Which?", choices: ["alone", "<i>T = 20</i>"], answer: "<i>T = 20</i>", low: 0, high: 0 });
const number = () => ({ ...blank, question: "How many?", choices: [], answer: "67.8", low: 58, high: 77.7, unit: "errors" });
const button = (el) => el.querySelector("button");

test("what the reveal says first", () => {
  assert.equal(verdict({ ...choices(), choice: "alone" }), "You predicted: alone. Measured: <i>T = 20</i>.");
  assert.equal(verdict({ ...choices(), choice: "<i>T = 20</i>" }), "As you predicted.");
  assert.equal(verdict({ ...number(), number: 60 }), "Your 60 is within what was measured: 67.8 errors (58 to 77.7).");
  assert.equal(verdict({ ...number(), number: 30 }), "You predicted 30. Measured: 67.8 errors (58 to 77.7).");
  assert.equal(verdict({ ...number(), low: 67.8, high: 67.8, number: 30 }), "You predicted 30. Measured: 67.8 errors.");
});

test("the scale holds all numbers with some air, and does not go below zero without need", () => {
  for (const numbers of [[1, 2, 3], [5, 5, 5], [0, 0, 0], [-3, 8, 2]]) {
    const [low, high] = span(numbers);
    assert.ok(low <= Math.min(...numbers) && high > Math.max(...numbers));
    assert.ok(low >= 0 || Math.min(...numbers) < 0);
  }
});

test("nothing is revealed before an answer, and nothing can be changed after", async () => {
  const { el, model, stop } = mount(widget, choices());
  const result = el.querySelector(".tlc-result");
  assert.ok(button(el).disabled && result.hidden);
  assert.ok(!el.textContent.includes("It says more."));
  const [alone] = el.querySelectorAll("input[type=radio]");
  alone.click();
  assert.equal(model.get("choice"), "alone");
  assert.ok(!button(el).disabled);
  button(el).click();
  assert.ok(model.get("revealed") && !result.hidden && button(el).disabled && alone.disabled);
  assert.equal(document.activeElement, result);
  assert.equal(model.saved, 2);
  assert.ok(result.textContent.includes("It says more."));
  assert.equal(el.querySelector("i"), null); // labels are text
  await pause(450);
  assert.match(el.querySelector("[role=status]").textContent, /^You predicted: alone\. Measured: .* It says more\.$/);
  stop();
});

test("a number is taken as it is typed, and emptied again", () => {
  const { el, model, stop } = mount(widget, number());
  const input = el.querySelector("input[type=number]");
  input.value = "0";
  input.dispatchEvent(event("input"));
  assert.equal(model.get("number"), 0);
  assert.ok(!button(el).disabled);
  input.value = "";
  input.dispatchEvent(event("input"));
  assert.equal(model.get("number"), null);
  assert.ok(button(el).disabled);
  input.value = "70.50";
  input.dispatchEvent(event("input"));
  assert.equal(input.value, "70.50"); // what is typed is not rewritten
  button(el).click();
  assert.match(el.querySelector("svg").getAttribute("aria-label"), /^Your 70.5 is within/);
  stop();
});

test("reason, confidence and surprise are kept", async () => {
  const { el, model, stop } = mount(widget, choices());
  const [because, surprise] = el.querySelectorAll("textarea");
  because.value = "soft";
  because.dispatchEvent(event("input"));
  el.querySelector("input[type=range]").value = "80";
  el.querySelector("input[type=range]").dispatchEvent(event("input"));
  surprise.value = "all";
  surprise.dispatchEvent(event("input"));
  assert.deepEqual(["because", "sure", "surprise"].map((name) => model.get(name)), ["soft", 80, "all"]);
  assert.equal(model.saved, 3);
  stop();
});

test("a saved answer is shown as it was", () => {
  const { el, stop } = mount(widget, { ...number(), number: 30, because: "why not", sure: 20, revealed: true, surprise: "much" });
  assert.equal(el.querySelector("input[type=number]").value, "30");
  assert.deepEqual([...el.querySelectorAll("textarea")].map((field) => field.value), ["why not", "much"]);
  assert.match(el.querySelector(".tlc-verdict").textContent, /^You predicted 30/);
  stop();
});

test("every control has a name, and keys stay here", () => {
  const { el, stop } = mount(widget, number());
  for (const input of el.querySelectorAll("input, textarea")) assert.ok(input.closest("label") || el.querySelector(`label[for="${input.id}"]`));
  let leaked = 0;
  document.addEventListener("keydown", () => leaked++, { once: true });
  el.querySelector("textarea").dispatchEvent(key("a"));
  el.querySelector("textarea").dispatchEvent(key("Enter", { shiftKey: true }));
  assert.equal(leaked, 0);
  stop();
});
