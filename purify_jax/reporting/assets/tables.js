"use strict";
// A click on a column's name sorts the table by it; a second click turns the order round.
for (const table of document.querySelectorAll(".scroll table")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const text = (row, column) => row.cells[column].textContent.trim();
  // "0.668 [0.608, 0.723]" and "[0.6, 0.7]" count as their first number.
  const number = (value) => parseFloat(value.replace(/^\[/, ""));
  const isNumber = (value) => /^\[?[-−+]?[0-9.]+($|[\s%\]\[,(×])/.test(value);

  const sort = (column, ascending) => {
    const rows = [...body.rows];
    const filled = rows.filter((row) => text(row, column) !== "");
    const numeric = filled.every((row) => isNumber(text(row, column)));
    const sign = ascending ? 1 : -1;
    const compare = (a, b) => numeric
      ? number(text(a, column)) - number(text(b, column))
      : text(a, column).localeCompare(text(b, column), "en", { numeric: true });
    filled.sort((a, b) => sign * compare(a, b));
    // Rows without a value stay at the end in either order.
    body.append(...filled, ...rows.filter((row) => text(row, column) === ""));
    heads.forEach((head, i) => head.setAttribute(
      "aria-sort", i === column ? (ascending ? "ascending" : "descending") : "none"));
  };

  if (body.rows.length < 2) continue;
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.title = "Sort by this column";
    button.append(...head.childNodes);
    if (!button.textContent.trim()) button.setAttribute("aria-label", "first column");
    head.replaceChildren(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => sort(column, head.getAttribute("aria-sort") !== "ascending"));
  });
}
// On paper nothing can be unfolded.
window.addEventListener("beforeprint", () => {
  for (const fold of document.querySelectorAll("details")) fold.open = true;
});
