// Learning curves: which lines there are, for a report (run, arms, controls) and for a comparison (runs).

const CONTROL_NAMES = { host_on: ["host trained on", "host on"], static: ["static network", "static"] };

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

/** The lines of a report. */
function reportSeries({ run, arms, controls }, choice, measureWords) {
  const lines = controls.map((control, i) => {
    const [name, brief] = CONTROL_NAMES[control.name];
    return { name, label: name, brief, colour: `var(--control-${i + 1})`, width: 1.75, points: curvePoints(control, name, choice, measureWords) };
  });
  for (const arm of arms) {
    const name = `arm: ${arm.label}`;
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
    content: { title: `End of the arm: ${arm.label}`, pairs: [["held-out loss", exact(arm.select_loss)], ["step", count(arm.end_step)], ["training FLOPs", large(arm.end_flops)]], note: arm.adopted ? "Adopted." : arm.passed ? "Beat the twin; another was adopted." : "Did not beat the twin." },
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
  const choice = { measure: "val_losses", axis: "steps", log: false };
  const place = html("div");
  let width = 0;
  const draw = () => {
    const [, measureWords] = curveMeasures(metric).find(([key]) => key === choice.measure);
    place.replaceChildren(lineChart(width, {
      series: seriesOf(choice, measureWords), flags: flagsOf(choice), dots: dotsOf(choice),
      xLabel: choice.axis === "steps" ? "steps" : "training FLOPs",
      yLabel: measureWords, log: choice.log && choice.measure !== "val_metrics", summary,
    }));
  };
  const set = (name) => (value) => {
    choice[name] = value;
    draw();
  };
  box.append(
    html("div", { class: "controls" },
      oneOf("Measure", curveMeasures(metric), choice.measure, set("measure")),
      html("span", { class: "divider" }),
      oneOf("Over", [["steps", "over steps"], ["flops", "over training FLOPs"]], choice.axis, set("axis")),
      html("span", { class: "divider" }),
      tick("log scale", choice.log, set("log"))),
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
  startChart("curves", (box, summary) => drawCurves(box, summary, {
    metric,
    seriesOf: (choice, measureWords) => reportSeries(curves, choice, measureWords),
    flagsOf: (choice) => stateFlags(curves.marks, choice.axis),
    dotsOf: (choice) => armEnds(curves.arms, choice),
  }));
}
