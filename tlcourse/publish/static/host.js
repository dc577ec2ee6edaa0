// Brings the widgets of a saved page to life: no kernel, no network, no other library.
//
// A saved notebook holds each widget's state, the text of its module included. This script makes a model of each state and lets the
// module draw. It must stay a classic script: browsers refuse module files on file:// pages, but not modules made from a blob.
(() => {
  const STATE = "application/vnd.jupyter.widget-state+json";
  const LOST = "Run this cell: this interactive figure was saved without its state. Open the notebook with `tlcourse lab`, run it, save it, and write this page again.";
  const VIEW = "application/vnd.jupyter.widget-view+json";

  /** A model as widgets know it: values that tell who listens when they change. */
  function makeModel(values) {
    const listeners = new Map();
    const fire = (event) => [...(listeners.get(event) ?? [])].forEach((listener) => listener());
    return {
      get: (name) => values[name],
      set(name, value) {
        if (values[name] === value) return;
        values[name] = value;
        fire(`change:${name}`);
        fire("change");
      },
      on: (event, listener) => listeners.set(event, [...(listeners.get(event) ?? []), listener]),
      off: (event, listener) => listeners.set(event, (listeners.get(event) ?? []).filter((other) => other !== listener)),
      save_changes() {}, // there is nobody to tell
      send() {},
    };
  }

  /** The values of a saved state, with its buffers back in their places. */
  function valuesOf({ state, buffers = [] }) {
    for (const { path, encoding, data } of buffers) {
      const octets = encoding === "hex" ? data.match(/../g) ?? [] : [...atob(data)];
      const view = new DataView(Uint8Array.from(octets, (o) => (encoding === "hex" ? parseInt(o, 16) : o.charCodeAt(0))).buffer);
      path.slice(0, -1).reduce((inner, key) => inner[key], state)[path.at(-1)] = view;
    }
    return state;
  }

  /** The page of another notebook: null where none lay beside this page when it was written; where nobody wrote that down, as on a web site, all are there. */
  function pageOf(notebook) {
    const name = notebook.replace(/\.ipynb$/, ""), { beside } = document.documentElement.dataset;
    return beside === undefined || beside.split("/").includes(name) ? `${encodeURIComponent(name)}.html` : null;
  }

  const modules = new Map(); // many widgets of a kind share one module
  function load(text) {
    if (!modules.has(text)) {
      const address = URL.createObjectURL(new Blob([text], { type: "text/javascript" }));
      modules.set(text, import(address).then((module) => module.default));
    }
    return modules.get(text);
  }

  function style(text) {
    if ([...document.querySelectorAll("style")].some((sheet) => sheet.textContent === text)) return;
    document.head.append(Object.assign(document.createElement("style"), { textContent: text }));
  }

  async function mount(view, saved, models) {
    const id = JSON.parse(view.textContent).model_id;
    if (saved[id] && saved[id].model_module !== "anywidget") return view.parentElement.remove(); // another library's: it cannot live here
    const place = document.createElement("div");
    view.before(place);
    if (!saved[id]) return Object.assign(place, { className: "lost", textContent: LOST });
    try {
      if (saved[id].fault) throw new Error(saved[id].fault);
      if (!models.has(id)) models.set(id, makeModel(valuesOf(saved[id])));
      const model = models.get(id);
      style(model.get("_css"));
      const widget = await load(model.get("_esm"));
      await widget.render({ model, el: place, signal: new AbortController().signal });
    } catch (error) {
      place.textContent = `This interactive figure could not be drawn: ${error.message}`;
      console.error(error);
    }
  }

  async function mountAll() {
    const saved = [...document.querySelectorAll(`script[type="${STATE}"]`)].map((tag) => JSON.parse(tag.textContent).state);
    const states = Object.assign({}, ...saved), models = new Map();
    for (const view of document.querySelectorAll(`script[type="${VIEW}"]`)) await mount(view, states, models);
  }

  globalThis.tlcourseHost = { makeModel, valuesOf, pageOf, mountAll };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", mountAll);
  else mountAll();
})();
