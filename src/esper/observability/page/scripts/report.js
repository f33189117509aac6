// Starts everything on the report.

const report = readData();
for (const start of Object.values(CHARTS)) start(report);
for (const table of document.querySelectorAll("table[data-sortable]")) makeSortable(table);
openForPrint();
followReading();
