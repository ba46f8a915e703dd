// @ts-check
// How hard a pair pushes, against its margin, over the histogram of the run's margins.
"use strict";

const PUSH_FORMULAS = /** @type {Record<string, string>} */ ({
  sigmoid: "<math><mtext>push</mtext><mo>=</mo><mi>p</mi><mo>−</mo><mi>σ</mi><mo>(</mo><mi>m</mi><mo>)</mo></math>",
  sigmoid_norm: "<math><mtext>push</mtext><mo>=</mo><mi>p</mi><mo>−</mo><mi>σ</mi><mo>(</mo><mi>m</mi><mo>)</mo></math>",
  hinge: '<math><mtext>push</mtext><mo>=</mo><mn>1</mn><mspace width=".4em"></mspace><mtext>where</mtext><mspace width=".4em"></mspace><mi>m</mi><mo>&lt;</mo><mn>1</mn></math>',
  ipo: "<math><mtext>push</mtext><mo>∝</mo><mn>1</mn><mo>−</mo><mn>2</mn><mi>m</mi></math>",
});

FIGURES.gradient = (data, card) => {
  const steps = stepControl(data, card), beta = data.parameters.beta, [from, to, bins] = data.edges, width = (to - from) / bins;
  const most = Math.max(1, ...data.hist.slice(data.hist.length > 1 ? 1 : 0).flatMap((/** @type {any} */ h) => h.counts));
  let label = "certain", m = clamp(0.2, from, to);
  let [bars, line, hair, s] = /** @type {any[]} */ ([]);
  let X = (/** @type {number} */ z) => z, Yc = X, Yw = X, floor = 0;
  const fn = /** @type {((z: number, o: LossOptions) => number) | undefined} */ (M.push[data.loss]), p = () => (label === "certain" || !M.soft.includes(data.loss) ? 1 : data.mean_label);
  const options = () => lossOptions(data, data.loss, p());
  const unit = fn ? Math.abs(fn(0, { ...options(), p: 1 })) * (data.loss.startsWith("sigmoid") || data.loss === "robust" ? 2 : 1) || 1 : 1;
  const weight = (/** @type {number} */ z) => (fn ? fn(z, options()) / unit : 0);
  const full = Math.max(1, Math.abs(weight(from)), Math.abs(weight(to))); // ipo pushes a pair in the wrong order by more than 1
  const marginSlider = slider({ id: `${card.id}-margin`, label: "Margin of one pair", min: from, max: to, step: width / 4, value: m }, (x) => {
    m = x;
    update();
  });
  const arrows = H("div", {}), rule = H("div", {});
  const labels = choice(`${card.id}-label`, "Label of a pair", [["certain", "certain, 1"], ["judged", `as judged, ${num(data.mean_label)}`]], label, (v) => {
    label = v;
    update();
  });
  card.side.append(...[marginSlider.box, arrows, steps.box, fn && M.soft.includes(data.loss) && data.mean_label < 0.995 ? labels : null, rule].filter(Boolean));
  card.key.append(
    swatch([S("path", { d: "M0 3C8 3 10 9 18 9", stroke: V("ink"), "stroke-width": 2.5, fill: "none" })], "push of a pair"),
    swatch([S("rect", { width: 7, height: 12, fill: V("warn"), "fill-opacity": 0.25 }), S("rect", { y: 4, width: 7, height: 8, fill: V("warn"), "fill-opacity": 0.85 }), S("rect", { x: 9, width: 7, height: 12, fill: V("policy"), "fill-opacity": 0.25 }), S("rect", { x: 9, y: 6, width: 7, height: 6, fill: V("policy"), "fill-opacity": 0.85 })], `${data.split} pairs in the wrong and in the right order; filled: their push`),
  );
  function build() {
    const w = widthOf(card.stage), narrow = w < 560, left = 40, h = narrow ? 330 : 400, top = 26;
    floor = h - 40;
    s = drawing(card.stage, w, h, `Push of one pair against its margin, over a histogram of ${data.scored} margins`, "group");
    X = (z) => left + ((w - left - (narrow ? 34 : 44)) * (z - from)) / (to - from);
    Yc = (c) => floor - ((floor - top) * Math.min(c, most)) / most;
    Yw = (v) => floor - ((floor - top) * v) / full;
    for (const v of full > 1 ? M.ticks(0, full, 4) : [0, 0.25, 0.5, 0.75, 1]) s.append(S("path", { d: `M${left} ${Yw(v)}H${X(to)}`, class: v ? "gr" : "ax" }), T(left - 7, Yw(v) + 4, short(v), "s", "end"));
    for (const c of M.ticks(0, most, 4)) if (Number.isInteger(c)) s.append(T(X(to) + 7, Yc(c) + 4, String(c), "s"));
    s.append(T(0, 13, "push", "i"), T(w, 13, "pairs", "", "end"), T(X(to), h - 3, narrow ? "margin m" : data.margin_name, "", "end"));
    for (const z of M.ticks(from, to, narrow ? 4 : 6)) s.append(T(X(z), floor + 17, short(z), "s", "middle"));
    bars = S("g");
    s.append(bars);
    if (from < 0 && to > 0) s.append(S("path", { d: `M${X(0)} ${top}V${floor}`, stroke: V("ink"), "stroke-opacity": 0.55 }), T(X(0) - 8, top + 12, narrow ? "wrong" : "wrong order", "s halo", "end"), T(X(0) + 8, top + 12, narrow ? "right" : "right order", "s halo"));
    line = S("path", { fill: "none", stroke: V("ink"), "stroke-width": 2.5 });
    hair = S("g");
    const pad = S("rect", { x: left, y: top, width: X(to) - left, height: floor - top, class: "hit" });
    s.append(line, hair, pad);
    drag(pad, s, (x) => {
      m = clamp(from + ((to - from) * (x - left)) / (X(to) - left), from, to);
      update();
    });
    update();
  }
  function update() {
    const step = steps.index(), h = data.hist[step];
    steps.show();
    bars.replaceChildren(...h.counts.flatMap((/** @type {number} */ c, /** @type {number} */ i) => {
      if (!c) return [];
      const z = from + i * width, mid = z + width / 2, x = X(z) + 0.5, w = Math.max(1, X(z + width) - X(z) - 1), tall = floor - Yc(c);
      const share = !fn ? 0 : label === "judged" && data.loss === "sigmoid" ? h.push[i] / c : Math.min(1, Math.abs(weight(mid)) / full);
      const colour = V(mid < 0 ? "warn" : "policy"), over = c > most ? [T(x + w / 2, Yc(c) - 3, String(c), "s halo", "middle")] : [];
      return [S("rect", { x, y: Yc(c), width: w, height: tall, fill: colour, "fill-opacity": 0.2 }), S("rect", { x, y: floor - tall * share, width: w, height: tall * share, fill: colour, "fill-opacity": 0.85 }), ...over];
    }));
    line.setAttribute("d", fn ? "M" + Array.from({ length: 161 }, (_, i) => from + ((to - from) * i) / 160).map((z) => `${X(z).toFixed(1)} ${Yw(Math.min(Math.abs(weight(z)), 1.03 * full)).toFixed(1)}`).join("L") : "");
    const v = weight(m);
    hair.replaceChildren(...(fn ? [S("path", { d: `M${X(m)} ${Yw(Math.min(full, Math.abs(v)))}V${floor}`, stroke: V("ink"), "stroke-dasharray": "3 3" }), S("circle", { cx: X(m), cy: Yw(Math.min(1.03 * full, Math.abs(v))), r: 7, fill: V("card"), stroke: V("ink"), "stroke-width": 3 })] : []));
    marginSlider.set(m, sgn(m));
    pushArrows(v);
    card.say(gradientSentence(data, step, label));
    rule.replaceChildren(fn ? formula(PUSH_FORMULAS[data.loss] || "", `At margin ${sgn(m)}: ${num(v * unit, 3)}. The gradient on each ${data.kind === "reward" ? "reward is" : "log-prob is beta times"} that, up for the chosen and down for the rejected response.${p() < 1 ? ` p = ${num(p())}, the mean label.` : ""}`) : H("p", { class: "note" }, `The push of ${data.loss} is not a function of the margin alone, so no curve is drawn.`));
  }
  /** @param {number} v */
  function pushArrows(v) {
    const w = widthOf(arrows, 220), c = w / 2, length = clamp(v / full, -1, 1) * (c - 14), size = num(beta * Math.abs(v * unit), 3);
    const g = drawing(arrows, w, 116, fn ? `Chosen is pushed ${v >= 0 ? "up" : "down"} and rejected ${v >= 0 ? "down" : "up"} with ${size}` : "No push as a function of the margin");
    const arrow = (/** @type {number} */ y, /** @type {number} */ d, /** @type {string} */ colour) =>
      Math.abs(d) < 3 ? S("circle", { cx: c, cy: y, r: 3, fill: colour }) : S("path", { d: `M${c} ${y - 5}H${c + d - Math.sign(d) * 9}V${y - 11}L${c + d} ${y}L${c + d - Math.sign(d) * 9} ${y + 11}V${y + 5}H${c}Z`, fill: colour });
    g.append(S("path", { d: `M${c} 4V96`, class: "ax" }), T(0, 14, "chosen", "s b", "start", { style: "fill:var(--chosen)" }), arrow(30, length, V("chosen")), T(0, 62, "rejected", "s b", "start", { style: "fill:var(--rejected)" }), arrow(78, -length, V("rejected")), T(c, 112, fn ? `${data.kind === "reward" ? "reward" : "log-prob"} down  \u2190  each ${size}  \u2192  up` : "", "s", "middle"));
  }
  return {
    build, update,
    csv: () => csv([["step", "bin_from", "bin_to", "pairs", "push"], ...data.steps.flatMap((/** @type {number} */ step, /** @type {number} */ k) => data.hist[k].counts.map((/** @type {number} */ c, /** @type {number} */ i) => [step, +(from + i * width).toFixed(4), +(from + (i + 1) * width).toFixed(4), c, data.hist[k].push[i]]))]),
  };
};

