// Starts the comparison of runs.

const compared = readData();
startChart("curves", (box, summary) => drawCurves(box, summary, {
  metric: compared.metric,
  seriesOf: (choice, measureWords) => compared.runs.map((run, i) => ({
    name: run.name, label: run.name, colour: `var(--run-${(i % 8) + 1})`, width: 2, dash: i < 8 ? null : "5 3", points: curvePoints(run, run.name, choice, measureWords),
  })),
  flagsOf: () => [],
  dotsOf: () => [],
}));
for (const table of document.querySelectorAll("table[data-sortable]")) makeSortable(table);
openForPrint();
followReading();
