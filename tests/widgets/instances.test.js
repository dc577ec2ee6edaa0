// Several widgets at once, each with a copy of its module, as JupyterLab loads them: nothing of one points into another.
import assert from "node:assert/strict";
import test from "node:test";
import { dom, load, makeModel, namesIn, view } from "./setup.js";

const pixels = view(new Uint8Array(8)), floats = (...numbers) => view(new Float32Array(numbers));
const STATES = {
  temperature: { T: 1, image: 0, log: false, names: ["teacher", "alone"], classes: ["a", "b"], labels: [0, 1], size: [2, 2], logits: floats(1, 2, 3, 4, 5, 6, 7, 8), pixels },
  attention: { p: 2, strength: 0.5, picture: 1, layer: "late", shown: "attention", names: ["one", "two"], networks: ["net"], layers: ["late"], asked: [],
    shapes: [[1, 2, 2], [1, 2, 2]], pixels, values: pixels },
  forgetting: { weight: 1, shown: ["LwF"], tasks: ["a", "b"], names: ["LwF"], weights: [1], starts: [0, 1], accuracy: floats(90, NaN, 80, 70) },
  sobolev: { points: [-0.5, 0, 0.5], length_scale: 0.3, slope_error: 0, waves: [[1, 3, 0]] },
  lossweights: { tasks: ["a", "b", "c"].map((name) => ({ name, unit: "", better: "lower", alone: 1, learnt: 1 })), at: 0, coloured_by: "", scale: "linear",
    weightings: [[1, 0, 0], [0, 1, 0], [0, 0, 1]].map((weights) => ({ weights, values: weights })), learnt_weights: [1, 0, 0] },
  scenario: { same_domain: true, same_task: true, source_labels: false, target_labels: false, here: "", settings: [{ name: "a", table: ["==--"], ours: [], why: "" }],
    methods: [{ name: "b", chapter: 1, notebook: "01.ipynb", written: true, matches: "", fits: ["a"] }] },
  prediction: { question: "Which?", choices: ["a", "b"], unit: "", choice: "a", number: null, because: "", sure: 50, revealed: false, answer: "a", low: 0, high: 0, why: "", surprise: "" },
};

for (const [name, state] of Object.entries(STATES))
  test(`two of ${name} have no id, group or label in common, wherever they are`, async () => {
    const signal = new dom.window.AbortController().signal, stops = [], roots = [];
    for (let i = 0; i < 2; i++) {
      const { default: widget } = await load(name), el = document.createElement("div");
      stops.push(widget.render({ model: makeModel({ ...state }), el, signal }));
      document.body.append(el);
      roots.push(el);
    }
    const [first, second] = roots.map(namesIn);
    assert.ok(first.size > 0);
    assert.deepEqual([...first].filter((id) => second.has(id)), []);
    const checked = (el) => [...el.querySelectorAll("input[type=radio]")].filter((input) => input.checked).length;
    const groups = (el) => new Set([...el.querySelectorAll("input[type=radio]")].map((input) => input.name)).size;
    assert.deepEqual(roots.map(checked), roots.map(groups));
    stops.forEach((stop) => stop());
    document.body.replaceChildren();
  });
