// @ts-check
// Browse the run's pairs: sort, filter, mark, and save the marked ones as a list for `data.drop`.
"use strict";

const PAGE = 50;

/** The end of a file's name, and the line. @param {string} origin */
const shortOrigin = (origin) => {
  const name = origin.split("/").at(-1) || "";
  return name.length > 16 ? `\u2026${name.slice(-15)}` : name;
};

FIGURES.pairs = (data, card) => {
  const rows = data.rows, marked = new Set(), columns = /** @type {[string, string, boolean][]} */ ([["margin", "Margin", true], ["flip", "P(flipped)", true], ["longer", "Longer by", true], ["origin", "Row", false]]);
  if (data.sources) columns.push(["source", "Source", false]);
  let by = "margin", down = false, page = 0, text = "", only = "all";
  const filter = H("input", { type: "search", id: `${card.id}-filter`, placeholder: "text in prompt or responses" });
  filter.addEventListener("input", () => {
    text = filter.value.toLowerCase();
    page = 0;
    update();
  });
  const which = select(`${card.id}-only`, "Show", [["all", "all pairs"], ["wrong", "pairs in the wrong order"], ["marked", "marked pairs"], ...(data.sources || []).map((/** @type {string} */ s) => [`source:${s}`, `source ${s}`])], "all", (v) => {
    only = v;
    page = 0;
    update();
  });
  const save = H("button", { type: "button" }, "Save drop list");
  save.addEventListener("click", () => download("drop.txt", [...marked].map((i) => rows[/** @type {number} */ (i)].origin).join("\n") + "\n", "text/plain"));
  const count = H("p", { class: "note", "aria-live": "polite" }), reader = H("div", { class: "quotes" });
  card.side.append(H("div", { class: "ctl noprint" }, H("label", { for: filter.id }, "Filter"), filter), which.box, H("div", { class: "row noprint" }, save, count), reader);
  const table = H("table", { class: "num rows", "aria-label": "Pairs" }), pager = H("div", { class: "row noprint" });
  card.stage.append(H("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table of pairs" }, table), pager);
  const heads = columns.map(([key, name]) => {
    const button = H("button", { type: "button" }, name), th = H("th", { scope: "col" }, button);
    button.addEventListener("click", () => {
      down = by === key ? !down : false;
      by = key;
      page = 0;
      update();
    });
    return { key, th };
  });
  const body = H("tbody", {});
  table.append(H("thead", {}, H("tr", {}, H("th", { scope: "col" }, "Mark"), H("th", { scope: "col" }, "Prompt"), ...heads.map((h) => h.th))), body);
  function shown() {
    const keep = rows.map((/** @type {any} */ _, /** @type {number} */ i) => i).filter((/** @type {number} */ i) => {
      const r = rows[i];
      if (only === "wrong" && r.margin >= 0) return false;
      if (only === "marked" && !marked.has(i)) return false;
      if (only.startsWith("source:") && r.source !== only.slice(7)) return false;
      return !text || [r.prompt, r.chosen, r.rejected].some((t) => data.texts[t].toLowerCase().includes(text));
    });
    const value = (/** @type {number} */ i) => rows[i][by];
    keep.sort((/** @type {number} */ a, /** @type {number} */ b) => {
      const x = value(a), y = value(b), order = typeof x === "string" ? x.localeCompare(y, undefined, { numeric: true }) : x - y;
      return down ? -order : order;
    });
    return keep;
  }
  function read(/** @type {number} */ i) {
    const r = rows[i];
    reader.replaceChildren(H("p", { class: "note" }, `${r.origin}. ${tail(data.texts[r.prompt], 600)}`), quote("w", data.texts[r.chosen], `chosen, ${r.tokens[0]} tokens`), quote("l", data.texts[r.rejected], `rejected, ${r.tokens[1]} tokens`));
  }
  function update() {
    const keep = shown(), pages = Math.max(1, Math.ceil(keep.length / PAGE));
    page = clamp(page, 0, pages - 1);
    for (const { key, th } of heads) th.setAttribute("aria-sort", key === by ? (down ? "descending" : "ascending") : "none");
    const part = keep.slice(page * PAGE, (page + 1) * PAGE);
    /** @type {any[]} */ const trs = part.map((/** @type {number} */ i) => {
      const r = rows[i], box = H("input", { type: "checkbox", "aria-label": `Mark ${r.origin}` });
      box.checked = marked.has(i);
      box.addEventListener("change", () => {
        if (box.checked) marked.add(i);
        else marked.delete(i);
        tally();
      });
      box.addEventListener("focus", () => read(i));
      box.addEventListener("keydown", (/** @type {KeyboardEvent} */ e) => {
        const to = e.key === "ArrowDown" ? 1 : e.key === "ArrowUp" ? -1 : 0;
        const next = to && trs[part.indexOf(i) + to];
        if (!next) return;
        e.preventDefault();
        next.querySelector("input").focus();
      });
      const tr = H("tr", { class: r.margin < 0 ? "wrong" : "" }, H("td", {}, box), H("td", { class: "text", dir: "auto" }, tail(data.texts[r.prompt], 70)), H("td", {}, sgn(r.margin, 3) || "0"), H("td", {}, pct(r.flip)), H("td", {}, sgn(r.longer, 0) || "0"), H("td", { title: r.origin }, shortOrigin(r.origin)), data.sources ? H("td", {}, r.source) : null);
      tr.addEventListener("click", () => read(i));
      return tr;
    });
    body.replaceChildren(...trs);
    const turn = (/** @type {string} */ name, /** @type {number} */ to) => {
      const b = H("button", { type: "button" }, name);
      b.disabled = to < 0 || to >= pages;
      b.addEventListener("click", () => {
        page = to;
        update();
      });
      return b;
    };
    pager.replaceChildren(...(pages > 1 ? [turn("Previous", page - 1), H("span", { class: "note" }, `${page * PAGE + 1} to ${page * PAGE + part.length} of ${keep.length}`), turn("Next", page + 1)] : [H("span", { class: "note" }, `${keep.length} pairs`)]));
    tally();
  }
  function tally() {
    save.disabled = !marked.size;
    count.textContent = `${marked.size} marked`;
  }
  let built = false;
  return {
    build: () => {
      if (!built) {
        update();
        if (rows.length) read(shown()[0]);
      }
      built = true;
    },
    update: () => {},
    csv: () => csv([["row", "margin", "p_flipped", "tokens_chosen", "tokens_rejected", "source", "prompt", "chosen", "rejected"], ...rows.map((/** @type {any} */ r) => [r.origin, r.margin, r.flip, ...r.tokens, r.source || "", data.texts[r.prompt], data.texts[r.chosen], data.texts[r.rejected]])]),
  };
};
