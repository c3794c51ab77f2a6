// Opens cells and gives them classes, by click and by key. Gradio calls this once, for the element
// of the opened cell, with `element`, `props`, `server` (functions of page.py) and `watch`.
const COLUMN_KEYS = { ArrowUp: -1, ArrowDown: 1 };
const grid = () => document.querySelector("ul.cells");
const tiles = () => [...document.querySelectorAll("ul.cells .tile")];
const opened = () => element.querySelector(".opened");
const reviewer = document.getElementById("reviewer");
let wanted = "";        // the cell asked for last: an answer that comes late is not shown
let turned = 0;         // -1 or 1 after the page was turned by an arrow,
let from = "";          // and the page it was turned from
let heat = 0;

function say(text) {
  const note = document.querySelector("#note p");
  note.textContent = text;
  clearTimeout(say.timer);
  say.timer = setTimeout(() => { note.textContent = ""; }, 6000);
}

const name = (smear, row) => smear + " " + row;
const tileOf = (row) => document.querySelector(`ul.cells .tile[data-row="${row}"]`);

function mark(row) {
  tiles().forEach((tile) => tile.setAttribute("aria-current", tile.dataset.row === row));
}

async function ask(request) {
  const answer = await request;
  // Gradio gives nothing where the server cannot be reached.
  if (!answer) say("The desk does not answer. Is it still running?");
  return answer;
}

async function open(tile, { focus = false } = {}) {
  const smear = grid().dataset.smear, row = tile.dataset.row;
  wanted = name(smear, row);
  mark(row);
  if (focus) tile.focus();
  const answer = await ask(server.open_cell({ smear, row: Number(row), reviewer: reviewer.value }));
  if (answer && wanted === name(smear, row)) show(answer.cell);
  if (answer && answer.note) say(answer.note);
}

function show(html) {
  props.value = html;
  requestAnimationFrame(() => setHeat(heat));
}

function setHeat(strength) {
  heat = strength;
  const layer = element.querySelector(".heat"), slider = element.querySelector(".heat-strength");
  if (!layer || !slider) return;
  layer.style.opacity = strength / 100;
  slider.value = strength;
  slider.closest("article").classList.toggle("heat-on", strength > 0);
}

async function correct(change) {
  const cell = opened();
  if (!cell) return;
  if (!reviewer.value.trim()) {
    say("Write your name or initials first, at the top of the page.");
    reviewer.focus();
    return;
  }
  const { smear, row } = cell.dataset;
  // A class is never given to a cell that was not yet to be seen, nor to the one before it.
  if (wanted !== name(smear, row)) {
    say("The next cell is still opening; press the key again.");
    return;
  }
  const request = { smear, row: Number(row), reviewer: reviewer.value, ...change };
  const answer = await ask(server.correct(request));
  if (!answer) return;
  say(answer.note);
  if (answer.cell && wanted === name(smear, row)) show(answer.cell);
  const tile = grid() && grid().dataset.smear === smear && tileOf(row);
  if (answer.tile && tile) {
    const focused = document.activeElement === tile;
    tile.outerHTML = answer.tile;
    if (wanted === name(smear, row)) mark(row);
    if (focused) tileOf(row).focus();
  }
  if (answer.tile) {
    clearTimeout(correct.timer);
    correct.timer = setTimeout(() => document.getElementById("recount").click(), 400);
  }
}

function step(by) {
  const all = tiles();
  const here = all.findIndex((tile) => tile.getAttribute("aria-current") === "true");
  const next = all[here < 0 ? 0 : here + by];
  if (next) { open(next, { focus: true }); return; }
  const button = document.querySelector(by < 0 ? "#previous-page" : "#next-page");
  if (button && !button.disabled) {
    turned = Math.sign(by);
    from = grid().dataset.page;
    button.click();
  }
}

function columns() {
  return getComputedStyle(grid()).gridTemplateColumns.split(" ").length;
}

document.addEventListener("click", (event) => {
  const tile = event.target.closest("ul.cells .tile");
  if (!tile) return;
  open(tile);
  // Where the cell stands above the grid.
  if (element.getBoundingClientRect().bottom < 100) element.scrollIntoView();
});

element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button || button.disabled) return;
  if ("label" in button.dataset) correct({ label: button.dataset.label });
  if ("flag" in button.dataset) correct({ flagged: button.getAttribute("aria-pressed") !== "true" });
  if ("undo" in button.dataset) correct({ undo: true });
  if ("step" in button.dataset) step(Number(button.dataset.step));
});

element.addEventListener("input", (event) => {
  if (event.target.matches(".heat-strength")) setHeat(Number(event.target.value));
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !grid() || !grid().checkVisibility()) return;
  const isArrow = event.key.startsWith("Arrow");
  if (event.target.matches(".heat-strength") ? isArrow
    : event.target.closest("input, textarea, select, [role=listbox], [role=tab]")) return;
  if (event.key === "ArrowLeft" || event.key === "ArrowRight") step(event.key === "ArrowLeft" ? -1 : 1);
  else if (event.key in COLUMN_KEYS) step(COLUMN_KEYS[event.key] * columns());
  else {
    const button = [...element.querySelectorAll("[data-key]")].find(
      (one) => one.dataset.key === event.key.toLowerCase());
    if (!button) return;
    button.click();
  }
  event.preventDefault();
});

// New pictures: the first cell is opened; so it is, or the last one, after an arrow turned the page.
new MutationObserver(() => {
  const all = tiles();
  if (!all.length) return;
  const [smear, row] = wanted.split(" ");
  if (turned && grid().dataset.page !== from) {
    open(all[turned < 0 ? all.length - 1 : 0], { focus: true });
    turned = 0;
  } else if (grid().dataset.smear !== smear) open(all[0]);
  else mark(row);
}).observe(document.getElementById("grid"),
  { childList: true, subtree: true, attributeFilter: ["data-row", "data-smear", "data-page"] });

reviewer.value = localStorage.getItem("wbc-reviewer") || "";
reviewer.addEventListener("change", () => localStorage.setItem("wbc-reviewer", reviewer.value));
if (tiles().length) open(tiles()[0]);
