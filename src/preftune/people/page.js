"use strict";
// All texts are set with textContent, so a response cannot become HTML.
const $ = (id) => document.getElementById(id);
const KEYS = {
  a: "a", ArrowLeft: "a", b: "b", ArrowRight: "b", t: "tie", ArrowDown: "tie", s: "skip", ArrowUp: "skip",
};
let annotator = sessionStorage.getItem("annotator") || "";
let pair = null;
let shownAt = 0;
let busy = false;
let finished = false;

function element(tag, className, text) {
  const node = document.createElement(tag);
  node.className = className;
  node.textContent = text;
  return node;
}

function showText(text) {
  const box = element("div", "body", "");
  box.dir = "auto";  // right to left for Arabic or Hebrew; isolated from the rest of the page
  // every second part is a fenced block of code
  text.split(/^(```[^\n]*\n[\s\S]*?^```[^\S\n]*$)/m).forEach((part, i) => {
    box.append(i % 2 ? element("code", "", part) : part);
  });
  return box;
}

function showTurns(box, turns) {
  for (const turn of turns) {
    const node = element("div", "turn", "");
    node.classList.add(turn.role === "user" ? "user" : turn.role ? "other" : "plain");
    if (turn.role) node.append(element("span", "role", turn.role));
    node.append(turn.text ? showText(turn.text) : element("p", "note", "(empty)"));
    box.append(node);
  }
}

function showPair(state) {
  pair = state.pair;
  shownAt = performance.now();
  $("compare").hidden = $("choices").hidden = !pair;
  $("done").hidden = Boolean(pair);
  if (!pair) {
    $("done-text").textContent = `You judged ${state.judged} of the pairs. ` + (state.missing
      ? `${state.missing} pairs still need verdicts of other annotators; finish only if nobody else will judge them.`
      : "Every pair has its verdicts. Finish writes the preference data and ends the command.");
    $("finish").focus();
    return;
  }
  $("prompt").replaceChildren(element("h2", "", "Prompt"));
  showTurns($("prompt"), pair.prompt);
  $("prompt").tabIndex = 0;
  ["a", "b"].forEach((side, i) => {
    const box = $(`text-${side}`);
    const response = pair.responses[i];
    // an assistant's reply needs no label
    const turns = response.turns.length === 1 && response.turns[0].role === "assistant"
      ? [{role: "", text: response.turns[0].text}] : response.turns;
    box.replaceChildren();
    showTurns(box, turns);
    if (!response.ended) box.append(element("p", "note", "cut off at the token limit"));
    box.scrollTop = 0;
  });
  $("prompt").scrollTop = $("prompt").scrollHeight;  // the last turn of a long chat
  $("comment").value = "";
}

function show(state) {
  annotator = state.annotator;
  $("ask").hidden = true;
  $("who").hidden = $("progress").hidden = false;
  $("who").textContent = annotator;
  const total = state.judged + state.remaining;
  $("bar").max = Math.max(total, 1);
  $("bar").value = state.judged;
  $("count").textContent = `${state.judged} of ${total}`;
  $("undo").hidden = !state.judged;
  $("about").hidden = !state.summary.length;
  $("summary").replaceChildren(...state.summary.map((line) => element("li", "", line)));
  showPair(state);
  $("status").textContent = state.pair ? `Pair ${state.judged + 1} of ${total}` : "Nothing is left to judge";
}

function fail(text) {
  $("message").textContent = text;
  $("message").hidden = false;
}

async function call(path, body) {
  if (busy || finished) return null;
  busy = true;
  document.querySelectorAll("button").forEach((button) => { button.disabled = true; });
  try {
    const options = body === undefined ? {} : {
      method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(body),
    };
    const answer = await fetch(path, options);
    const result = await answer.json();
    if (!answer.ok) {
      fail(result.error);
      return null;
    }
    $("message").hidden = true;
    return result;
  } catch {
    fail("The command has stopped. All verdicts that you have given are saved. " +
      "Run the command again and open the address that it prints.");
    return null;
  } finally {
    busy = false;
    document.querySelectorAll("button").forEach((button) => { button.disabled = false; });
  }
}

async function load() {
  const state = await call(`state?annotator=${encodeURIComponent(annotator)}`);
  if (state) show(state);
}

async function judge(choice) {
  if (!pair) return;
  const seconds = (performance.now() - shownAt) / 1000;
  const state = await call("verdict", {annotator, pair: pair.id, choice, comment: $("comment").value, seconds});
  if (!state) return;
  document.activeElement?.blur?.();
  show(state);
  if (!state.saved) fail("This pair was already judged under your name, for example in another tab.");
  window.scrollTo(0, 0);
}

async function undo() {
  const state = await call("undo", {annotator});
  if (state) show(state);
}

async function finish() {
  const state = await call("finish", {});
  if (!state) return;
  finished = true;
  $("done-text").textContent = "Finished. The verdicts are saved. You can close this page.";
  $("finish").hidden = $("undo").hidden = true;
}

function scrolls(target) {
  const box = target.closest?.(".text, #prompt");
  return Boolean(box) && box.scrollHeight > box.clientHeight;
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.repeat || event.isComposing) return;
  if (event.target.matches?.("textarea, input")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (["ArrowUp", "ArrowDown"].includes(event.key) && scrolls(event.target)) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key in KEYS && pair) {
    event.preventDefault();
    judge(KEYS[key]);
  } else if (key === "u" && !$("undo").hidden) {
    event.preventDefault();
    undo();
  } else if (key === "c" && pair) {
    event.preventDefault();
    $("comment").focus();
  }
});
document.querySelectorAll("[data-choice]").forEach((button) => {
  button.addEventListener("click", () => judge(button.dataset.choice));
});
$("undo").addEventListener("click", undo);
$("finish").addEventListener("click", finish);
$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  annotator = $("name").value.trim();
  sessionStorage.setItem("annotator", annotator);
  load();
});

async function begin() {
  const state = await call("state");
  if (state?.annotator) {  // the command has set the only annotator
    show(state);
  } else if (state && annotator) {
    load();
  } else {
    $("ask").hidden = false;
    $("name").focus();
  }
}
begin();
