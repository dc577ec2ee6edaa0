// A document, a widget's module as the package hands it out, and models as the static host makes them.
import { readFileSync } from "node:fs";
import vm from "node:vm";
import { JSDOM } from "jsdom";

const read = (path) => readFileSync(new URL(`../../tlcourse/${path}`, import.meta.url), "utf8");
export const dom = new JSDOM("<body></body>", { pretendToBeVisual: true });
globalThis.document = dom.window.document;
dom.window.HTMLCanvasElement.prototype.getContext = () => null; // jsdom draws no pictures

/** A module by name, with the part that all share in front of it, as text that is imported: each time a new copy, as in JupyterLab. */
let copies = 0;
export const load = (name) => {
  const text = ["common", name].map((file) => read(`widgets/static/${file}.js`)).join("\n");
  return import(`data:text/javascript,${encodeURIComponent(`${text}\n// copy ${++copies}`)}`);
};

/** Ids, groups and what labels and patterns point to: those of several widgets must have nothing in common. */
export function namesIn(root) {
  const found = (query, name) => [...root.querySelectorAll(query)].map((node) => node.getAttribute(name));
  const fills = found("[fill^='url(#']", "fill").map((fill) => fill.slice(5, -1));
  const ids = found("[id]", "id");
  for (const pointed of [...found("[for]", "for"), ...fills]) if (!ids.includes(pointed)) throw new Error(`${pointed} is not in the widget`);
  return new Set([...ids, ...found("[name]", "name")]);
}

vm.runInThisContext(read("publish/static/host.js"));
export const { makeModel, pageOf, valuesOf } = globalThis.tlcourseHost;

export const view = (array) => new DataView(array.buffer, array.byteOffset, array.byteLength);

/** Draw a widget of this module on the page; saved counts what Python is told. */
export function mount(widget, values) {
  const el = document.createElement("div"), model = makeModel(values), stopped = new dom.window.AbortController();
  model.saved = 0;
  model.save_changes = () => model.saved++;
  document.body.replaceChildren(el);
  const stop = widget.render({ model, el, signal: stopped.signal });
  return { el, model, stop: () => (stopped.abort(), stop()) };
}

export const event = (name, options = {}) => new dom.window.Event(name, { bubbles: true, ...options });
export const key = (name, options = {}) => new dom.window.KeyboardEvent("keydown", { key: name, bubbles: true, ...options });
export const pause = (ms) => new Promise((done) => setTimeout(done, ms));
