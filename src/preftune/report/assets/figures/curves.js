// @ts-check
// Curves over the steps: training as a smoothed line with the raw values behind it, evaluations as points.
"use strict";

const DASHES = ["", "7 4", "2 3", "9 3 2 3"];

FIGURES.curves = (data, card) => {
  const charts = data.charts, runs = data.runs || [];
  const xs = [...new Set(charts.flatMap((/** @type {any} */ c) => c.series.flatMap((/** @type {any} */ s) => s.points.map((/** @type {number[]} */ p) => p[0]))))].sort((a, b) => a - b);
  let at = xs.length - 1;
  const control = slider({ id: `${card.id}-at`, label: `Values at ${data.unit}`, min: 0, max: Math.max(1, xs.length - 1), step: 1, value: at }, (i) => {
    at = i;
    update();
  });
  const log = H("div", { class: "grid" });
  if (xs.length > 2) card.below.append(H("div", { class: "noprint half" }, control.box));
  /** @type {{cursor: any, X: (x: number) => number, chart: any, values: HTMLElement}[]} */ let drawn = [];
  card.stage.append(log);
  const runOf = (/** @type {any} */ s) => Math.max(0, runs.indexOf(s.run));
  // the runs after the first share the other dash patterns, three in a chart
  const dashOf = (/** @type {number} */ i) => DASHES[i ? 1 + ((i - 1) % 3) : 0];
  const colour = (/** @type {any} */ s) => (runs.length > 1 ? (runOf(s) ? "ink2" : "policy") : s.colour || "policy");
  if (runs.length > 1) card.key.append(...runs.map((/** @type {string} */ r, /** @type {number} */ i) => swatch([S("path", { d: "M0 6H18", stroke: V(i ? "ink2" : "policy"), "stroke-width": 2.5, "stroke-dasharray": dashOf(i) })], r)));
  else card.key.append(...[data.has_training && swatch([S("path", { d: "M0 8L5 3L10 9L18 4", fill: "none", stroke: V("policy"), "stroke-opacity": 0.35 }), S("path", { d: "M0 6H18", stroke: V("policy"), "stroke-width": 2.5 })], "training, smoothed over raw values"), data.has_evaluations && swatch([S("circle", { cx: 9, cy: 6, r: 4.5, fill: V("card"), stroke: V("policy"), "stroke-width": 2.5 })], data.evaluation_name)].filter(Boolean));
  function build() {
    const columns = widthOf(card.stage) > 760 ? 2 : 1;
    drawn = [];
    log.replaceChildren(...charts.map((/** @type {any} */ chart) => {
      const picture = H("div", {}), values = H("p", { class: "note" });
      const box = H("div", { class: "chart" }, H("h3", {}, chart.title), picture, values);
      drawn.push({ cursor: null, X: (x) => x, chart, values });
      return box;
    }));
    log.style.setProperty("--columns", String(columns));
    drawn.forEach((d, i) => drawChart(d, /** @type {HTMLElement} */ (log.children[i].children[1])));
    update();
  }
  /** @param {any} d @param {HTMLElement} box */
  function drawChart(d, box) {
    const { chart } = d, w = widthOf(box, 240), h = 210, left = 50, right = w - 10, top = 26, bottom = h - 42;
    const all = chart.series.flatMap((/** @type {any} */ s) => s.points.map((/** @type {number[]} */ p) => p[1])), level = chart.level;
    const inside = [...all, ...(chart.range || []), ...(level ? [level.value] : [])], low = Math.min(...inside), high = Math.max(...inside), pad = 0.06 * (high - low) || 0.05 * Math.abs(high) || 0.1;
    const x = /** @type {[number, number]} */ ([Math.min(...xs), Math.max(...xs)]);
    if (x[0] === x[1]) x[1] = x[0] + 1;
    const y = /** @type {[number, number]} */ ([low - pad, high + pad]);
    const s = drawing(box, w, h, `${chart.title}, ${chart.y}, over ${data.unit}s`);
    const { X, Y } = axes(s, { x, y, left, right, top, bottom, xTicks: M.ticks(x[0], x[1], 5).filter(Number.isInteger), yTicks: M.ticks(y[0], y[1], 4), xName: data.unit, yName: chart.y });
    d.X = X;
    const path = (/** @type {number[][]} */ points) => "M" + points.map((p) => `${X(p[0]).toFixed(1)} ${Y(p[1]).toFixed(1)}`).join("L");
    if (level) s.append(S("path", { d: `M${left} ${Y(level.value)}H${right}`, stroke: V("ink2"), "stroke-dasharray": "3 4" }), T(right, Y(level.value) - 5, level.name, "s halo", "end"));
    for (const one of chart.series) {
      const c = V(colour(one)), dash = dashOf(runOf(one));
      if (one.split === "eval") {
        if (one.points.length > 1) s.append(S("path", { d: path(one.points), fill: "none", stroke: c, "stroke-width": 1, "stroke-dasharray": dash || "1 3" }));
        for (const p of one.points) s.append(S("circle", { cx: X(p[0]), cy: Y(p[1]), r: 3.5, fill: V("card"), stroke: c, "stroke-width": 2 }));
        continue;
      }
      const half = Math.floor(one.points.length / 40), ys = M.smooth(one.points.map((/** @type {number[]} */ p) => p[1]), half);
      if (half) s.append(S("path", { d: path(one.points), fill: "none", stroke: c, "stroke-opacity": 0.3 }));
      if (one.points.length === 1) s.append(S("circle", { cx: X(one.points[0][0]), cy: Y(one.points[0][1]), r: 3.5, fill: c }));
      else s.append(S("path", { d: path(one.points.map((/** @type {number[]} */ p, /** @type {number} */ i) => [p[0], ys[i]])), fill: "none", stroke: c, "stroke-width": 2, "stroke-dasharray": dash, "stroke-linejoin": "round" }));
    }
    d.cursor = S("path", { stroke: V("ink"), "stroke-opacity": 0.4, d: "" });
    const pad2 = S("rect", { x: left, y: top, width: right - left, height: bottom - top, class: "hit" });
    s.append(d.cursor, pad2);
    const move = (/** @type {PointerEvent} */ e) => {
      const b = s.getBoundingClientRect(), value = x[0] + ((x[1] - x[0]) * (((e.clientX - b.left) * w) / b.width - left)) / (right - left);
      at = xs.reduce((best, v, i) => (Math.abs(v - value) < Math.abs(xs[best] - value) ? i : best), 0);
      update();
    };
    pad2.addEventListener("pointermove", move);
    pad2.addEventListener("pointerdown", move);
  }
  function update() {
    if (!xs.length) return;
    const here = xs[at];
    control.set(at, short(here));
    for (const { cursor, X, chart, values } of drawn) {
      if (cursor) cursor.setAttribute("d", `M${X(here)} 26V168`);
      const parts = chart.series.flatMap((/** @type {any} */ s) => {
        const p = s.points.filter((/** @type {number[]} */ q) => q[0] <= here).at(-1);
        return p && (s.split !== "eval" || p[0] === here || s.points.length) ? [`${runs.length > 1 ? `${s.run} ${s.split === "eval" ? "evaluation" : "training"}` : s.name} ${short(p[1])}${p[0] === here ? "" : ` (${data.unit} ${short(p[0])})`}`] : [];
      });
      values.textContent = parts.join("; ");
    }
  }
  return {
    build, update: () => {},
    csv: () => csv([["chart", "run", "series", data.unit, "value"], ...charts.flatMap((/** @type {any} */ c) => c.series.flatMap((/** @type {any} */ s) => s.points.map((/** @type {number[]} */ p) => [c.title, s.run || "", s.name, p[0], p[1]])))]),
  };
};
