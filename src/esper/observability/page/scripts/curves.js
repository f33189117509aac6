// Learning curves: which lines there are, for a report (run, arms, controls) and for a comparison (runs).

const CONTROLS = {
  host_on: { name: "host trained on", brief: "host on", colour: "var(--control-1)" },
  static: { name: "static network", brief: "static", colour: "var(--control-2)" },
};

/** The measures that can be chosen: [key of the column, words]. */
function curveMeasures(metric) {
  return [["val_losses", "held-out loss"], ["train_losses", "training loss"], ...(metric ? [["val_metrics", words(metric)]] : [])];
}

/** The points of one curve under the chosen measure and axis. */
function curvePoints(curve, name, { measure, axis }, measureWords) {
  return (curve[measure] ?? []).map((y, i) => ({
    x: curve[axis][i],
    y,
    content: { title: name, pairs: [[measureWords, exact(y)], ["step", count(curve.steps[i])], ["training FLOPs", large(curve.flops[i])]] },
  }));
}

/** An arm, or the twin of a live trial, in words. */
function armName(arm) {
  return arm.kind === "twin" ? arm.label : `arm: ${arm.label}`;
}

/** What became of an arm, or of the twin of a live trial. */
function armFate(arm) {
  if (arm.kind === "twin") return arm.adopted ? "The run went on as its twin." : "The run with its grafts went on.";
  return arm.adopted ? "Adopted." : arm.passed ? "Beat the twin; another was adopted." : "Did not beat the twin.";
}

/** The lines of a report. */
function reportSeries({ run, arms, controls }, choice, measureWords) {
  const lines = controls.map((control) => {
    const { name, brief, colour } = CONTROLS[control.name];
    return { name, label: name, brief, colour, width: 1.75, points: curvePoints(control, name, choice, measureWords) };
  });
  for (const arm of arms) {
    const name = armName(arm);
    lines.push({ name, label: null, colour: arm.adopted ? "var(--growth)" : "var(--faint)", width: 1.25, dash: arm.adopted ? null : "3 3", points: curvePoints(arm, name, choice, measureWords) });
  }
  lines.push({ name: "this run", label: "this run", colour: "var(--growth)", width: 2.75, points: curvePoints(run, "this run", choice, measureWords) });
  return lines;
}

/** Where the arms ended, on the select samples. */
function armEnds(arms, choice) {
  if (choice.measure !== "val_losses") return [];
  return arms.map((arm) => ({
    x: choice.axis === "steps" ? arm.end_step : arm.end_flops,
    y: arm.select_loss,
    colour: arm.adopted ? "var(--growth)" : "var(--faint)",
    filled: arm.adopted,
    content: { title: `End of the ${armName(arm)}`, pairs: [["held-out loss", exact(arm.select_loss)], ["step", count(arm.end_step)], ["training FLOPs", large(arm.end_flops)]], note: armFate(arm) },
  }));
}

/** Changes of state in the run itself, one flag for all at one step. */
function stateFlags(marks, axis) {
  return d3.groups(marks, (mark) => mark.step).map(([step, all]) => {
    const last = d3.greatest(all, (mark) => STATES.indexOf(mark.target) % 8);
    const pairs = all.slice(0, 8).map((mark) => [mark.label, `${words(mark.source).toLowerCase()} \u2192 ${words(mark.target).toLowerCase()}${mark.reason ? ` (${words(mark.reason)})` : ""}`]);
    const note = all.length > 8 ? `and ${all.length - 8} more` : null;
    return { x: axis === "steps" ? step : all[0].flops, colour: stateColour(last.target), content: { title: `Step ${count(step)}`, pairs, note } };
  });
}

/** The learning curves of a chart that is told its lines. */
function drawCurves(box, summary, { metric, seriesOf, flagsOf, dotsOf }) {
  const choice = remembered("curves", () => ({ measure: "val_losses", axis: "steps", log: false }));
  const place = html("div");
  let width = 0;
  const draw = () => {
    const [, measureWords] = curveMeasures(metric).find(([key]) => key === choice.measure);
    const isLoss = choice.measure !== "val_metrics";
    logTick.querySelector("input").disabled = !isLoss;
    place.replaceChildren(lineChart(width, {
      series: seriesOf(choice, measureWords), flags: flagsOf(choice), dots: dotsOf(choice),
      xLabel: choice.axis === "steps" ? "steps" : "training FLOPs",
      yLabel: measureWords, log: choice.log && isLoss, summary,
    }));
  };
  const set = (name) => (value) => {
    choice[name] = value;
    draw();
  };
  const logTick = tick("log scale", choice.log, set("log"));
  box.replaceChildren(
    html("div", { class: "controls" },
      oneOf("Measure", curveMeasures(metric), choice.measure, set("measure")),
      html("span", { class: "divider" }),
      oneOf("Over", [["steps", "over steps"], ["flops", "over training FLOPs"]], choice.axis, set("axis")),
      html("span", { class: "divider" }),
      logTick),
    place,
  );
  drawToFit(place, (now) => {
    width = now;
    draw();
  });
}

/** The learning curves of a report. */
function startCurves(data) {
  const { curves, metric } = data;
  return startChart("curves", (box, summary) => drawCurves(box, summary, {
    metric,
    seriesOf: (choice, measureWords) => reportSeries(curves, choice, measureWords),
    flagsOf: (choice) => stateFlags(curves.marks, choice.axis),
    dotsOf: (choice) => armEnds(curves.arms, choice),
  }));
}
