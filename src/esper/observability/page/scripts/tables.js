// Tables whose header cells sort them.

/** What a cell sorts by: its number where it has one, else its text. */
function sortValue(cell) {
  const number = cell.querySelector("data");
  return number ? Number(number.value) : cell.textContent.trim().toLowerCase();
}

/** Order of two cells' values; numbers come before text. */
function compareValues(a, b) {
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return typeof a === "number" ? a - b : a.localeCompare(b);
}

/** Turn the header cells of a table into buttons that sort it. */
function makeSortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const order = remembered(`order of ${table.caption.textContent}`, () => ({ column: null, rising: true }));
  const sort = () => {
    for (const other of heads) other.removeAttribute("aria-sort");
    heads[order.column].setAttribute("aria-sort", order.rising ? "ascending" : "descending");
    const rows = [...body.rows].map((row) => [sortValue(row.cells[order.column]), row]);
    rows.sort(([a], [b]) => (order.rising ? compareValues(a, b) : compareValues(b, a)));
    body.append(...rows.map(([, row]) => row));
  };
  heads.forEach((head, column) => {
    const button = html("button", { type: "button" }, head.textContent);
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      Object.assign(order, { column, rising: head.getAttribute("aria-sort") !== "ascending" });
      sort();
    });
  });
  if (order.column !== null) sort();
}
