import assert from "node:assert/strict";
import test from "node:test";
import { event, key, load, mount, pause } from "./setup.js";

const { default: widget, caseOf, listed, settingOf } = await load("scenario");
const cases = ["=", "≠"].flatMap((d) => ["=", "≠"].flatMap((t) => ["+", "-"].flatMap((s) => ["+", "-"].map((l) => d + t + s + l))));
const settings = [
  { name: "one task", table: cases.filter((c) => c[1] === "=" && c[0] === "="), ours: cases.filter((c) => c[1] === "=" && c[0] === "≠"), why: "The <b>tasks</b> agree." },
  { name: "two tasks", table: cases.filter((c) => c[1] === "≠"), ours: [], why: "They do not." },
];
const method = (name, fits, change = {}) => ({ name, chapter: 3, notebook: "03_x.ipynb", written: true, matches: "labels", fits, ...change });
const values = (change = {}) => ({ same_domain: true, same_task: true, source_labels: true, target_labels: true, here: "", settings,
  methods: [method("<i>tuning</i>", ["one task", "two tasks"]), method("heads", ["two tasks"]), method("growing", ["one task"])], ...change });
const radio = (el, question, answer) => [...el.querySelectorAll("fieldset")][question].querySelectorAll("input")[answer];
const checked = (el) => [...el.querySelectorAll("input")].map((input) => Number(input.checked)).join("");
const lit = (el) => [...el.querySelectorAll(".tlc-lit .tlc-method")].map((node) => node.textContent);
const signs = (el) => [...el.querySelectorAll(".tlc-sign")].map((node) => node.textContent).join("");
const answers = (el) => [...el.querySelectorAll(".tlc-answer")].map((node) => node.textContent).join(" ");

test("answers are a case, and a case has a setting", () => {
  assert.deepEqual([caseOf([true, true, true, true]), caseOf([false, true, true, false]), caseOf([true, false, false, true])], ["==++", "≠=+-", "=≠-+"]);
  assert.deepEqual([settingOf(settings, "==--").ourReading, settingOf(settings, "≠=++").ourReading, settingOf(settings, "≠≠++").name], [false, true, "two tasks"]);
  assert.deepEqual([[], ["a"], ["a", "b"], ["a", "b", "c d"]].map(listed), ["", "a", "a and b", "a, b and c d"]);
});

test("an answer names the setting, lights up what fits, tells Python and is said", async () => {
  const { el, model, stop } = mount(widget, values());
  assert.equal(checked(el), "10101010");
  assert.equal(el.querySelector(".tlc-named").textContent, "One task Pan and Yang 2010");
  assert.deepEqual(lit(el), ["<i>tuning</i>", "growing"]);
  assert.equal(el.querySelector(".tlc-count").textContent, "Methods of this course that fit: 2 of 3");
  radio(el, 1, 1).click();
  assert.deepEqual([model.get("same_task"), model.saved, checked(el)], [false, 1, "10011010"]);
  assert.deepEqual(lit(el), ["<i>tuning</i>", "heads"]);
  radio(el, 1, 0).click();
  radio(el, 0, 1).click();
  assert.equal(el.querySelector(".tlc-whose").textContent, "our reading: Pan and Yang have no such case");
  assert.deepEqual([...el.querySelectorAll("li .tlc-unseen")].map((node) => node.textContent), [", fits", ", does not fit", ", fits"]);
  await pause(450);
  assert.equal(el.querySelector("[role=status]").textContent, "One task. The <b>tasks</b> agree. Fitting: <i>tuning</i> and growing.");
  assert.equal(el.querySelector("b, i"), null); // labels are text
  stop();
});

test("where nothing fits, that is said", async () => {
  const { el, stop } = mount(widget, values({ methods: [method("heads", ["two tasks"])] }));
  assert.equal(el.querySelector(".tlc-count").textContent, "No method of this course fits.");
  await pause(450);
  assert.match(el.querySelector("[role=status]").textContent, /agree\. No method of this course fits\.$/);
  stop();
});

test("source and target are drawn and said in words", () => {
  const { el, model, stop } = mount(widget, values());
  const svg = el.querySelector("svg");
  assert.equal(svg.getAttribute("aria-label"), "source: filled shapes, which shape? With labels. target: filled shapes, which shape? With labels.");
  assert.deepEqual([signs(el), answers(el)], ["==", "round square round round square round"]);
  for (const name of ["same_domain", "same_task", "source_labels"]) model.set(name, false); // Python sets them
  assert.equal(checked(el), "01010110");
  assert.equal(svg.getAttribute("aria-label"), "source: filled shapes, which shape? Without labels. target: outlined shapes, which size? With labels.");
  assert.deepEqual([signs(el), answers(el)], ["≠≠", "? ? ? large large small"]);
  assert.deepEqual([el.querySelectorAll(".tlc-filled").length, el.querySelectorAll(".tlc-outlined").length], [3, 3]);
  stop();
});

test("in Jupyter links lead to notebooks beside this one, on a page to pages that are there", () => {
  const methods = [method("a", []), method("b", [], { notebook: "04 y.ipynb" }), method("c", [], { written: false }), method("d", [], { notebook: "01.ipynb", chapter: 1 })];
  const { tlcourseHost } = globalThis, { dataset } = document.documentElement;
  const seen = () => {
    const { el, stop } = mount(widget, values({ methods, here: "01.ipynb" }));
    stop();
    return [[...el.querySelectorAll("a")].map((a) => [a.getAttribute("href"), a.getAttribute("target")]), [...el.querySelectorAll(".tlc-chapter")].map((node) => node.textContent.replace(/\s/g, " "))];
  };
  const words = [" chapter 3", " chapter 3", " chapter 3, to come", " this chapter"];
  assert.deepEqual(seen(), [[["03_x.html", null], ["04%20y.html", null]], words]); // a web site
  dataset.beside = "01/03_x";
  assert.deepEqual(seen(), [[["03_x.html", null]], words]);
  delete globalThis.tlcourseHost;
  assert.deepEqual(seen(), [[["03_x.ipynb", "_blank"], ["04%20y.ipynb", "_blank"]], words]);
  globalThis.tlcourseHost = tlcourseHost;
  delete dataset.beside;
});

test("every radio has a label and every group a question; keys stay here, and a stopped one no longer draws", () => {
  const { el, model, stop } = mount(widget, values()), heard = [];
  for (const input of el.querySelectorAll("input")) assert.match(el.querySelector(`label[for="${input.id}"]`).textContent, /^(yes|no)$/);
  assert.deepEqual([...el.querySelectorAll("legend")].map((legend) => legend.textContent), ["Do the domains agree? Are inputs of one kind?", "Do the tasks agree? Is the same thing asked of them?", "Has the source labels?", "Has the target labels?"]);
  el.addEventListener("keydown", (e) => heard.push(e.key));
  for (const name of ["ArrowDown", "b", "Tab"]) radio(el, 0, 0).dispatchEvent(key(name));
  assert.deepEqual(heard, ["Tab"]);
  const before = el.innerHTML;
  stop();
  model.set("same_task", false);
  radio(el, 2, 1).dispatchEvent(event("change"));
  assert.equal(el.innerHTML, before);
});
