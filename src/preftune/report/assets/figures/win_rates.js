// @ts-check
// Win rates with their intervals, one row for each policy and temperature.
"use strict";

FIGURES.win_rates = (data, card) => {
  const rows = data.rows;
  card.key.append(
    swatch([S("path", { d: "M0 6H18", stroke: V("policy"), "stroke-width": 1.75 }), S("path", { d: diamond(9, 6, 5.5), fill: V("policy") })], "win rate, 95 % interval"),
    swatch([S("path", { d: "M0 6H18", stroke: V("ink2"), "stroke-width": 1.5 }), S("path", { d: "M5 2h8v8h-8Z", fill: V("card"), stroke: V("ink2"), "stroke-width": 2 })], "at equal lengths"),
  );
  function build() {
    const w = widthOf(card.stage, 280), narrow = w < 620, names = rows.map((/** @type {any} */ r) => cut(`${r.policy}, T ${short(r.temperature)}`, narrow ? 34 : 46));
    const left = narrow ? 8 : Math.min(0.45 * w, Math.max(...widths(names)) + 16), rowHeight = narrow ? 58 : 40, top = 12, h = top + rows.length * rowHeight + 44, bottom = h - 40, right = w - 52;
    const s = drawing(card.stage, w, h, `Win rates of ${rows.length} policies and temperatures`);
    const X = (/** @type {number} */ p) => left + (right - left) * p;
    for (const p of [0, 0.25, 0.5, 0.75, 1]) s.append(S("path", { d: `M${X(p)} ${top}V${bottom}`, class: p === 0.5 ? "ax" : "gr", ...(p === 0.5 ? { style: "stroke:var(--ink2)" } : {}) }), T(X(p), bottom + 17, p ? pct(p) : "0", "s", narrow && !p ? "start" : "middle"));
    s.append(T(right, bottom + 35, "win rate", "", "end"));
    rows.forEach((/** @type {any} */ r, /** @type {number} */ i) => {
      const y = top + i * rowHeight + rowHeight / 2 + (narrow ? 8 : 0);
      s.append(narrow ? T(left, y - 15, names[i], "i") : T(0, y + 4, names[i], "i"));
      s.append(S("path", { d: `M${X(r.low)} ${y}H${X(r.high)}`, stroke: V("policy"), "stroke-width": 2 }), S("path", { d: diamond(X(r.rate), y, 7), fill: V("policy"), stroke: V("card"), "stroke-width": 1.5 }));
      s.append(S("path", { d: `M${X(r.adjusted_low)} ${y + 11}H${X(r.adjusted_high)}`, stroke: V("ink2"), "stroke-width": 1.5 }), S("path", { d: `M${X(r.adjusted) - 4} ${y + 7}h8v8h-8Z`, fill: V("card"), stroke: V("ink2"), "stroke-width": 2 }));
      s.append(T(w, y + 4, pct(r.rate), "i b", "end"));
    });
  }
  return { build, update: () => {}, csv: () => csv([["policy", "temperature", "matches", "rate", "low", "high", "adjusted", "adjusted_low", "adjusted_high"], ...rows.map((/** @type {any} */ r) => [r.policy, r.temperature, r.matches, r.rate, r.low, r.high, r.adjusted, r.adjusted_low, r.adjusted_high])]) };
};
