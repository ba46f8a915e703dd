// @ts-check
// The optimal policy of one prompt as a tilt of the reference, for the beta of a slider.
"use strict";

FIGURES.tilt = (data, card) => {
  const R = data.responses, n = R.length, betas = data.betas;
  const normalised = (/** @type {number[]} */ l) => {
    const z = M.lse(l);
    return l.map((x) => x - z);
  };
  const ref = normalised(R.map((/** @type {any} */ r) => r.logp)), reward = R.map((/** @type {any} */ r) => r.reward);
  const tuned = betas.map((/** @type {number} */ b) => {
    const lp = normalised(R.map((/** @type {any} */ r) => r.tuned[String(b)]));
    return { b, p: lp.map(Math.exp), ...M.value(lp, ref, reward) };
  });
  const first = Math.log(10), last = Math.log(0.05), toBeta = (/** @type {number} */ t) => Math.exp(first + t * (last - first)), toPlace = (/** @type {number} */ b) => (Math.log(b) - first) / (last - first);
  let beta = betas.length ? betas[Math.floor(betas.length / 2)] : 0.3;
  const control = slider({ id: `${card.id}-beta`, label: "beta, the price of one nat of KL", min: 0, max: 1, step: 0.002, value: toPlace(beta), colour: "optimum" }, (t) => {
    beta = betas.find((/** @type {number} */ b) => Math.abs(toPlace(b) - t) < 0.012) ?? toBeta(t);
    update();
  });
  if (betas.length) {
    const marks = H("div", { class: "ticks", role: "group", "aria-label": "Set beta to that of a trained policy" });
    for (const b of betas) {
      const button = H("button", { type: "button", style: `left:${100 * toPlace(b)}%`, "aria-label": `beta ${b}` }, String(b));
      button.addEventListener("click", () => {
        beta = b;
        update();
      });
      marks.append(button);
    }
    control.box.append(marks, H("small", {}, "The marks are the betas that this run was trained with."));
  }
  const plane = H("div", {}), table = H("div", {}), rule = H("div", {});
  card.side.append(control.box, plane, table, rule);
  card.key.append(
    swatch([S("rect", { width: 18, height: 12, fill: V("reference"), "fill-opacity": 0.22 }), S("path", { d: "M17 0V12", stroke: V("reference"), "stroke-width": 2 })], "SFT model, the reference"),
    swatch([S("rect", { y: 3, width: 18, height: 6, fill: V("optimum") })], "π*, the best policy at this beta"),
    ...(betas.length ? [swatch([S("path", { d: diamond(9, 6, 5.5), fill: V("policy") })], "trained with DPO, measured")] : []),
  );
  /** @type {any[]} */ let rows = [];
  let X = (/** @type {number} */ p) => p, dot = /** @type {any} */ (null), px = X, py = X;
  const most = Math.min(1, Math.ceil(5 * Math.max(...[0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1].flatMap((t) => M.tilt(ref, reward, toBeta(t)).pi), ...tuned.flatMap((/** @type {any} */ t) => t.p))) / 5);
  function build() {
    const w = widthOf(card.stage, 300), narrow = w < 560, texts = R.map((/** @type {any} */ r) => cut(r.text, narrow ? 44 : 40));
    const wide = Math.max(...widths(texts)), rowHeight = narrow ? 42 : 33, x0 = narrow ? 0 : Math.min(wide + 66, 0.62 * w), x1 = w - 48, top = 22, h = top + n * rowHeight + 34;
    X = (p) => x0 + ((x1 - x0) * Math.min(p, most)) / most;
    const s = drawing(card.stage, w, h, `Probabilities of ${n} responses under the reference, the optimum and the trained policy`);
    rows = [];
    for (const p of M.ticks(0, most, narrow || x1 - x0 < 260 ? 3 : 5)) s.append(S("path", { d: `M${X(p)} ${top}V${h - 30}`, class: p ? "gr" : "ax" }), T(X(p), h - 14, p ? pct(p) : "0", "s", narrow && !p ? "start" : "middle"));
    s.append(T(0, 12, cut(`responses to \u201c${data.prompt}\u201d`, Math.floor((narrow ? w - 60 : x0 - 70) / 6.6)), "s"), T(w, 12, "π* / ref", "s", "end"));
    if (!narrow) s.append(T(x0 - 12, 12, "reward", "s", "end"));
    R.forEach((/** @type {any} */ r, /** @type {number} */ i) => {
      const y = top + i * rowHeight, by = narrow ? y + 19 : y + 6, bh = narrow ? 18 : 21;
      s.append(T(0, narrow ? y + 14 : y + 21, texts[i], "i"), T(narrow ? x1 : x0 - 12, narrow ? y + 14 : y + 21, sgn(r.reward), "", "end"));
      const bar = S("rect", { x: x0, y: by, width: X(Math.exp(ref[i])) - x0, height: bh, fill: V("reference"), "fill-opacity": 0.22 }), end = S("path", { d: `M${X(Math.exp(ref[i]))} ${by}v${bh}`, stroke: V("reference"), "stroke-width": 2 });
      const best = S("rect", { x: x0, y: by + bh / 2 - 4.5, width: 0, height: 9, fill: V("optimum"), class: "bar" }), mark = S("path", { fill: V("policy"), stroke: V("card"), "stroke-width": 1.5, class: "mv", d: diamond(0, 0, 6.5) }), ratio = T(w, by + bh / 2 + 4.5, "", "s", "end");
      s.append(bar, end, best, ...(betas.length ? [mark] : []), ratio);
      rows.push({ best, mark, ratio, y: by + bh / 2, x0 });
    });
    drawPlane();
    update();
  }
  function drawPlane() {
    const w = widthOf(plane, 220), h = 168, points = Array.from({ length: 90 }, (_, i) => M.tilt(ref, reward, toBeta(i / 89)));
    const kls = [...points.map((v) => v.kl), ...tuned.map((/** @type {any} */ t) => t.kl)], rs = [...points.map((v) => v.reward), ...tuned.map((/** @type {any} */ t) => t.reward)];
    const s = drawing(plane, w, h, "Expected reward against KL for these responses; the line is every beta"), low = Math.min(...rs), high = Math.max(...rs), gap = 0.08 * (high - low || 1), maxKl = Math.max(...kls) * 1.05 || 1;
    px = (k) => 34 + ((w - 46) * k) / maxKl;
    py = (r) => h - 34 - ((h - 46) * (r - low + gap)) / (high - low + 2 * gap || 1);
    for (const k of M.ticks(0, maxKl, 4)) s.append(S("path", { d: `M${px(k)} 10V${h - 34}`, class: k ? "gr" : "ax" }), T(px(k), h - 18, short(k), "s", "middle"));
    for (const r of M.ticks(low, high, 3)) s.append(S("path", { d: `M${px(0)} ${py(r)}H${w - 8}`, class: "gr" }), T(28, py(r) + 4, short(r), "s", "end"));
    s.append(T(w - 8, h - 3, "KL to the reference, nats", "s", "end"), T(px(0) + 5, 20, "expected reward", "s halo"));
    s.append(S("path", { fill: "none", stroke: V("optimum"), "stroke-width": 2, d: "M" + points.map((v) => `${px(v.kl)} ${py(v.reward)}`).join("L") }));
    for (const t of tuned) s.append(S("path", { d: diamond(px(t.kl), py(t.reward), 5.5), fill: V("policy") }), T(px(t.kl) + 8, py(t.reward) + 13, String(t.b), "s halo"));
    dot = S("circle", { r: 6, fill: V("card"), stroke: V("optimum"), "stroke-width": 3 });
    s.append(dot);
  }
  function update() {
    const v = M.tilt(ref, reward, beta), text = betaText(beta), near = nearest(tuned, beta);
    rows.forEach((r, i) => {
      r.best.setAttribute("width", String(X(v.pi[i]) - r.x0));
      if (near) r.mark.style.transform = `translate(${X(near.p[i])}px,${r.y}px)`;
      const q = v.pi[i] / Math.exp(ref[i]);
      r.ratio.textContent = `\u00d7${q >= 10 ? q.toFixed(0) : q >= 1 ? q.toFixed(1) : q.toFixed(2)}`;
    });
    control.set(toPlace(beta), text);
    control.input.setAttribute("aria-valuetext", `beta ${text}`);
    dot.setAttribute("cx", px(v.kl));
    dot.setAttribute("cy", py(v.reward));
    card.say(tiltSentence(ref, reward, v.pi, beta, near));
    table.replaceChildren(numbers([["SFT model", num(M.value(ref, ref, reward).reward, 3), "0.000"], [`π* at ${text}`, num(v.reward, 3), num(v.kl, 3)], ...(near ? [[`trained at ${near.b}`, num(near.reward, 3), num(near.kl, 3)]] : [])], [`these ${n} responses`, "reward", "KL, nats"]));
    const z = Math.exp(v.logZ);
    rule.replaceChildren(formula('<math><mrow class="o"><msup><mi>π</mi><mo>*</mo></msup></mrow><mo>(</mo><mi>y</mi><mo>|</mo><mi>x</mi><mo>)</mo><mo>=</mo><mfrac><mrow><mi class="r">ref</mi><mo>(</mo><mi>y</mi><mo>|</mo><mi>x</mi><mo>)</mo><mspace width=".15em"></mspace><mi>exp</mi><mo>(</mo><mi>r</mi><mo>/</mo><mi>β</mi><mo>)</mo></mrow><mrow><mi>Z</mi><mo>(</mo><mi>x</mi><mo>)</mo></mrow></mfrac></math>', `Z(x) = ${z < 1e4 ? z.toPrecision(4) : z.toExponential(3)}; reward ${MINUS} β KL = β log Z = ${num(beta * v.logZ, 4)}`));
  }
  return {
    build, update,
    csv: () => csv([["text", "reward", "logp_reference", ...betas.map((/** @type {number} */ b) => `logp_beta_${b}`)], ...R.map((/** @type {any} */ r) => [r.text, r.reward, r.logp, ...betas.map((/** @type {number} */ b) => r.tuned[String(b)])])]),
  };
};

/** @param {number} b */
const betaText = (b) => (b >= 1 ? b.toFixed(b < 10 ? 2 : 1).replace(/\.?0+$/, "") : String(+b.toPrecision(2)));
/** The policy whose beta is nearest on a log scale. @param {any[]} tuned @param {number} beta */
const nearest = (tuned, beta) => tuned.reduce((a, b) => (a && Math.abs(Math.log(a.b / beta)) <= Math.abs(Math.log(b.b / beta)) ? a : b), null);

/** @param {number[]} ref @param {number[]} reward @param {number[]} pi @param {number} beta @param {any} near */
function tiltSentence(ref, reward, pi, beta, near) {
  const high = Math.max(...reward) / 4, good = (/** @type {number[]} */ p) => pct(p.reduce((sum, x, i) => sum + (reward[i] > high ? x : 0), 0));
  const text = `At beta ${betaText(beta)}, the best policy gives ${good(pi)} of its probability to responses with a reward above ${num(high)}, the SFT model ${good(ref.map(Math.exp))}.`;
  return near ? `${text} The policy trained at beta ${near.b}${near.b === beta ? "" : ", the nearest one,"} gives ${good(near.p)}.` : text;
}
