// @ts-check
// What all figures share: elements, numbers as text, sliders, marks that the keyboard reaches, and the state of a page.
"use strict";

/** A function for each kind of figure: it draws into a card and returns how to redraw it. @type {Record<string, Draw>} */
const FIGURES = {};

const NS = "http://www.w3.org/2000/svg";

/** @param {Element} e @param {Record<string, any>} a @param {any[]} children @returns {any} */
function filled(e, a, children) {
  for (const name in a) e.setAttribute(name, a[name]);
  e.append(...children.flat().filter((c) => c !== null && c !== undefined));
  return e;
}
/** An SVG element. Texts become text nodes, never markup. @param {string} n @param {Record<string, any>} [a] @param {...any} c */
const S = (n, a = {}, ...c) => filled(document.createElementNS(NS, n), a, c);
/** An HTML element. @param {string} n @param {Record<string, any>} [a] @param {...any} c */
const H = (n, a = {}, ...c) => filled(document.createElement(n), a, c);
/** A text of a drawing. @param {number} x @param {number} y @param {string} t @param {string} [c] @param {string} [anchor] @param {Record<string, any>} [o] */
const T = (x, y, t, c = "", anchor = "start", o = {}) => S("text", { x, y, class: c, "text-anchor": anchor, ...o }, t);
/** A colour by its meaning. @param {string} name */
const V = (name) => `var(--${name})`;
const MINUS = "\u2212";

/** @param {number} x @param {number} [d] digits after the point */
const num = (x, d = 2) => (x < 0 && +x.toFixed(d) !== 0 ? MINUS : "") + Math.abs(x).toFixed(d);
/** With its sign. @param {number} x @param {number} [d] */
const sgn = (x, d = 2) => (+x.toFixed(d) === 0 ? "" : x < 0 ? MINUS : "+") + Math.abs(x).toFixed(d);
/** @param {number} x a share @param {number} [d] */
const pct = (x, d = 0) => `${num(100 * x, d)}\u00a0%`;
/** A number of any size, as short as it can be. @param {number} x */
function short(x) {
  if (x === 0) return "0";
  const size = Math.abs(x);
  const text = size >= 1e5 || size < 1e-3 ? size.toExponential(1).replace(/\.0e/, "e").replace("e+", "e") : String(+size.toPrecision(3));
  return (x < 0 ? MINUS : "") + text.replace("e-", `e${MINUS}`);
}

/** @param {number} x @param {number} low @param {number} high */
const clamp = (x, low, high) => Math.max(low, Math.min(high, x));
/** A diamond. @param {number} x @param {number} y @param {number} r */
const diamond = (x, y, r) => `M${x} ${y - r}L${x + r} ${y}L${x} ${y + r}L${x - r} ${y}Z`;
const DISC = "M-4.6 0A4.6 4.6 0 1 0 4.6 0A4.6 4.6 0 1 0 -4.6 0Z";
const SQUARE = "M-4.2 -4.2H4.2V4.2H-4.2Z";

/** An empty drawing of the width of its box. @param {HTMLElement} box @param {number} w @param {number} h @param {string} label @param {string} [role] */
function drawing(box, w, h, label, role = "img") {
  const s = S("svg", { viewBox: `0 0 ${w} ${h}`, height: h, role, "aria-label": label });
  box.replaceChildren(s);
  return s;
}

/** The width of a box, at least that of the smallest screen. @param {HTMLElement} box @param {number} [least] */
const widthOf = (box, least = 280) => Math.max(least, box.clientWidth);

/** A mark of a legend. @param {any[]} marks @param {string} text */
const swatch = (marks, text) => H("span", {}, S("svg", { viewBox: "0 0 18 12", "aria-hidden": "true" }, ...marks), text);

/** The widths of texts in the font of the page: fonts differ between systems. @param {string[]} texts */
function widths(texts) {
  const s = S("svg", { style: "position:absolute;visibility:hidden" }), nodes = texts.map((t) => T(0, 0, t, "i"));
  s.append(...nodes);
  document.body.append(s);
  const result = nodes.map((n) => n.getComputedTextLength());
  s.remove();
  return result;
}

