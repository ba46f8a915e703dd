// @ts-check
// The loss as a landscape over the log-ratios of chosen and rejected, with the run's pairs moving through the steps.
"use strict";

const LOSS_FORMULAS = /** @type {Record<string, string>} */ ({
  sigmoid: "<math><mi>ℓ</mi><mo>=</mo><mo>−</mo><mi>p</mi><mi>log</mi><mi>σ</mi><mo>(</mo><mi>β</mi><mi>h</mi><mo>)</mo></math><math style=\"margin-left:1.6em\"><mo>−</mo><mo>(</mo><mn>1</mn><mo>−</mo><mi>p</mi><mo>)</mo><mi>log</mi><mi>σ</mi><mo>(</mo><mo>−</mo><mi>β</mi><mi>h</mi><mo>)</mo></math>",
  ipo: "<math><mi>ℓ</mi><mo>=</mo><mi>p</mi><msup><mrow><mo>(</mo><mi>h</mi><mo>−</mo><mfrac><mn>1</mn><mrow><mn>2</mn><mi>β</mi></mrow></mfrac><mo>)</mo></mrow><mn>2</mn></msup><mo>+</mo><mo>(</mo><mn>1</mn><mo>−</mo><mi>p</mi><mo>)</mo><msup><mrow><mo>(</mo><mi>h</mi><mo>+</mo><mfrac><mn>1</mn><mrow><mn>2</mn><mi>β</mi></mrow></mfrac><mo>)</mo></mrow><mn>2</mn></msup></math>",
  hinge: "<math><mi>ℓ</mi><mo>=</mo><mi>p</mi><msub><mrow><mo>[</mo><mn>1</mn><mo>−</mo><mi>β</mi><mi>h</mi><mo>]</mo></mrow><mo>+</mo></msub><mo>+</mo><mo>(</mo><mn>1</mn><mo>−</mo><mi>p</mi><mo>)</mo><msub><mrow><mo>[</mo><mn>1</mn><mo>+</mo><mi>β</mi><mi>h</mi><mo>]</mo></mrow><mo>+</mo></msub></math>",
  dpop: '<math><mi>ℓ</mi><mo>=</mo><mo>−</mo><mi>log</mi><mi>σ</mi><mo>(</mo><mi>β</mi><mo>[</mo><mi>h</mi><mo>−</mo><mi>λ</mi><msub><mrow><mo>[</mo><mo>−</mo><msub><mi class="w">a</mi><mi>w</mi></msub><mo>]</mo></mrow><mo>+</mo></msub><mo>]</mo><mo>)</mo></math>',
});
const MARGIN_FORMULA =
  '<math style="margin-top:6px"><mi>h</mi><mo>=</mo><msub><mi class="w">a</mi><mi>w</mi></msub><mo>−</mo><msub><mi class="l">a</mi><mi>l</mi></msub><mo>,</mo><mspace width=".6em"></mspace><mi>a</mi><mo>=</mo><mi>log</mi><mfrac><mi class="p">π</mi><mi class="r">ref</mi></mfrac></math>';

/** The step slider and Play, shared by the figures that follow the training. @param {any} data @param {Card} card */
function stepControl(data, card) {
  const last = data.steps.length - 1;
  const index = () => {
    const at = data.steps.indexOf(Number(card.state.get("step", String(data.steps[last]))));
    return at < 0 ? last : at;
  };
  const control = slider({ id: `${card.id}-step`, label: "Step of training", min: 0, max: last, step: 1, value: last, colour: "policy" }, (i) => card.state.set("step", String(data.steps[i])));
  return {
    box: control.box,
    index,
    show: () => control.set(index(), `${data.steps[index()]} of ${data.steps[last]}`),
    play() {
      const button = H("button", { type: "button", "aria-pressed": "false" }, "Play");
      let timer = 0;
      const stop = () => {
        clearInterval(timer);
        timer = 0;
        button.textContent = "Play";
        button.setAttribute("aria-pressed", "false");
      };
      button.addEventListener("click", () => {
        if (timer) return stop();
        if (index() === last) card.state.set("step", String(data.steps[0]));
        button.textContent = "Pause";
        button.setAttribute("aria-pressed", "true");
        timer = setInterval(() => (index() >= last ? stop() : card.state.set("step", String(data.steps[index() + 1]))), matchMedia("(prefers-reduced-motion: reduce)").matches ? 900 : 420);
      });
      return button;
    },
  };
}

