// @ts-check
// Draw all figures of a page, again whenever its width changes, and make its buttons work.
"use strict";

function start() {
  const state = new State();
  /** @type {Record<string, any>} */
  const data = {};
  for (const node of document.querySelectorAll('script[type="application/json"][data-figures]')) Object.assign(data, JSON.parse(node.textContent || "{}"));
  /** @type {{drawn: Drawn, card: HTMLElement}[]} */
  const all = [];
  for (const card of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll("[data-figure]"))) {
    const draw = FIGURES[card.dataset.figure || ""], own = data[card.dataset.key || card.dataset.figure || ""];
    if (!draw || !own) continue;
    const find = (/** @type {string} */ name) => /** @type {HTMLElement} */ (card.querySelector(`.${name}`));
    const drawn = draw(own, {
      id: card.id, state, stage: find("stage"), side: find("side"), below: find("below"), key: find("key"),
      say: (text) => {
        const p = find("say");
        if (p.textContent !== text) p.textContent = text;
      },
    });
    all.push({ drawn, card });
    for (const button of /** @type {NodeListOf<HTMLButtonElement>} */ (card.querySelectorAll("[data-download]"))) {
      button.addEventListener("click", () =>
        button.dataset.download === "csv"
          ? download(`${card.id}.csv`, drawn.csv(), "text/csv")
          : download(`${card.id}.json`, JSON.stringify(own, null, 1), "application/json"));
    }
  }
  const root = document.documentElement;
  let width = 0;
  const rebuild = () => {
    if (root.clientWidth === width) return;
    width = root.clientWidth;
    for (const { drawn } of all) drawn.build();
  };
  rebuild();
  addEventListener("resize", rebuild);
  state.listeners.push(() => all.forEach(({ drawn }) => drawn.update()));
  for (const event of ["input", "click", "keydown"]) addEventListener(event, () => root.classList.add("live"), { once: true, capture: true });
  for (const button of /** @type {NodeListOf<HTMLButtonElement>} */ (document.querySelectorAll("[data-copy]"))) {
    button.addEventListener("click", async () => {
      const text = button.dataset.copy || "";
      try {
        await navigator.clipboard.writeText(text);
      } catch {
        const area = H("textarea", {}, text);
        document.body.append(area);
        area.select();
        document.execCommand("copy");
        area.remove();
        button.focus();
      }
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = "Copy"), 1500);
    });
  }
  const folded = [...document.querySelectorAll("details")];
  addEventListener("beforeprint", () => folded.forEach((d) => (d.open = true)));
  root.dataset.drawn = "yes";
}
start();
