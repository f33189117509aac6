// Starts everything on the report.

const report = readData();
startCurves(report);
startAnatomy(report);
startLanes(report);
startWorth(report);
startLattice(report);
for (const table of document.querySelectorAll("table[data-sortable]")) makeSortable(table);
openForPrint();
followReading();
