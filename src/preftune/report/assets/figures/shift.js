// @ts-check
// Distribution shift: how likely the policy finds its own samples and the data, over the steps.
"use strict";

FIGURES.shift = (data, card) => {
  const last = data.steps.length - 1, bands = data.bands;
  const index = () => {
    const at = data.steps.indexOf(Number(card.state.get("step", String(data.steps[last]))));
    return at < 0 ? last : at;
  };
  const steps = stepControl(data, card), table = H("div", {}), rule = H("div", {});
  card.side.append(steps.box, table, rule);
  card.key.append(...bands.map((/** @type {any} */ b) => swatch([S("rect", { y: 2, width: 18, height: 8, fill: V(b.colour), "fill-opacity": 0.2 }), S("path", { d: "M0 6H18", stroke: V(b.colour), "stroke-width": 2.5, "stroke-dasharray": b.dash || "" })], b.name)));
  rule.append(formula('<math><mtext>per token</mtext><mo>=</mo><mfrac><mrow><mi>log</mi><mi class="p">π</mi><mo>(</mo><mi>y</mi><mo>|</mo><mi>x</mi><mo>)</mo></mrow><mrow><mo>|</mo><mi>y</mi><mo>|</mo></mrow></mfrac></math>', "Bands hold the middle 80 % of the responses, lines are medians."));
  /** @type {any} */ let cursor;
  let X = (/** @type {number} */ x) => x;
  function build() {
    const w = widthOf(card.stage, 300), h = w < 560 ? 320 : 380, left = 52, right = w - 10, top = 26, bottom = h - 46;
    const s = drawing(card.stage, w, h, "Log-probs per token of the policy's samples and of the data, over the steps");
    const all = bands.flatMap((/** @type {any} */ b) => b.points.flatMap((/** @type {number[]} */ p) => p.slice(1))), xs = bands.flatMap((/** @type {any} */ b) => b.points.map((/** @type {number[]} */ p) => p[0]));
    const low = Math.min(...all), high = Math.max(...all), pad = 0.08 * (high - low) || 0.1, x = /** @type {[number, number]} */ ([Math.min(...xs), Math.max(...xs) || 1]);
    const scale = axes(s, { x, y: [low - pad, high + pad], left, right, top, bottom, xTicks: M.ticks(x[0], x[1], 6), yTicks: M.ticks(low - pad, high + pad, 5), xName: "step", yName: "log-prob per token, nats" }), Y = scale.Y;
    X = scale.X;
    for (const b of bands) {
      const c = V(b.colour), up = b.points.map((/** @type {number[]} */ p) => `${X(p[0]).toFixed(1)} ${Y(p[3]).toFixed(1)}`), down = [...b.points].reverse().map((p) => `${X(p[0]).toFixed(1)} ${Y(p[1]).toFixed(1)}`);
      if (b.points.length > 1) s.append(S("path", { d: `M${[...up, ...down].join("L")}Z`, fill: c, "fill-opacity": 0.14 }), S("path", { d: "M" + b.points.map((/** @type {number[]} */ p) => `${X(p[0]).toFixed(1)} ${Y(p[2]).toFixed(1)}`).join("L"), fill: "none", stroke: c, "stroke-width": 2.5, "stroke-dasharray": b.dash || "" }));
      for (const p of b.points) s.append(S("circle", { cx: X(p[0]), cy: Y(p[2]), r: 3, fill: V("card"), stroke: c, "stroke-width": 2 }));
    }
    cursor = S("path", { stroke: V("ink"), "stroke-opacity": 0.4 });
    s.append(cursor);
    update();
  }
  function update() {
    steps.show();
    const here = data.steps[index()];
    if (cursor) cursor.setAttribute("d", `M${X(here)} 26V${(widthOf(card.stage, 300) < 560 ? 320 : 380) - 46}`);
    table.replaceChildren(numbers(bands.map((/** @type {any} */ b) => {
      const p = b.points.filter((/** @type {number[]} */ q) => q[0] <= here).at(-1);
      return [b.name, p ? num(p[2], 3) : "", p ? String(p[0]) : ""];
    }), ["median, nats per token", "", "step"]));
    card.say(shiftSentence(data, here));
  }
  return {
    build, update,
    csv: () => csv([["series", "step", "q10", "median", "q90"], ...bands.flatMap((/** @type {any} */ b) => b.points.map((/** @type {number[]} */ p) => [b.name, ...p]))]),
  };
};

/** @param {any} data @param {number} step */
function shiftSentence(data, step) {
  const gaps = data.gaps.filter((/** @type {number[]} */ g) => g[0] <= step), first = gaps[0], now = gaps.at(-1);
  if (!now) return "The policy's own samples were not measured up to this step.";
  const to = now[0] === first[0] ? `At step ${now[0]}, the data are` : `From step ${first[0]} to step ${now[0]}, the data moved from ${num(first[1])} to`;
  return `${to} ${num(now[1])} nats per response below the policy's own samples${now[2] === null ? "" : `, and the policy is ${num(now[2])} nats (KL) from its reference`}.`;
}