/** A text cut to a number of characters. @param {string} t @param {number} n */
const cut = (t, n) => (t.length > n ? `${t.slice(0, n - 1).trimEnd()}\u2026` : t);

/** A slider with its label and the value as text. @param {{id: string, label: string, min: number, max: number, step: number | "any", value: number, colour?: string, note?: string}} o @param {(x: number) => void} change */
function slider(o, change) {
  const input = H("input", { type: "range", id: o.id, min: o.min, max: o.max, step: o.step, value: o.value, style: `--c:var(--${o.colour || "ink"})` });
  const output = H("output", { for: o.id });
  const box = H("div", { class: "ctl" }, H("label", { for: o.id }, H("span", {}, o.label), output), input, o.note ? H("small", {}, o.note) : null);
  input.addEventListener("input", () => change(+input.value));
  return {
    box, input,
    /** @param {number} value @param {string} text */
    set(value, text) {
      if (+input.value !== value) input.value = String(value);
      output.textContent = text;
      input.setAttribute("aria-valuetext", text);
      input.style.setProperty("--fill", `${(100 * (+input.value - +input.min)) / (+input.max - +input.min || 1)}%`);
    },
  };
}

/** A row of options, one of which holds. @param {string} id @param {string} legend @param {[string, string][]} options @param {string} value @param {(v: string) => void} change */
function choice(id, legend, options, value, change) {
  const box = H("fieldset", { class: "seg noprint" }, H("legend", {}, legend));
  for (const [v, text] of options) {
    const input = H("input", { type: "radio", name: id, value: v });
    input.checked = v === value;
    input.addEventListener("change", () => change(v));
    box.append(H("label", {}, input, text));
  }
  return box;
}

/** A list to choose from. @param {string} id @param {string} label @param {[string, string][]} options @param {string} value @param {(v: string) => void} change */
function select(id, label, options, value, change) {
  const list = H("select", { id }, ...options.map(([v, text]) => H("option", { value: v }, text)));
  list.value = value;
  list.addEventListener("change", () => change(list.value));
  return { box: H("div", { class: "ctl noprint" }, H("label", { for: id }, label), list), list };
}

/** The end of a text: the last turn of a prompt says most. @param {string} t @param {number} n */
const tail = (t, n) => (t.trim().length > n ? `\u2026${t.trim().slice(1 - n)}` : t.trim());

/** Call `f` with the place in the drawing `s` while the pointer is pressed on `e`. @param {any} e @param {any} s @param {(x: number, y: number) => void} f */
function drag(e, s, f) {
  const at = (/** @type {PointerEvent} */ event) => {
    const b = s.getBoundingClientRect(), v = s.viewBox.baseVal;
    f(((event.clientX - b.left) * v.width) / b.width, ((event.clientY - b.top) * v.height) / b.height);
  };
  e.style.touchAction = "pan-y";
  e.addEventListener("pointerdown", (/** @type {PointerEvent} */ event) => {
    e.setPointerCapture(event.pointerId);
    at(event);
  });
  e.addEventListener("pointermove", (/** @type {PointerEvent} */ event) => event.buttons && at(event));
}

/** One tab stop for many marks; the arrow keys walk them. @param {any[]} marks @param {(i: number) => void} show */
function rove(marks, show) {
  const pick = (/** @type {number} */ i) => {
    marks.forEach((m, k) => {
      m.classList.toggle("on", k === i);
      m.setAttribute("tabindex", k === i ? "0" : "-1");
      m.setAttribute("aria-selected", String(k === i));
    });
    show(i);
  };
  marks.forEach((m, i) => {
    m.setAttribute("tabindex", i ? "-1" : "0");
    m.setAttribute("aria-selected", "false");
    for (const event of ["focus", "pointerenter", "click"]) m.addEventListener(event, () => pick(i));
    m.addEventListener("keydown", (/** @type {KeyboardEvent} */ e) => {
      const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[e.key];
      const to = by ? (i + by + marks.length) % marks.length : e.key === "Home" ? 0 : e.key === "End" ? marks.length - 1 : -1;
      if (to < 0) return;
      e.preventDefault();
      marks[to].focus();
    });
  });
  return pick;
}