/** @param {any} data @param {number} step @param {string} label */
function gradientSentence(data, step, label) {
  const h = data.hist[step], at = data.steps[step], start = data.hist[0].weight;
  if (!M.push[data.loss]) return `${data.loss} weighs a pair by more than its margin. At step ${at}, ${pct(1 - h.accuracy)} of the ${data.split} pairs are in the wrong order.`;
  if (data.loss !== "sigmoid") return data.loss === "hinge" ? "hinge pushes all pairs equally until their margin is 1, and then not at all." : data.loss === "ipo" ? "ipo pushes in proportion to what a margin lacks, and back if it is too large." : `At step ${at}, ${pct(1 - h.accuracy)} of the ${data.split} pairs are in the wrong order.`;
  if (label === "judged") return `With labels as judged, a pair pushes only as far as it is from its label: ${num(h.residual, 3)} on average at step ${at}, ${num(data.hist[0].residual, 3)} at the start.`;
  if (at === 0 && h.mean === 0) return "At the start every pair pushes with half of its full strength: the margin is 0, and sigmoid(0) = 0.5.";
  return `At step ${at}, ${pct(1 - h.accuracy)} of the ${data.split} pairs are in the wrong order and make ${pct(h.wrong_share)} of the push; the mean push ${num(h.weight) === num(start) ? `is ${num(start)}` : `went from ${num(start)} to ${num(h.weight)}`}.`;
}
