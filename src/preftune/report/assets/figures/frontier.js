// @ts-check
// Reward against KL: policies, best of n, and the closed-form optimum.
"use strict";

const KINDS = /** @type {Record<string, string>} */ ({ reference: "reference", policy: "policy", ppo: "policy", best: "ink2", optimum: "optimum" });
const SURE = 6; // effective samples per prompt below which the curve is dashed

FIGURES.frontier = (data, card) => {
  const P = data.points, C = data.curve, reward = data.reward_name, start = P.find((/** @type {any} */ p) => p.kind === "reference");
  let current = data.selected;
  const about = H("div", { class: "quotes", "aria-live": "polite" });
  card.side.append(about);
  const has = (/** @type {string} */ kind) => P.some((/** @type {any} */ p) => p.kind === kind);
  card.key.append(...[
    C.length && swatch([S("path", { d: "M0 6H18", stroke: V("optimum"), "stroke-width": 2.5 })], "closed-form optimum (dashed: too few samples to tell)"),
    has("policy") && swatch([S("path", { d: diamond(9, 6, 5.5), fill: V("policy") })], data.policy_name + ", with 95 % intervals"),
    has("ppo") && swatch([S("path", { d: "M9 1L15 11H3Z", fill: V("policy") })], "PPO"),
    has("best") && swatch([S("path", { d: "M0 6H18", stroke: V("ink2"), "stroke-width": 1.5, "stroke-dasharray": "2 3" }), S("circle", { cx: 9, cy: 6, r: 4, fill: V("ink2") })], "best of n"),
    start && swatch([S("circle", { cx: 9, cy: 6, r: 4.5, fill: V("card"), stroke: V("reference"), "stroke-width": 2.5 })], "reference"),
  ].filter(Boolean));
  function build() {
    const w = widthOf(card.stage, 300), narrow = w < 560, h = narrow ? 370 : 480;
    const s = drawing(card.stage, w, h, `${reward} against KL from the reference`, "group");
    const xs = [0, ...P.flatMap((/** @type {any} */ p) => [p.kl - 2 * p.kl_se, p.kl + 2 * p.kl_se]), ...C.map((/** @type {any} */ c) => c[0])], ys = [...P.flatMap((/** @type {any} */ p) => [p.reward - 2 * p.reward_se, p.reward + 2 * p.reward_se]), ...C.map((/** @type {any} */ c) => c[1])];
    const padX = 0.03 * (Math.max(...xs) - Math.min(...xs)) || 0.1, padY = 0.06 * (Math.max(...ys) - Math.min(...ys)) || 0.1;
    const x = /** @type {[number, number]} */ ([Math.min(...xs) - padX, Math.max(...xs) + padX]), y = /** @type {[number, number]} */ ([Math.min(...ys) - padY, Math.max(...ys) + padY]);
    const top = 28, bottom = h - 46;
    const { X, Y } = axes(s, { x, y, left: 44, right: w - 8, top, bottom, xTicks: M.ticks(x[0], x[1], narrow ? 4 : 7), yTicks: M.ticks(y[0], y[1], 6), xName: narrow ? "KL, nats per response" : "KL(policy || reference), nats per response", yName: reward });
    const path = (/** @type {any[]} */ a) => "M" + a.map((c) => `${X(c[0]).toFixed(1)} ${Y(c[1]).toFixed(1)}`).join("L");
    if (C.length) {
      const sure = C.filter((/** @type {any} */ c) => c[3] >= SURE), rest = C.slice(Math.max(0, sure.length - 1));
      s.append(S("path", { d: `${path(C)}V${top}H${X(C[0][0])}Z`, fill: V("optimum"), "fill-opacity": 0.07 }));
      if (sure.length) s.append(S("path", { d: path(sure), fill: "none", stroke: V("optimum"), "stroke-width": 2.5 }));
      s.append(S("path", { d: path(rest), fill: "none", stroke: V("optimum"), "stroke-width": 2.5, "stroke-dasharray": "6 5" }));
      if (!narrow) s.append(T(X(x[0]) + 12, top + 18, `out of reach of any policy, estimated from ${data.samples} samples`, "s halo", "start", { style: "fill:var(--optimum)" }));
    }
    const best = P.filter((/** @type {any} */ p) => p.kind === "best");
    if (best.length && start) s.append(S("path", { d: path([[0, start.reward], ...best.map((/** @type {any} */ p) => [p.kl, p.reward])]), fill: "none", stroke: V("ink2"), "stroke-width": 1.5, "stroke-dasharray": "2 4" }));
    for (const line of data.lines || []) {
      if (line.length > 1) s.append(S("path", { d: path(line.map((/** @type {number} */ i) => [P[i].kl, P[i].reward])), fill: "none", stroke: V("policy"), "stroke-width": 1.2, "stroke-opacity": 0.6 }));
    }
    const gap = S("g"), names = S("g", { "aria-hidden": "true", "pointer-events": "none" }), box = S("g", { role: "listbox", "aria-label": "Policies on the plane" });
    s.append(gap, names, box);
    const order = P.map((/** @type {any} */ _, /** @type {number} */ i) => i).sort((/** @type {number} */ a, /** @type {number} */ b) => +(P[a].kind === "policy") - +(P[b].kind === "policy"));
    /** @type {{x: number, y: number, w: number}[]} */ const taken = [];
    /** Write a name where no other name is. @param {string} text @param {number} px @param {number} py @param {string} c @param {Record<string, any>} o */
    const name = (text, px, py, c, o = {}) => {
      const wide = widths([text])[0] + 4;
      const right = px + 11 + wide < w - 6;
      for (const [dx, dy] of right ? [[11, 17], [11, -9], [11, 33], [11, -25]] : [[-11, 17], [-11, -9], [-11, 33], [-11, -25]]) {
        const at = { x: dx > 0 ? px + dx : px + dx - wide, y: py + dy, w: wide };
        if (at.y > bottom - 2 || at.y < top + 8 || taken.some((t) => Math.abs(t.y - at.y) < 14 && at.x < t.x + t.w && t.x < at.x + at.w)) continue;
        taken.push(at);
        names.append(T(px + dx, at.y, text, c, dx > 0 ? "start" : "end", o));
        return;
      }
    };
    for (const p of P) taken.push({ x: X(p.kl) - 6, y: Y(p.reward) + 5, w: 12 });
    /** @type {any[]} */ const marks = [];
    for (const i of order) {
      const p = P[i], px = X(p.kl), py = Y(p.reward), c = V(KINDS[p.kind]), ex = 1.96 * p.kl_se, ey = 1.96 * p.reward_se;
      const g = S("g", { class: "pt", role: "option", "aria-label": `${p.name}: ${reward} ${num(p.reward, 3)}, KL ${num(p.kl)}` });
      if (ey) g.append(S("path", { d: `M${px} ${Y(p.reward - ey)}V${Y(p.reward + ey)}${ex ? `M${X(p.kl - ex)} ${py}H${X(p.kl + ex)}` : ""}`, stroke: c, "stroke-width": 1.75 }));
      const shape = { policy: () => S("path", { d: diamond(px, py, 7.5), fill: c, stroke: V("card"), "stroke-width": 1.5 }), ppo: () => S("path", { d: `M${px} ${py - 7}L${px + 7} ${py + 5}H${px - 7}Z`, fill: c, stroke: V("card"), "stroke-width": 1.5 }), reference: () => S("circle", { cx: px, cy: py, r: 6, fill: V("card"), stroke: c, "stroke-width": 2.75 }), best: () => S("circle", { cx: px, cy: py, r: 4.5, fill: c }), optimum: () => S("path", { d: `M${px - 4} ${py - 4}h8v8h-8Z`, fill: V("card"), stroke: c, "stroke-width": 2.25 }) }[/** @type {"policy"} */ (p.kind)];
      g.append(S("circle", { cx: px, cy: py, r: 15, class: "hit" }), S("circle", { cx: px, cy: py, r: 11, fill: "none", stroke: V("focus"), "stroke-width": 2.5, class: "ring", opacity: 0 }), shape());
      box.append(g);
      marks.push(g);
    }
    for (const i of [...order].reverse()) {
      const p = P[i];
      const text = p.kind === "best" ? `n ${p.n}` : p.kind === "optimum" ? `β ${p.beta}` : narrow && p.beta ? `β ${p.beta}` : cut(p.name, narrow ? 16 : 34);
      const strong = p.kind === "policy" || p.kind === "ppo" ? "i b halo" : "s halo";
      name(text, X(p.kl), Y(p.reward), strong, p.kind === "optimum" ? { style: "fill:var(--optimum)" } : {});
    }
    const pick = rove(marks, (k) => {
      current = order[k];
      const p = P[current];
      gap.replaceChildren(...(p.best !== undefined && p.best !== null ? [S("path", { d: `M${X(p.kl)} ${Y(p.reward)}V${Y(p.best)}`, stroke: V("optimum"), "stroke-width": 1.75, "stroke-dasharray": "3 3" })] : []));
      update();
    });
    pick(order.indexOf(current));
  }
  function update() {
    const p = P[current], gain = p.best !== undefined && p.best !== null && start ? (p.reward - start.reward) / (p.best - start.reward) : NaN;
    const why = /** @type {Record<string, string>} */ ({ optimum: `Drawn from the ${data.samples} samples of the reference, with the weights of the closed form.`, best: `The best of the first ${p.n} samples of the reference.` })[p.kind] || "The first sample for each of these prompts.";
    about.replaceChildren(
      H("p", { class: "name" }, p.name),
      H("p", { class: "note" }, `${reward} ${num(p.reward, 3)}${p.reward_se ? ` ± ${(1.96 * p.reward_se).toFixed(3)}` : ""}, KL ${num(p.kl)}${p.kl_se ? ` ± ${(1.96 * p.kl_se).toFixed(2)}` : ""} nats.${Number.isFinite(gain) ? ` The best policy at this KL has ${num(p.best, 3)}: ${pct(gain)} of the possible gain.` : ""}`),
      ...(p.samples || []).map((/** @type {any} */ x) => quote("", cut(x.text, 400), `${reward} ${sgn(x.reward)}`, cut(x.prompt, 200))),
      ...((p.samples || []).length ? [H("p", { class: "note" }, why)] : []),
    );
  }
  return {
    build, update: () => {},
    csv: () => csv([["name", "kind", "kl", "reward", "kl_se", "reward_se"], ...P.map((/** @type {any} */ p) => [p.name, p.kind, p.kl, p.reward, p.kl_se, p.reward_se]), ...C.map((/** @type {any} */ c) => [`optimum at beta ${c[2]}`, "curve", c[0], c[1], 0, 0])]),
  };
};