/** Axes with ticks and names. Returns the scales. @param {any} s @param {{x: [number, number], y: [number, number], left: number, top: number, right: number, bottom: number, xTicks: number[], yTicks: number[], xName: string, yName: string, xText?: (x: number) => string, yText?: (y: number) => string}} o */
function axes(s, o) {
  const X = (/** @type {number} */ x) => o.left + ((o.right - o.left) * (x - o.x[0])) / (o.x[1] - o.x[0] || 1);
  const Y = (/** @type {number} */ y) => o.bottom - ((o.bottom - o.top) * (y - o.y[0])) / (o.y[1] - o.y[0] || 1);
  const xText = o.xText || short, yText = o.yText || short;
  for (const y of o.yTicks) s.append(S("path", { d: `M${o.left} ${Y(y)}H${o.right}`, class: "gr" }), T(o.left - 7, Y(y) + 4, yText(y), "s", "end"));
  for (const x of o.xTicks) {
    const at = X(x), edge = at > o.right - 14 ? "end" : at < o.left + 8 && o.left < 12 ? "start" : "middle";
    s.append(S("path", { d: `M${at} ${o.bottom}v4`, class: "ax" }), T(edge === "end" ? o.right : at, o.bottom + 17, xText(x), "s", edge));
  }
  s.append(S("path", { d: `M${o.left} ${o.bottom}H${o.right}`, class: "ax" }));
  s.append(T(o.right, o.bottom + 36, o.xName, "", "end"), T(0, o.top - 10, o.yName, "i"));
  return { X, Y };
}

/** @param {string} name @param {string} text @param {string} type */
function download(name, text, type) {
  const a = H("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  a.click();
  setTimeout(() => URL.revokeObjectURL(a.href), 1000);
}
/** Rows as CSV. @param {any[][]} rows */
const csv = (rows) => rows.map((r) => r.map((v) => (typeof v === "string" ? `"${v.replaceAll('"', '""')}"` : v ?? "")).join(",")).join("\n") + "\n";

/** A quotation. @param {string} kind w (chosen), l (rejected) or "" @param {string} text @param {string} [note] @param {string} [before] */
const quote = (kind, text, note = "", before = "") =>
  H("blockquote", { class: kind, dir: "auto" }, before ? H("small", {}, before) : null, text.trim() || "(empty)", note ? H("small", {}, note) : null);
/** A small table of names and values. @param {any[][]} rows @param {string[]} [head] */
const numbers = (rows, head) =>
  H("table", { class: "num" }, head ? H("thead", {}, H("tr", {}, ...head.map((t) => (t ? H("th", { scope: "col" }, t) : H("td"))))) : null,
    H("tbody", {}, ...rows.map(([name, ...rest]) => H("tr", {}, H("th", { scope: "row" }, name), ...rest.map((v) => H("td", {}, v))))));

/** A formula: MathML that is constant in this program. @param {string} mathml @param {string} [note] */
function formula(mathml, note = "") {
  const box = H("div", { class: "math" });
  box.innerHTML = mathml.replaceAll("<mo>(</mo>", '<mo stretchy="false">(</mo>').replaceAll("<mo>)</mo>", '<mo stretchy="false">)</mo>');
  if (note) box.append(H("p", {}, note));
  return box;
}

/** The state that figures share: the step of training and the loss. It is also in the address of the page. */
class State {
  constructor() {
    /** @type {Record<string, string>} */
    this.values = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
    /** @type {(() => void)[]} */
    this.listeners = [];
  }
  /** @param {string} name @param {string} fallback */
  get(name, fallback) {
    return this.values[name] ?? fallback;
  }
  /** @param {string} name @param {string} value */
  set(name, value) {
    if (this.values[name] === value) return;
    this.values[name] = value;
    const text = new URLSearchParams(this.values).toString();
    try {
      history.replaceState(null, "", `#${text}`);
    } catch {
      // a page without an address, such as a frame
    }
    for (const listener of this.listeners) listener();
  }
}