/** The options of a loss for the ground or the push. @param {any} data @param {string} loss @param {number} p @returns {LossOptions} */
const lossOptions = (data, loss, p) => ({ ...(loss === data.loss ? data.parameters : {}), beta: data.parameters.beta, p: M.soft.includes(loss) ? p : 1 });

FIGURES.landscape = (data, card) => {
  const unit = data.unit, names = data.grounds, steps = stepControl(data, card);
  let label = "judged", current = -1;
  let [s, ground, tails, mean, quadrant] = /** @type {any[]} */ ([]);
  /** @type {any[]} */ let points = [];
  let X = (/** @type {number} */ v) => v, Y = X, low = -9, high = 5;
  const loss = () => (names.includes(card.state.get("loss", data.loss)) ? card.state.get("loss", data.loss) : names.includes(data.loss) ? data.loss : "");
  const p = () => (label === "certain" ? 1 : data.mean_label);
  const f = (/** @type {number} */ w, /** @type {number} */ l) => M.losses[loss()](w, l, lossOptions(data, loss(), p()));
  const at = (/** @type {number} */ step, /** @type {number} */ i) => [data.frames[step][2 * i] / data.scale, data.frames[step][2 * i + 1] / data.scale];
  const mixed = data.mean_label < 0.995;
  const picker = names.length > (names.includes(data.loss) ? 1 : 0) ? select(`${card.id}-loss`, "Loss that draws the ground", [...(names.includes(data.loss) ? [] : [["", "none"]]), ...names.map((/** @type {string} */ n) => [n, n === data.loss ? `${n}, this run's loss` : n])], loss(), (v) => card.state.set("loss", v)) : null;
  const labels = choice(`${card.id}-label`, "Label of a pair", [["judged", `as judged, ${num(data.mean_label)}`], ["certain", "certain, 1"]], label, (v) => {
    label = v;
    paint();
    update();
  });
  const table = H("div", {}), text = H("div", { class: "quotes", "aria-live": "polite" }), rule = H("div", {});
  card.side.append(...[picker && picker.box, steps.box, H("div", { class: "row play" }, steps.play(), H("small", {}, "The other figures follow.")), mixed && loss() ? labels : null, table, text, rule].filter(Boolean));

  function frame() {
    const all = data.frames.flat().map((/** @type {number} */ v) => v / data.scale);
    const a = Math.min(0, ...all), b = Math.max(0, ...all), span = b - a || 1;
    low = a - 0.12 * span - 0.06 * Math.max(0, b);
    high = Math.max(b + 0.12 * span, 0.28 * -low);
  }
  function build() {
    frame();
    const w = widthOf(card.stage), narrow = w < 560, left = 58, top = 8, side = Math.min(w - left - 8, 600), h = side + top + 42;
    s = drawing(card.stage, w, h, `Loss over the log-ratios of the chosen and the rejected response, with ${data.pairs.length} pairs`, "group");
    X = (v) => left + (side * (v - low)) / (high - low);
    Y = (v) => top + (side * (high - v)) / (high - low);
    const clip = `${card.id}-clip`;
    s.append(S("clipPath", { id: clip }, S("rect", { x: left, y: top, width: side, height: side })));
    ground = S("g", { "clip-path": `url(#${clip})` });
    tails = S("g", { "clip-path": `url(#${clip})`, fill: "none", stroke: V("policy"), "stroke-opacity": 0.17, "stroke-linejoin": "round" });
    s.append(ground, S("path", { d: `M${X(0)} ${top}V${top + side}M${left} ${Y(0)}H${left + side}`, stroke: V("ink"), "stroke-opacity": 0.55 }));
    s.append(S("rect", { x: left, y: Y(0), width: Math.max(0, X(0) - left), height: Math.max(0, top + side - Y(0)), fill: "none", stroke: V("warn"), "stroke-width": 2, "stroke-dasharray": "5 4" }), tails);
    for (const v of M.ticks(low, high, narrow ? 4 : 7)) s.append(T(X(v), top + side + 18, short(v), "s", "middle"), T(left - 7, Y(v) + 4, short(v), "s", "end"));
    s.append(T(left + side, top + side + 37, narrow ? `${data.axis} of the chosen, ${unit}` : `${data.axis} of the chosen response, ${unit}`, "", "end", { style: "fill:var(--chosen)" }));
    s.append(T(0, 0, narrow ? `${data.axis} of the rejected, ${unit}` : `${data.axis} of the rejected response, ${unit}`, "", "end", { style: "fill:var(--rejected)", transform: `translate(11 ${top}) rotate(-90)` }));
    s.append(T(left + side - 9, top + side - 12, narrow ? "as wanted" : "chosen up, rejected down", "s on", "end"), T(left + 10, top + 20, narrow ? "wrong" : "chosen down, rejected up", "s on"));
    quadrant = T(left + 10, top + side - 12, "", "b halo", "start", { style: "fill:var(--warn)" });
    s.append(quadrant);
    const marks = S("g", { role: "listbox", "aria-label": `${data.pairs.length} pairs` });
    s.append(marks);
    points = data.pairs.map(() => {
      const mark = S("path", { stroke: V("card"), "stroke-width": 1.2, fill: V("policy") });
      const g = S("g", { class: "pt mv", role: "option" }, S("circle", { r: 12, class: "hit" }), S("circle", { r: 10, fill: "none", stroke: V("focus"), "stroke-width": 2.5, class: "ring", opacity: 0 }), mark);
      marks.append(g);
      return { g, mark };
    });
    mean = S("path", { d: "M-9 0H9M0 -9V9", stroke: V("ink"), "stroke-width": 2.5, class: "mv", "pointer-events": "none" });
    s.append(mean);
    rove(points.map((q) => q.g), (i) => {
      current = i;
      update();
    });
    paint();
    update();
  }
  function paint() {
    ground.replaceChildren(S("rect", { x: X(low), y: Y(high), width: X(high) - X(low), height: Y(low) - Y(high), fill: V("card") }));
    if (!loss()) {
      rule.replaceChildren(H("p", { class: "note" }, data.no_ground));
      return;
    }
    const n = 56, place = (/** @type {number} */ i) => low + ((high - low) * i) / n;
    const grid = Array.from({ length: n + 1 }, (_, j) => Array.from({ length: n + 1 }, (_, i) => f(place(i), place(j))));
    const all = grid.flat(), least = Math.min(...all), most = Math.max(...all), k = 9;
    const valley = ["ipo", "dpop", "sppo", "cal_dpo"].includes(loss()) || (["sigmoid", "sigmoid_norm"].includes(loss()) && p() < 1);
    const levels = Array.from({ length: k }, (_, i) => least + (most - least) * (valley ? ((i + 1) / (k + 1)) ** 2 : (i + 1) / (k + 1)));
    levels.forEach((level, i) => {
      const mix = `color-mix(in oklab,var(--slope) ${5 + 6.2 * (i + 1)}%,var(--card))`;
      ground.append(S("path", { d: M.region(grid, level, (i) => X(place(i)), (j) => Y(place(j))), style: `fill:${mix};stroke:${mix}`, "stroke-width": 1 }));
    });
    // labels along the anti-diagonal, where it meets the contours at right angles
    const narrow = X(high) - X(low) < 420, apart = clamp(Math.ceil(-Math.log10((most - least) / (k + 1) || 1)), 0, 6), digits = Math.max(apart, most < 3 ? 2 : most < 30 ? 1 : 0);
    levels.forEach((level, i) => {
      for (let t = narrow ? 0.17 : 0.09, last = -9; t < 0.93; t += 0.004) {
        const a = place(n * t), d = (high - low) * 0.004, b = f(a, high - (a - low)), c = f(a + d, high - (a + d - low));
        if ((b - level) * (c - level) <= 0 && Math.abs(t - last) > 0.075 && !(narrow && i % 2)) {
          last = t;
          const y = Y(high - (a - low)) + 4, near = [...ground.querySelectorAll("text")].some((e) => Math.abs(+e.getAttribute("y") - y) < 16);
          if (!near) ground.append(T(X(a), y, num(level, digits), "s on", "middle"));
          break;
        }
      }
    });
    const best = loss() === "ipo" ? (2 * p() - 1) / 2 / data.parameters.beta : ["sigmoid", "sigmoid_norm"].includes(loss()) && p() < 1 ? Math.log(p() / (1 - p())) / data.parameters.beta : NaN;
    if (best < high - low) {
      ground.append(S("path", { d: `M${X(low)} ${Y(low - best)}L${X(high)} ${Y(high - best)}`, stroke: V("optimum"), "stroke-width": 2, "stroke-dasharray": "7 4" }));
      const room = 0.02 * (high - low);
      ground.append(T(0, -7, "lowest loss", "s on", "end", { style: "fill:var(--optimum)", transform: `translate(${X(high - room)} ${Y(high - room - best)}) rotate(-45)` }));
    }
    const note = `beta ${short(data.parameters.beta)}; p = ${num(lossOptions(data, loss(), p()).p)}, ${!M.soft.includes(loss()) ? "this loss takes certain labels only" : p() < 1 ? "the mean label of these pairs" : "a certain label"}.` + (loss() === data.loss ? "" : ` The points are those of this run, trained with ${data.loss}.`);
    rule.replaceChildren(formula((LOSS_FORMULAS[loss()] || "") + MARGIN_FORMULA, note));
  }
  let painted = "";
  function update() {
    if (picker && picker.list.value !== loss()) picker.list.value = loss();
    if (painted !== loss()) {
      painted = loss();
      if (s) paint();
    }
    const step = steps.index(), facts = data.hist[step];
    steps.show();
    points.forEach(({ g, mark }, i) => {
      const [a, b] = at(step, i), both = a < 0 && b < 0;
      g.style.transform = `translate(${X(a)}px,${Y(b)}px)`;
      mark.setAttribute("d", both ? SQUARE : DISC);
      mark.setAttribute("fill", V(both ? "warn" : "policy"));
      g.setAttribute("aria-label", `pair ${i + 1}: chosen ${sgn(a, data.digits)}, rejected ${sgn(b, data.digits)} ${unit}${both ? ", both less likely" : ""}`);
    });
    mean.style.transform = `translate(${X(facts.lift[0])}px,${Y(facts.lift[1])}px)`;
    tails.replaceChildren(...points.map((_, i) => S("path", { ...(i === current ? { "stroke-width": 2.5, "stroke-opacity": 1 } : {}), d: "M" + Array.from({ length: step + 1 }, (_, k) => at(k, i)).map(([a, b]) => `${X(a).toFixed(1)} ${Y(b).toFixed(1)}`).join("L") })));
    const many = (/** @type {number} */ share) => (data.scored < 20 ? `${Math.round(share * data.scored)} of ${data.scored}` : pct(share, 1));
    quadrant.textContent = `both less likely: ${data.scored < 20 ? Math.round(facts.displaced * data.scored) : pct(facts.displaced)}`;
    card.say(landscapeSentence(data, step));
    table.replaceChildren(numbers([["right order", many(facts.accuracy)], ["both less likely", many(facts.displaced)], ["mean of chosen", `${sgn(facts.lift[0], data.digits)} ${unit}`], ["mean of rejected", `${sgn(facts.lift[1], data.digits)} ${unit}`]]));
    if (current < 0) text.replaceChildren(H("p", { class: "note" }, "Point at a pair, or walk with the arrow keys, to read it."));
    else {
      const [prompt, w, l, judged] = data.pairs[current], [a, b] = at(step, current);
      text.replaceChildren(H("p", { class: "note" }, tail(data.texts[prompt], 300), judged < 1 ? ` Preferred with probability ${pct(judged)}.` : ""), quote("w", cut(data.texts[w], 400), `${sgn(a, data.digits)} ${unit}`), quote("l", cut(data.texts[l], 400), `${sgn(b, data.digits)} ${unit}`));
    }
  }
  return {
    build, update,
    csv: () => csv([["step", "pair", "label", "chosen", "rejected"], ...data.steps.flatMap((/** @type {number} */ step, /** @type {number} */ k) => data.pairs.map((/** @type {any} */ q, /** @type {number} */ i) => [step, i, q[3], ...at(k, i)]))]),
  };
};

/** @param {any} data @param {number} step */
function landscapeSentence(data, step) {
  const f = data.hist[step], many = data.scored >= 20, share = (/** @type {number} */ x) => (many ? pct(x) : `${Math.round(x * data.scored)} of ${data.scored}`);
  if (data.steps[step] === 0 && data.axis === "log π since step 0") return "Before the first step, every pair is at the cross: the points show the change since then.";
  if (data.steps[step] === 0 && f.lift.every((/** @type {number} */ x) => x === 0)) return "Before the first step, every pair is at the cross: policy and reference are the same, and so is the loss of all pairs.";
  return `By step ${data.steps[step]}, ${share(f.accuracy)} of the ${data.split} pairs are in the right order${data.unit === "nats" ? "" : " per token"}, and in ${share(f.displaced)} both responses became less likely: on average ${sgn(f.lift[0], data.digits)} (chosen) and ${sgn(f.lift[1], data.digits)} (rejected) ${data.unit}.`;
}
