// @ts-check
// The pipeline before and after: RLHF with its reward model and PPO, and DPO beside it.
"use strict";

FIGURES.pipeline = (data, card) => {
  const measures = /** @type {Record<string, [string, (s: any) => number, (x: number) => string]>} */ ({
    seconds: ["Seconds", (s) => s.seconds, (x) => `${x >= 10 ? x.toFixed(0) : x.toFixed(1)} s`],
    memory: ["Memory of the models", (s) => s.models.reduce((/** @type {number} */ a, /** @type {any} */ m) => a + m.bytes, 0), (x) => `${(x / 1e6).toFixed(1)} MB`],
    tokens: ["Sampled tokens", (s) => s.generated_tokens, (x) => (x ? Math.round(x).toLocaleString("en") : "none")],
    knobs: ["Settings to choose", (s) => s.knobs.length, (x) => String(x)],
  });
  let by = "seconds", current = -1;
  const lanes = [{ name: "RLHF: reward model and PPO", stages: data.rlhf }, { name: "DPO", stages: data.dpo }], flat = lanes.flatMap((l) => l.stages);
  const about = H("div", { class: "quotes", "aria-live": "polite" }), table = H("div", {});
  card.side.append(choice(`${card.id}-by`, "Width of a box", Object.entries(measures).map(([k, v]) => [k, k]), by, (v) => {
    by = v;
    build();
  }), table, about);
  card.key.append(swatch([S("rect", { x: 3, y: 1, width: 12, height: 10, fill: V("policy") })], "model that is trained"), swatch([S("rect", { x: 3, y: 1, width: 12, height: 10, fill: V("card"), stroke: V("reference"), "stroke-width": 2 })], "model that is only run"));
  function build() {
    const w = widthOf(card.stage, 300), narrow = w < 560, [, value, text] = measures[by];
    const total = Math.max(...lanes.map((l) => l.stages.reduce((/** @type {number} */ a, /** @type {any} */ s) => a + value(s), 0))) || 1, room = 8, boxHeight = 118, laneHeight = boxHeight + 64, h = lanes.length * laneHeight + 8;
    const s = drawing(card.stage, w, h, "The stages of RLHF and of DPO", "group"), box = S("g", { role: "listbox", "aria-label": "Stages" });
    const texts = S("g", { "pointer-events": "none" });
    s.append(box, texts);
    /** @type {any[]} */ const marks = [];
    lanes.forEach((lane, k) => {
      const y = k * laneHeight + 26, sum = lane.stages.reduce((/** @type {number} */ a, /** @type {any} */ one) => a + value(one), 0), least = narrow ? 50 : 74;
      s.append(T(0, y - 9, lane.name, "b i"), T(w, y - 9, `together ${text(sum)}`, "", "end"));
      const free = w - least * lane.stages.length - room * (lane.stages.length - 1);
      let x = 0;
      lane.stages.forEach((/** @type {any} */ stage) => {
        const wide = least + (free * value(stage)) / total, g = S("g", { class: "pt stage", role: "option", "aria-label": `${stage.name}: ${text(value(stage))}` });
        g.append(S("rect", { x, y, width: wide, height: boxHeight, rx: 6, fill: V("field"), stroke: V("line") }), S("rect", { x: x - 2, y: y - 2, width: wide + 4, height: boxHeight + 4, rx: 8, fill: "none", stroke: V("focus"), "stroke-width": 2.5, class: "ring", opacity: 0 }));
        stage.models.forEach((/** @type {any} */ m, /** @type {number} */ i) => {
          const my = y + 8 + i * 26;
          g.append(S("rect", { x: x + 8, y: my, width: 16, height: 18, rx: 3, fill: m.trained ? V("policy") : V("card"), stroke: m.trained ? V("policy") : V("reference"), "stroke-width": 2 }));
          if (wide > 92) texts.append(T(x + 31, my + 14, cut(m.role, Math.floor((wide - 34) / 7)), "s i"));
        });
        s.append(T(x + 2, y + boxHeight + 17, cut(stage.name, Math.max(6, Math.floor(wide / 7))), "s i"), T(x + 2, y + boxHeight + 32, text(value(stage)), "s"));
        box.append(g);
        marks.push(g);
        x += wide + room;
      });
    });
    const pick = rove(marks, (i) => {
      current = i;
      update();
    });
    if (current >= 0) pick(current);
    update();
  }
  function update() {
    const [, value, text] = measures[by];
    table.replaceChildren(numbers(Object.values(measures).map(([name, f, show]) => [name, ...lanes.map((l) => show(name.startsWith("Memory") ? Math.max(...l.stages.map(f)) : l.stages.reduce((/** @type {number} */ a, /** @type {any} */ s) => a + f(s), 0)))]), ["", "RLHF", "DPO"]));
    if (current < 0) return about.replaceChildren(H("p", { class: "note" }, "Point at a stage, or walk with the arrow keys, to read what it holds and what must be chosen."));
    const stage = flat[current];
    about.replaceChildren(H("p", { class: "name" }, stage.name), H("p", { class: "note" }, `${text(value(stage))}. Models in memory: ${stage.models.map((/** @type {any} */ m) => `${m.role}${m.trained ? " (trained)" : ""}`).join(", ")}. Settings: ${stage.knobs.join(", ") || "none"}.`));
  }
  return {
    build, update: () => {},
    csv: () => csv([["lane", "stage", "seconds", "bytes", "generated_tokens", "models", "settings"], ...lanes.flatMap((l) => l.stages.map((/** @type {any} */ s) => [l.name, s.name, s.seconds, measures.memory[1](s), s.generated_tokens, s.models.map((/** @type {any} */ m) => m.role).join(" "), s.knobs.join(" ")]))]),
  };
};
