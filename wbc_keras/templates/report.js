"use strict";
// Sorting: every head of a sortable table becomes a button; cells without a value stay last.
(() => {
  const compare = (one, other) =>
    isNaN(one) || isNaN(other) ? String(one).localeCompare(String(other)) : one - other;

  const sort = (table, head, column) => {
    const rising = head.getAttribute("aria-sort") !== "ascending";
    const body = table.tBodies[0];
    const key = (row) => row.cells[column].dataset.key;
    const rows = [...body.rows].sort((a, b) => {
      if (key(a) === "" || key(b) === "") return (key(a) === "") - (key(b) === "");
      return (rising ? 1 : -1) * compare(key(a), key(b));
    });
    body.append(...rows);
    for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", rising ? "ascending" : "descending");
    const name = head.textContent.trim();
    document.getElementById("told").textContent =
      `Sorted by ${name}, ${rising ? "ascending" : "descending"}.`;
  };

  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => sort(table, head, column));
    });
  }
})();

// Thresholds: counts are made anew from all cells whenever a slider moves.
(() => {
  const holder = document.getElementById("cells-data");
  if (!holder) return;
  const packed = JSON.parse(holder.textContent);
  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const numbers = (text) => {
    const view = new DataView(bytes(text).buffer);
    return Float32Array.from({ length: view.byteLength / 4 }, (_, i) => view.getFloat32(4 * i, true));
  };
  const confidence = numbers(packed.confidence);
  const scores = packed.scores === null ? null : numbers(packed.scores);
  const flags = bytes(packed.flags); // 1: the answer is right, 2: the cell is abnormal
  const state = { call: packed.call, answer: 0 };

  const tally = () => {
    const n = { answered: 0, right: 0, found: 0, missed: 0, alarms: 0, cleared: 0, withheld: 0 };
    for (let i = 0; i < flags.length; i++) {
      const abnormal = flags[i] & 2;
      if (confidence[i] < state.answer) {
        if (abnormal) n.withheld++;
        continue;
      }
      n.answered++;
      if (flags[i] & 1) n.right++;
      if (scores === null) continue;
      if (scores[i] >= state.call) abnormal ? n.found++ : n.alarms++;
      else abnormal ? n.missed++ : n.cleared++;
    }
    return n;
  };

  const show = (name, part, whole) => {
    const value = document.getElementById(`out-${name}`);
    if (!value) return;
    const share = whole ? part / whole : null;
    value.textContent = share === null ? "n/a" : `${(100 * share).toFixed(1)}\u00a0%`;
    value.dataset.value = share === null ? "" : share;
    document.getElementById(`bar-${name}`).style.width = `${100 * (share ?? 0)}%`;
  };

  const several = (count, one) => `${count.toLocaleString("en")} ${one}${count === 1 ? "" : "s"}`;

  const update = () => {
    const n = tally();
    show("coverage", n.answered, flags.length);
    show("accuracy", n.right, n.answered);
    show("sensitivity", n.found, n.found + n.missed);
    show("specificity", n.cleared, n.cleared + n.alarms);
    show("ppv", n.found, n.found + n.alarms);
    const left = flags.length - n.answered;
    let text = `${several(left, "cell")} left to a person`;
    if (scores !== null) {
      text += `, ${n.withheld.toLocaleString("en")} of them abnormal. Of those answered: ` +
        `${several(n.found, "abnormal cell")} found, ${n.missed.toLocaleString("en")} missed, ` +
        `${several(n.alarms, "normal cell")} called abnormal`;
    }
    document.getElementById("counts").textContent = `${text}.`;
    for (const name of ["call", "answer"]) {
      const slider = document.getElementById(name);
      if (!slider) continue;
      slider.value = state[name];
      slider.setAttribute("aria-valuetext", state[name].toFixed(3));
      document.getElementById(`at-${name}`).textContent = state[name].toFixed(3);
    }
  };

  for (const name of ["call", "answer"]) {
    const slider = document.getElementById(name);
    slider?.addEventListener("input", () => {
      state[name] = slider.valueAsNumber;
      update();
    });
  }
  for (const button of document.querySelectorAll("button[data-moves]")) {
    button.addEventListener("click", () => {
      state[button.dataset.moves] = Number(button.dataset.to);
      update();
    });
  }
  update();
})();
