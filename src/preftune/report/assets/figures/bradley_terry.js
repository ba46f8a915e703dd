// @ts-check
// Preferences as a logistic curve: how often the preferred response wins, against the reward gap.
"use strict";

FIGURES.bradley_terry = (data, card) => {
  const steps = data.steps ? stepControl(data, card) : null, all = data.frames || [data.bins];
  const bins = () => all[steps ? steps.index() : 0];
  const gaps = all.flat().flatMap((/** @type {any} */ b) => [Math.abs(b.from), Math.abs(b.to)]), reach = clamp(1.1 * Math.max(0.5, ...gaps), 0.5, 12);
  let gap = Math.min(1, reach / 2);
  const control = slider({ id: `${card.id}-gap`, label: `Gap of one pair, ${data.gap_unit}`, min: -reach, max: reach, step: reach / 100, value: gap }, (x) => {
    gap = x;
    update();
  });
  const reading = H("div", {}), table = H("div", {});
  card.side.append(...[control.box, reading, steps && steps.box, table].filter(Boolean));
  card.key.append(
    swatch([S("path", { d: "M0 10C8 10 10 2 18 2", stroke: V("ink"), "stroke-width": 2.5, fill: "none" })], "σ(gap), the model of Bradley and Terry"),
    swatch([S("path", { d: "M9 0V12", stroke: V("policy"), "stroke-width": 1.5 }), S("circle", { cx: 9, cy: 6, r: 4.5, fill: V("policy") })], "observed share, 95 % interval; area: pairs"),
  );
  /** @type {any} */ let marks = null;
  /** @type {any} */ let hair = null;
  let X = (/** @type {number} */ x) => x, Y = X, low = 0, right = 0;
  function build() {
    const w = widthOf(card.stage, 300), h = w < 560 ? 320 : 400, bottom = h - 46;
    right = w - 10;
    const s = drawing(card.stage, w, h, "Share of pairs in which the first response wins, against its reward gap");
    ({ X, Y } = axes(s, { x: [-reach, reach], y: [0, 1], left: 48, right, top: 26, bottom, xTicks: M.ticks(-reach, reach, 6), yTicks: [0, 0.25, 0.5, 0.75, 1], xName: w < 560 ? data.gap_name.split(":")[0] : data.gap_name, yName: "share that wins", yText: (v) => (v ? pct(v) : "0") }));
    low = bottom;
    s.append(S("path", { d: `M${X(0)} 26V${bottom}`, class: "ax" }));
    s.append(S("path", { fill: "none", stroke: V("ink"), "stroke-width": 2.5, d: "M" + Array.from({ length: 121 }, (_, i) => -reach + (2 * reach * i) / 120).map((x) => `${X(x).toFixed(1)} ${Y(M.sigmoid(x)).toFixed(1)}`).join("L") }));
    hair = S("g");
    marks = S("g");
    const pad = S("rect", { x: 48, y: 26, width: right - 48, height: bottom - 26, class: "hit" });
    s.append(marks, hair, pad);
    drag(pad, s, (x) => {
      gap = clamp(-reach + (2 * reach * (x - 48)) / (right - 48), -reach, reach);
      update();
    });
    update();
  }
  function update() {
    if (steps) steps.show();
    const now = bins(), most = Math.max(1, ...now.map((/** @type {any} */ b) => b.n));
    marks.replaceChildren(...now.flatMap((/** @type {any} */ b) => {
      const x = X(clamp(b.gap, -reach, reach)), r = 2.5 + 3.5 * Math.sqrt(b.n / most);
      return [S("path", { d: `M${x} ${Y(b.high)}V${Y(b.low)}`, stroke: V("policy"), "stroke-width": 1.75 }), S("circle", { cx: x, cy: Y(b.observed), r, fill: V("policy"), stroke: V("card"), "stroke-width": 1.5 })];
    }));
    const p = M.sigmoid(gap);
    hair.replaceChildren(S("path", { d: `M${X(gap)} ${low}V${Y(p)}H48`, stroke: V("ink"), "stroke-dasharray": "3 3", fill: "none" }), S("circle", { cx: X(gap), cy: Y(p), r: 6, fill: V("card"), stroke: V("ink"), "stroke-width": 3 }));
    control.set(gap, sgn(gap) || "0");
    reading.replaceChildren(formula("<math><mi>P</mi><mo>(</mo><mtext>win</mtext><mo>)</mo><mo>=</mo><mi>σ</mi><mo>(</mo><mtext>gap</mtext><mo>)</mo><mo>=</mo><mfrac><mn>1</mn><mrow><mn>1</mn><mo>+</mo><msup><mi>e</mi><mrow><mo>−</mo><mtext>gap</mtext></mrow></msup></mrow></mfrac></math>", `At a gap of ${sgn(gap) || "0"}: ${pct(p, 1)}.`));
    table.replaceChildren(numbers(now.map((/** @type {any} */ b) => [`${sgn(b.from) || "0"} to ${sgn(b.to) || "0"}`, String(b.n), pct(b.predicted), `${pct(b.observed)}`]), ["gap", "pairs", "predicted", "observed"]));
    card.say(bradleyTerrySentence(data, now));
  }
  return {
    build, update,
    csv: () => csv([["step", "from", "to", "mean_gap", "pairs", "predicted", "observed", "low", "high"], ...all.flatMap((/** @type {any[]} */ f, /** @type {number} */ k) => f.map((b) => [data.steps ? data.steps[k] : "", b.from, b.to, b.gap, b.n, b.predicted, b.observed, b.low, b.high]))]),
  };
};

/** @param {any} data @param {any[]} bins */
function bradleyTerrySentence(data, bins) {
  const total = bins.reduce((sum, b) => sum + b.n, 0);
  if (!total) return "No pair has a gap yet.";
  const b = bins.at(-1), where = `gaps between ${num(b.from)} and ${num(b.to)}`;
  if (total < 30) return `Of the ${b.n} pairs with ${where}, the preferred response wins ${pct(b.observed)}: too few pairs to compare with the curve.`;
  const inside = b.predicted >= b.low && b.predicted <= b.high;
  return `For ${where}, the curve predicts ${pct(b.predicted)} wins; ${pct(b.observed)} (${(100 * b.low).toFixed(0)} to ${pct(b.high)}) are observed in ${b.n} pairs${inside ? "" : b.observed > b.predicted ? ": the gaps are too small" : ": the gaps are too large"}.`;
}
