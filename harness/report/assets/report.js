// Makes the tables of report.html sortable and filterable. DataTables is in globalThis.ReportTable.

const Table = globalThis.ReportTable;
const PAGE_ROWS = 25; // rows of a complete table shown at a time
const FEW_ROWS = 3; // a table of no more rows has no field to filter it

// Numbers, with a missing one last whichever way the column is sorted.
const isMissing = (value) => value === "" || value === null || Number.isNaN(value);
const compare = (sign) => (a, b) =>
  isMissing(a) || isMissing(b) ? isMissing(a) - isMissing(b) : sign * (a - b);
Table.type("measure", {
  className: "measure",
  order: {
    pre: (value) => (isMissing(value) ? NaN : Number(value)),
    asc: compare(1),
    desc: compare(-1),
  },
});

const escaped = (text) =>
  String(text).replace(/[&<>"]/g, (sign) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[sign]);
const shown = (cell) => (Array.isArray(cell) ? cell[0] : (cell ?? "–"));
const bold = (text) => escaped(text).replace(/^\*\*(.*?)\*\*/, "<strong>$1</strong>");

// What a cell is for DataTables: HTML to show, text to search, a value to sort by.
function value(cell, type) {
  if (type === "display") return bold(shown(cell));
  if (type === "filter") return String(shown(cell)).replaceAll("**", "");
  return Array.isArray(cell) ? cell[1] : cell;
}

// A list of a column's values; choosing one keeps the rows that have it.
function chooser(api, name, index) {
  const label = document.createElement("label");
  const select = document.createElement("select");
  const column = api.column(index);
  const values = [...new Set(column.data().toArray())].filter((entry) => entry !== null && entry !== "");
  values.sort((a, b) => (typeof a === "number" ? a - b : String(a).localeCompare(String(b), "en")));
  select.dataset.column = name;
  select.add(new Option("all", ""));
  for (const entry of values) select.add(new Option(entry, entry));
  select.addEventListener("change", () => {
    const exact = select.value === "" ? "" : (text) => text === select.value;
    column.search(exact).draw();
  });
  label.append(`${name} `, select);
  return label;
}

function makeDataTable(table) {
  const { columns, rows, filters } = JSON.parse(document.getElementById(table.dataset.source).textContent);
  const isMeasure = (index) =>
    rows.every((row) => row[index] === null || typeof row[index] === "number" || Array.isArray(row[index]));
  const controls = document.createElement("div");
  controls.className = "choosers";
  const api = new Table(table, {
    ...OPTIONS,
    data: rows,
    columns: columns.map((title, index) => ({
      title: escaped(title),
      type: isMeasure(index) ? "measure" : "string",
      render: (data, type, row) => value(row[index], type),
      data: index,
    })),
    paging: true,
    pageLength: PAGE_ROWS,
    lengthMenu: [PAGE_ROWS, 100, { label: "all", value: -1 }],
    layout: { topStart: controls, topEnd: "search", bottomStart: ["info", "pageLength"], bottomEnd: "paging" },
  });
  for (const name of filters) controls.append(chooser(api, name, columns.indexOf(name)));
  return api;
}

const OPTIONS = {
  autoWidth: false,
  order: [],
  orderClasses: false,
  language: { search: "", searchPlaceholder: "filter rows", emptyTable: "no rows", zeroRecords: "no row has this" },
};

for (const table of document.querySelectorAll("main table:not(.data)")) {
  const search = table.tBodies[0] && table.tBodies[0].rows.length > FEW_ROWS ? "search" : null;
  if (!table.tBodies[0]) continue;
  new Table(table, {
    ...OPTIONS,
    paging: false,
    info: false,
    layout: { topStart: null, topEnd: search, bottomStart: null, bottomEnd: null },
  });
}
const complete = [...document.querySelectorAll("main table.data")].map(makeDataTable);

// On paper every row is shown, and afterwards the page of rows that was there.
let lengths = [];
addEventListener("beforeprint", () => {
  lengths = complete.map((api) => api.page.len());
  for (const api of complete) api.page.len(-1).draw(false);
});
addEventListener("afterprint", () => {
  complete.forEach((api, index) => api.page.len(lengths[index]).draw(false));
});

// Beside the text where there is room, folded above it where there is not.
const wide = matchMedia("(min-width: 70rem)");
const contents = document.getElementById("contents");
const unfold = () => (contents.open = wide.matches);
wide.addEventListener("change", unfold);
unfold();
contents.addEventListener("click", (event) => {
  if (event.target.tagName === "A" && !wide.matches) contents.open = false;
});
document.documentElement.dataset.ready = "yes";
