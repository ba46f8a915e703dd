// @ts-check
// One pair by hand: four log-probs as sliders, and every line of the loss.
"use strict";

FIGURES.by_hand = (data, card) => {
  const examples = data.examples, keys = ["pw", "pl", "rw", "rl"];
  let current = 0, soft = true, v = /** @type {any} */ ({});
  /** @type {any} */ let s = null;
  /** @type {any} */ let g = null;
  let X = (/** @type {number} */ x) => x;
  const all = examples.flatMap((/** @type {any} */ e) => [...e.policy, ...e.reference]), low = Math.floor(Math.min(...all) - 2), high = Math.ceil(Math.max(...all) + 2);
  const quotes = H("div", { class: "quotes" }), controls = H("div", { class: "wide2" }), lines = H("ol", { class: "steps" });
  const set = (/** @type {number} */ i) => {
    current = i;
    const e = examples[i];
    v = { pw: e.policy[0], pl: e.policy[1], rw: e.reference[0], rl: e.reference[1], b: data.beta };
    const note = (/** @type {number} */ k) => (e.reward ? `; true reward ${sgn(e.reward[k])}` : "");
    quotes.replaceChildren(H("p", { class: "note" }, tail(e.prompt, 400)), quote("w", cut(e.chosen, 500), `chosen${note(0)}`), quote("l", cut(e.rejected, 500), `rejected${note(1)}`));
  };
  const picker = select(`${card.id}-pair`, "Pair of the run", examples.map((/** @type {any} */ e, /** @type {number} */ i) => [String(i), `${e.why}: ${tail(e.prompt, 60)}`]), "0", (i) => {
    set(+i);
    update();
  });
  const reset = H("button", { type: "button" }, "Back to the pair");
  reset.addEventListener("click", () => {
    set(current);
    soft = box.checked = true;
    update();
  });
  card.side.append(picker.box, quotes, H("div", { class: "row noprint" }, reset));
  const names = /** @type {Record<string, [string, string]>} */ ({ pw: ["log π of the chosen", "chosen"], pl: ["log π of the rejected", "rejected"], rw: ["log ref of the chosen", "chosen"], rl: ["log ref of the rejected", "rejected"], b: ["beta", "ink"] });
  const sliders = Object.entries(names).map(([k, [text, colour]]) => {
    const range = k === "b" ? { min: Math.min(0.02, data.beta), max: Math.max(1, 2 * data.beta), step: 0.001 } : { min: low, max: high, step: 0.01 };
    const one = slider({ id: `${card.id}-${k}`, label: text, ...range, value: 0, colour }, (x) => {
      v[k] = x;
      update();
    });
    controls.append(one.box);
    return { k, one };
  });
  const box = H("input", { type: "checkbox", id: `${card.id}-soft` });
  box.checked = true;
  box.addEventListener("change", () => {
    soft = box.checked;
    update();
  });
  if (examples.some((/** @type {any} */ e) => e.label < 1)) controls.append(H("div", { class: "ctl row", style: "align-self:center" }, box, H("label", { for: box.id }, "use the judge's probability as the label")));
  card.below.append(controls, lines);

  function build() {
    const w = widthOf(card.stage);
    s = drawing(card.stage, w, 372, "Log-probs of both responses under reference and policy, and the loss at this margin");
    X = (x) => 12 + ((w - 24) * (x - low)) / (high - low);
    g = S("g");
    s.append(g);
    update();
  }
  function lane(/** @type {number} */ y, /** @type {string} */ name, /** @type {string} */ colour, /** @type {number} */ r, /** @type {number} */ p) {
    const d = p - r, x1 = X(r), x2 = X(p), tip = Math.abs(x2 - x1) > 16 ? x2 - Math.sign(d) * 8 : x1, close = Math.abs(x1 - x2) < 26;
    const w = s.viewBox.baseVal.width, middle = clamp((x1 + x2) / 2, 44, w - 44);
    return [
      T(middle < w / 2 ? w - 12 : 12, y - 26, name, "b", middle < w / 2 ? "end" : "start", { style: `fill:var(--${colour})` }), S("path", { d: `M${X(low)} ${y}H${X(high)}`, class: "ax" }), S("path", { d: `M${x1} ${y}H${tip}`, stroke: V(colour), "stroke-width": 5 }),
      S("circle", { cx: x1, cy: y, r: 6, fill: V("card"), stroke: V("reference"), "stroke-width": 2.5 }), S("circle", { cx: x2, cy: y, r: 7, fill: V(colour), stroke: V("card"), "stroke-width": 1.5 }),
      T(middle, y - 12, `${sgn(d) || "0"} nats`, "i b halo", "middle"), T(x1, y + 21, "ref", "s halo", close ? (x1 <= x2 ? "end" : "start") : "middle"), T(x2, y + 21, "π", "s i b halo", close ? (x1 <= x2 ? "start" : "end") : "middle"),
    ];
  }
  function update() {
    const c = byHand(v, soft ? examples[current].label : 1, data.label_smoothing || 0), w = s.viewBox.baseVal.width, narrow = w < 560;
    const left = 44, wide = w - left - 16, bottom = 350, tall = 150, span = Math.max(3, Math.ceil(Math.abs(c.z) + 0.5));
    const L = (/** @type {number} */ a) => c.q * M.nls(a) + (1 - c.q) * M.nls(-a), top = Math.max(L(-span), L(span));
    const zx = (/** @type {number} */ a) => left + (wide * (a + span)) / (2 * span), ly = (/** @type {number} */ a) => bottom - 18 - ((tall - 18) * a) / top;
    const d = 0.23 * span, text = `loss ${num(c.loss, 4)}, slope ${num(-c.push, 3)}`;
    g.replaceChildren(
      ...lane(46, "chosen, log-prob", "chosen", v.rw, v.pw), ...lane(118, "rejected, log-prob", "rejected", v.rl, v.pl),
      ...M.ticks(low, high, narrow ? 4 : 6).map((a) => T(clamp(X(a), 14, w - 14), 158, short(a), "s", "middle")),
      S("path", { d: `M${left} ${ly(0)}H${left + wide}`, class: "ax" }), ...M.ticks(-span, span, narrow ? 4 : 6).map((a) => T(zx(a), bottom - 2, short(a), "s", "middle")),
      ...M.ticks(0, top, 3).map((a) => T(left - 8, ly(a) + 4, short(a), "s", "end")), T(0, ly(top) - 8, "loss", "s"), T(left + wide, bottom + 16, "margin, beta h", "s", "end"),
      S("path", { fill: "none", stroke: V("ink"), "stroke-width": 2.2, d: "M" + Array.from({ length: 121 }, (_, i) => -span + (2 * span * i) / 120).map((a) => `${zx(a).toFixed(1)} ${ly(L(a)).toFixed(1)}`).join("L") }),
      S("path", { d: `M${zx(c.z - d)} ${ly(L(c.z) + d * c.push)}L${zx(c.z + d)} ${ly(L(c.z) - d * c.push)}`, stroke: V("policy"), "stroke-width": 2.5 }),
      S("path", { d: `M${zx(c.z)} ${ly(0)}V${ly(L(c.z))}`, stroke: V("ink2"), "stroke-dasharray": "3 3" }), S("circle", { cx: zx(c.z), cy: ly(L(c.z)), r: 7, fill: V("policy"), stroke: V("card"), "stroke-width": 1.5 }),
      narrow ? T(left + wide / 2, ly(0.92 * top), text, "i b halo", "middle") : T(zx(c.z) + (c.z > 0.2 * span ? -12 : 12), ly(L(c.z)) - 12, text, "i b halo", c.z > 0.2 * span ? "end" : "start"),
    );
    for (const { k, one } of sliders) one.set(v[k], k === "b" ? short(v[k]) : num(v[k]));
    const par = (/** @type {number} */ x, n = 2) => (x < 0 ? `(${num(x, n)})` : num(x, n));
    const rows = [
      ["How far the chosen moved", `log π(y_w) ${MINUS} log ref(y_w) = ${num(v.pw)} ${MINUS} ${par(v.rw)}`, sgn(c.lw), "w"],
      ["How far the rejected moved", `log π(y_l) ${MINUS} log ref(y_l) = ${num(v.pl)} ${MINUS} ${par(v.rl)}`, sgn(c.ll), "l"],
      ["Difference h", `${num(c.lw)} ${MINUS} ${par(c.ll)}`, sgn(c.h), ""],
      ["Margin", `β h = ${short(v.b)} × ${par(c.h)}`, sgn(c.z, 4), ""],
      ["What the policy predicts: chosen wins", `σ(${num(c.z, 4)}) = 1 / (1 + e^${num(-c.z, 4)})`, num(c.wins, 4), ""],
      ["Loss", c.q === 1 ? `${MINUS}log ${num(c.wins, 4)}` : `${MINUS}${num(c.q, 3)} log ${num(c.wins, 4)} ${MINUS} ${num(1 - c.q, 3)} log ${num(1 - c.wins, 4)}`, num(c.loss, 4), ""],
      ["Push", c.q === 1 ? `1 ${MINUS} ${num(c.wins, 4)} = σ(${MINUS}margin)` : `${num(c.q, 3)} ${MINUS} ${num(c.wins, 4)}`, sgn(c.push, 4), "p"],
      ["Gradient of the loss by log π of chosen and rejected", `∓ β × push = ∓ ${short(v.b)} × ${par(c.push, 4)}`, `${sgn(-v.b * c.push, 4)}, ${sgn(v.b * c.push, 4)}`, "p"],
      ["Implicit rewards, as logged", `β × ${par(c.lw)} and β × ${par(c.ll)}`, `${sgn(v.b * c.lw, 3)}, ${sgn(v.b * c.ll, 3)}`, ""],
    ];
    lines.replaceChildren(...rows.map(([a, b, value, kind]) => H("li", {}, H("span", {}, a), H("code", {}, b), H("b", { class: kind }, value))));
    card.say(byHandSentence(c));
  }
  set(0);
  return {
    build, update,
    csv: () => csv([["prompt", "chosen", "rejected", "label", "policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected"], ...examples.map((/** @type {any} */ e) => [e.prompt, e.chosen, e.rejected, e.label, ...e.policy, ...e.reference])]),
  };
};

/** Every quantity of one pair. @param {any} v @param {number} p @param {number} e label smoothing */
function byHand(v, p, e) {
  const q = p * (1 - e) + (1 - p) * e, lw = v.pw - v.rw, ll = v.pl - v.rl, h = lw - ll, z = v.b * h, wins = M.sigmoid(z);
  return { q, lw, ll, h, z, wins, loss: q * M.nls(z) + (1 - q) * M.nls(-z), push: q - wins };
}

/** @param {any} c */
function byHandSentence(c) {
  const both = c.lw < 0 && c.ll < 0 ? ", although both are already less likely than under the reference" : "";
  return `The policy moved the chosen response by ${sgn(c.lw) || "0.00"} nats and the rejected one by ${sgn(c.ll) || "0.00"}. That is a margin of ${sgn(c.z, 3) || "0.000"} and a loss of ${num(c.loss, 3)}; the next step ${c.push > 0 ? "widens" : "narrows"} the margin${both}.`;
}
