"use strict";
for (const table of document.querySelectorAll("main table")) {
  const body = table.tBodies[0];
  const key = (row, column) => {
    const cell = row.cells[column];
    return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent;
  };
  table.tHead.querySelectorAll("button").forEach((button, column) => {
    const head = button.parentElement;
    button.addEventListener("click", () => {
      const number = head.classList.contains("number");
      const was = head.getAttribute("aria-sort");
      // Numbers start with the largest: that is what one looks for.
      const rising = was ? was === "descending" : !number;
      for (const other of table.tHead.querySelectorAll("th")) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      const compare = (a, b) => {
        const [x, y] = [key(a, column), key(b, column)];
        // What has no number comes last either way.
        if (typeof x !== typeof y) return typeof x === "number" ? -1 : 1;
        const order = typeof x === "number" ? x - y : x.localeCompare(y, "en", { numeric: true });
        return rising ? order : -order;
      };
      body.append(...[...body.rows].sort(compare));
    });
  });
  const search = document.querySelector(`input[data-for="${table.id}"]`);
  if (!search) continue;
  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of body.rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      shown += row.hidden ? 0 : 1;
    }
    search.closest("p").querySelector("output").textContent =
      shown === body.rows.length ? `${shown} rows` : `${shown} of ${body.rows.length} rows`;
  };
  search.addEventListener("input", filter);
  // A link to a row that the search hides shows all rows again.
  window.addEventListener("hashchange", () => {
    const row = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (row && row.hidden && table.contains(row)) {
      search.value = "";
      filter();
      row.scrollIntoView();
    }
  });
}
for (const zoom of document.querySelectorAll(".zoom")) {
  const drawing = zoom.parentElement.querySelector("svg.flow");
  const natural = Number(drawing.getAttribute("width"));
  let scale = 1;
  zoom.hidden = false;
  zoom.addEventListener("click", (event) => {
    const step = event.target.dataset.zoom;
    if (!step) return;
    scale = step === "0" ? 1 : Math.min(4, Math.max(0.15, scale * Number(step)));
    drawing.setAttribute("width", natural * scale);
  });
}
