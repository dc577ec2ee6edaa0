// What every widget of the course shares. The package puts this text in front of each widget's module, since a module
// that arrives as text cannot import others.

/** A name that no other element has, whatever else is open: each widget has a copy of this text, so the count is the window's. */
export const unique = (name) => `tlc-${name}-${(globalThis.tlcInstances = (globalThis.tlcInstances ?? 0) + 1)}`;

/** Values of a little-endian float32 buffer, which arrives as a DataView. */
export const floats = (view) => {
  const copy = view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength);
  return new Float32Array(copy);
};

/** Values of a uint8 buffer. */
export const bytes = (view) => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children); // strings become text nodes, never HTML
  return node;
}

/** An HTML element with attributes and children. */
export const html = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);

/** An SVG element with attributes and children. */
export const svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

/** JupyterLab runs commands on bare keys (arrows, a, b, d d) and on Shift+Enter: those typed here stay here. Tab, Escape and chords pass. */
export function keepKeys(root, signal) {
  const passes = (e) => e.key === "Tab" || e.key === "Escape" || ((e.ctrlKey || e.metaKey || e.altKey) && e.key !== "Enter");
  root.addEventListener("keydown", (e) => passes(e) || e.stopPropagation(), { signal });
}

/** A place that screen readers read aloud; `say` waits until the hand has stopped. */
export function speaker() {
  const node = html("div", { class: "tlc-unseen", role: "status" });
  let waiting;
  return {
    node,
    say(text) {
      clearTimeout(waiting);
      waiting = setTimeout(() => (node.textContent = text), 400);
    },
    hush: () => clearTimeout(waiting),
  };
}

/** Set values here and tell Python at once. JupyterLab sends one message at a time; told later, its echo would undo what the hand did meanwhile. */
export const setter = (model) => (values) => {
  for (const [name, value] of Object.entries(values)) model.set(name, value);
  model.save_changes();
};

/** A narrow place gets a narrow drawing, so that its text stays readable: calls draw(width) when it changes. Returns how to stop. */
export function resized(root, wide, draw) {
  let drawn = wide;
  const sizes = globalThis.ResizeObserver && new ResizeObserver(() => {
    const width = root.clientWidth < 440 ? 330 : wide;
    if (width !== drawn) draw((drawn = width));
  });
  sizes?.observe(root);
  return () => sizes?.disconnect();
}

/** Call `update` whenever one of these values changes; returns a function that stops it. */
export function watch(model, names, update) {
  for (const name of names) model.on(`change:${name}`, update);
  return () => names.forEach((name) => model.off(`change:${name}`, update));
}
