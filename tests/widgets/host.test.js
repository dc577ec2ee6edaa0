import assert from "node:assert/strict";
import test from "node:test";
import { makeModel, pageOf, valuesOf } from "./setup.js";

test("a model tells who listens, once, and only of changes", () => {
  const model = makeModel({ T: 1 }), heard = [];
  const listener = () => heard.push(model.get("T"));
  model.on("change:T", listener);
  model.on("change", () => heard.push("any"));
  model.set("T", 2);
  model.set("T", 2);
  assert.deepEqual(heard, [2, "any"]);
  model.off("change:T", listener);
  model.set("T", 3);
  assert.deepEqual(heard, [2, "any", "any"]);
});

test("a listener may leave while it is being told", () => {
  const model = makeModel({ a: 0 }), heard = [];
  const first = () => (heard.push(1), model.off("change:a", first));
  model.on("change:a", first);
  model.on("change:a", () => heard.push(2));
  model.set("a", 1);
  model.set("a", 2);
  assert.deepEqual(heard, [1, 2, 2]);
});

test("buffers go back to their places, in base64 and hex", () => {
  const buffers = [{ path: ["x"], encoding: "base64", data: "AQID" }, { path: ["deep", 1], encoding: "hex", data: "ff00" }];
  const values = valuesOf({ state: { x: null, deep: [0, null] }, buffers });
  assert.deepEqual([values.x.getUint8(2), values.x.byteLength, values.deep[1].getUint8(0)], [3, 3, 255]);
  assert.deepEqual(valuesOf({ state: { a: 1 } }), { a: 1 });
});

test("a link to a notebook leads to its page if that lies beside this one, or if nobody knows what does", () => {
  const { dataset } = document.documentElement;
  assert.equal(pageOf("03_distillation.ipynb"), "03_distillation.html");
  dataset.beside = "a & b/03_distillation/ü";
  assert.deepEqual(["03_distillation.ipynb", "a & b.ipynb", "04_attention.ipynb", "3_distillation.ipynb"].map(pageOf), ["03_distillation.html", "a%20%26%20b.html", null, null]);
  dataset.beside = "";
  assert.equal(pageOf("03_distillation.ipynb"), null);
  delete dataset.beside;
});
