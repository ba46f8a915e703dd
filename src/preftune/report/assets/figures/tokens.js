// @ts-check
// The rewards of single tokens of a chosen and a rejected response, side by side.
"use strict";

FIGURES.tokens = (data, card) => {
  const rows = data.pairs, sizes = rows.flatMap((/** @type {any} */ r) => [...r.chosen, ...r.rejected].map((t) => Math.abs(t[1]))).sort((/** @type {number} */ a, /** @type {number} */ b) => a - b);
  const strong = sizes[Math.floor(0.98 * (sizes.length - 1))] || 1, bold = sizes[Math.floor(0.9 * (sizes.length - 1))] || 1;
  let current = 0;
  const reading = H("p", { class: "note", "aria-live": "polite" }, "Walk the tokens with the arrow keys."), sums = H("div", {});
  const picker = select(`${card.id}-pair`, "Pair", rows.map((/** @type {any} */ r, /** @type {number} */ i) => [String(i), `margin ${sgn(r.margin, 3)}: ${tail(r.prompt, 60)}`]), "0", (i) => {
    current = +i;
    update();
  });
  card.side.append(picker.box, sums, reading);
  card.key.append(H("span", {}, H("span", { class: "tok up", style: "--a:60%" }, "blue"), " raises the reward, "), H("span", {}, H("span", { class: "tok down", style: "--a:60%" }, "orange"), " lowers it; strongest colour from ", num(strong, 3)));
  const total = (/** @type {any[]} */ side) => side.reduce((sum, t) => sum + t[1], 0);
  function side(/** @type {string} */ name, /** @type {any[]} */ tokens, /** @type {string} */ kind) {
    const spans = tokens.map(([text, reward]) => H("span", { class: `tok ${reward > 0 ? "up" : "down"}${Math.abs(reward) >= bold ? " strong" : ""}`, style: `--a:${Math.round(75 * Math.min(1, Math.abs(reward) / strong))}%`, role: "option" }, printable(text)));
    const box = H("div", { class: "tokens", role: "listbox", "aria-label": `Tokens of the ${name} response`, dir: "auto" }, ...spans);
    let sum = 0;
    const before = tokens.map((t) => (sum += t[1]));
    rove(spans, (i) => (reading.textContent = `${name}, token ${i + 1} of ${tokens.length}: ${JSON.stringify(tokens[i][0])}, reward ${sgn(tokens[i][1], 4)}, sum so far ${sgn(before[i], 4)}`));
    return H("div", {}, H("h3", { class: kind }, `${name}: ${sgn(total(tokens), 3)} in ${tokens.length} tokens`), box);
  }
  function update() {
    const r = rows[current];
    card.stage.replaceChildren(H("p", { class: "note prompt" }, r.prompt), H("div", { class: "wide2" }, side("chosen", r.chosen, "w"), side("rejected", r.rejected, "l")));
    sums.replaceChildren(numbers([["chosen, sum", sgn(total(r.chosen), 4)], ["rejected, sum", sgn(total(r.rejected), 4)], ["margin", sgn(total(r.chosen) - total(r.rejected), 4)]]));
    card.say(tokensSentence(r));
  }
  return { build: update, update: () => {}, csv: () => csv([["pair", "side", "token", "text", "reward"], ...rows.flatMap((/** @type {any} */ r, /** @type {number} */ i) => ["chosen", "rejected"].flatMap((name) => r[name].map((/** @type {any} */ t, /** @type {number} */ k) => [i, name, k, t[0], t[1]])))]) };
};

/** Control characters as their escapes. @param {string} text */
const printable = (text) => text.replace(/[\u0000-\u0009\u000b-\u001f\u007f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`).replace(/\n/g, "\u21b5\n");

/** @param {any} r */
function tokensSentence(r) {
  const total = (/** @type {any[]} */ side) => side.reduce((sum, t) => sum + t[1], 0), w = total(r.chosen), l = total(r.rejected);
  return `The tokens of the chosen response add up to ${sgn(w, 3) || "0.000"}, those of the rejected one to ${sgn(l, 3) || "0.000"}: a margin of ${sgn(w - l, 3) || "0.000"}, so the policy ${w > l ? "agrees with" : w < l ? "contradicts" : "does not know"} the label.`;
}
