// What a page does besides its widgets: a theme before the first paint, boxes that scroll by keyboard, and paper that is light and unfolded.
(() => {
  const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)"), large = matchMedia("(min-width: 75rem)");
  const all = (selector) => [...document.querySelectorAll(selector)];

  /** The theme that a reader chose here before, or chooses now; a page that is opened as a file may not be allowed to remember. */
  function chosen(theme) {
    try {
      if (theme) localStorage.setItem("tlcourse-theme", theme);
      return localStorage.getItem("tlcourse-theme") ?? theme;
    } catch {
      return theme;
    }
  }

  function paint(theme) {
    root.dataset.theme = theme;
    for (const button of all("#theme")) button.textContent = theme === "dark" ? "Light colours" : "Dark colours";
  }

  paint(chosen() ?? (dark.matches ? "dark" : "light"));
  dark.addEventListener("change", () => chosen() ?? paint(dark.matches ? "dark" : "light"));

  /** A box is a stop of the Tab key exactly as long as there is something to scroll in it. */
  function reach(box) {
    const scrolls = box.scrollWidth > box.clientWidth + 1 && box.clientWidth > 0;
    if (scrolls) for (const [name, value] of [["tabindex", 0], ["role", "group"], ["aria-label", "scrolls sideways"]]) box.setAttribute(name, value);
    else if (box.ariaLabel === "scrolls sideways") for (const name of ["tabindex", "role", "aria-label"]) box.removeAttribute(name);
  }

  /** An equation in a line of text that is longer than the line scrolls in a line of its own. */
  function fold(block) {
    for (const math of block.querySelectorAll("mjx-container:not([display])")) {
      const { width } = math.querySelector("svg").getBoundingClientRect();
      if (width > 0) math.classList.toggle("long", width > block.clientWidth);
    }
  }

  /** Tables get a box to scroll in, and their empty corner is no heading. */
  function frame(table) {
    const box = Object.assign(document.createElement("div"), { className: "wide" });
    table.replaceWith(box);
    box.append(table);
    for (const th of table.querySelectorAll("th")) if (!th.textContent.trim() && !th.children.length) th.replaceWith(document.createElement("td"));
  }

  /** No line starts with the full stop that follows an equation. */
  function hold(math) {
    const text = math.nextSibling, [stop] = /^[.,;:!?)\]]*/.exec(text?.data ?? "");
    if (!stop) return;
    const whole = Object.assign(document.createElement("span"), { className: "whole" });
    math.before(whole);
    whole.append(math, stop);
    text.data = text.data.slice(stop.length);
  }

  /** A link to another notebook leads to its page, or nowhere where there is none. */
  function lead(link) {
    const [, notebook, part] = /^(?:\.\/)?([^/:?#]+\.ipynb)(#.*)?$/.exec(decodeURIComponent(link.getAttribute("href"))) ?? [];
    if (!notebook) return;
    const page = tlcourseHost.pageOf(notebook);
    if (page) link.setAttribute("href", page + (part ?? ""));
    else link.removeAttribute("href");
  }

  const boxes = new ResizeObserver((seen) => seen.forEach(({ target }) => reach(target)));
  const lines = new ResizeObserver((seen) => seen.forEach(({ target }) => fold(target)));
  function watch() {
    for (const math of all("mjx-container:not([display])")) hold(math);
    for (const math of all("mjx-container:not([display])")) lines.observe(math.closest("p, li, td, th, summary, h1, h2, h3, h4, div"));
    for (const box of all("main :is(pre, .wide, mjx-container)")) boxes.observe(box);
  }

  document.addEventListener("DOMContentLoaded", () => {
    paint(root.dataset.theme);
    for (const button of all("#theme")) button.addEventListener("click", () => paint(chosen(root.dataset.theme === "dark" ? "light" : "dark")));
    const contents = () => all(".contents").forEach((fold) => (fold.open = large.matches));
    large.addEventListener("change", contents);
    contents();
    all("main table").forEach(frame);
    watch();
    all("main a[href*='.ipynb']").forEach(lead);
  });

  addEventListener("load", () => all(".figure img").forEach((img) => (img.style.minWidth = `${Math.round(0.6 * img.naturalWidth)}px`)));

  let before = null;
  addEventListener("beforeprint", () => {
    before ??= { theme: root.dataset.theme, folds: all("main details:not([open])") };
    root.dataset.theme = "light";
    for (const fold of before.folds) fold.open = true;
  });
  addEventListener("afterprint", () => {
    root.dataset.theme = before?.theme ?? root.dataset.theme;
    for (const fold of before?.folds ?? []) fold.open = false;
    before = null;
  });

  globalThis.tlcoursePage = { watch };
})();
