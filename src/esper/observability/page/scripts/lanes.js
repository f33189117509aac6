// Swimlanes: the life of each seed that grew, over the steps of the run.

const FIRST_LANES = 40;

/** Hatching in the colour of a state, for what happened in an arm. */
function hatching(state) {
  return svg("pattern", { id: `hatch-${state}`, width: 5, height: 5, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
    svg("rect", { width: 5, height: 5, style: `fill: ${stateColour(state)}` }), svg("rect", { width: 1.6, height: 5, style: "fill: var(--paper); opacity: 0.7" }));
}

/** What the tooltip says about a span of a lane. */
function spanContent(lane, span) {
  const gates = Object.entries(span.gates ?? {}).map(([name, value]) => [words(name), plainly(value)]);
  return {
    title: `${words(span.state).toLowerCase()}: ${lane.label}`,
    pairs: [["steps", span.from === span.to ? `at ${count(span.from)}` : `${count(span.from)} to ${count(span.to)}`], ...(span.arm ? [["in the arm", span.arm]] : []), ["why", words(span.reason || "not said")], ...gates],
  };
}

/** The bar of one span; arms are thin and hatched. */
function spanBar(lane, span, x, middle) {
  const [thick, from, to] = [span.arm ? 7 : 14, x(span.from), x(span.to)];
  const bar = svg("rect", {
    class: "span", x: from, y: middle - thick / 2, width: Math.max(2.5, to - from), height: thick, rx: 2,
    style: `fill: ${span.arm ? `url(#hatch-${span.state})` : stateColour(span.state)}`, role: "img", "aria-label": tipText(spanContent(lane, span)),
  });
  return explain(bar, spanContent(lane, span));
}

/** One lane: its name, its spans and how it ended. */
function laneRow(lane, { x, top, row, left, narrow, width }) {
  const middle = narrow ? top + 30 : top + row / 2;
  const spans = lane.spans.filter((span) => span.state !== "DORMANT");
  const bars = [...spans.filter((span) => !span.arm), ...spans.filter((span) => span.arm)].map((span) => spanBar(lane, span, x, middle));
  const [start, end] = [x(d3.min(spans, (span) => span.from) ?? 0), x(d3.max(spans, (span) => span.to) ?? 0)];
  const said = ending(lane.outcome, narrow ? null : lane.reason);
  const isRight = end + textWidth(said) + 8 < width || width - end >= start - left;
  const outcome = narrow
    ? svg("text", { class: "ended", x: width, y: top + 14, "text-anchor": "end" }, said)
    : label(said, (isRight ? width - end : start - left) - 8, { class: "ended", x: isRight ? end + 8 : start - 8, y: middle, dy: "0.32em", "text-anchor": isRight ? "start" : "end" });
  return {
    bars: bars.map((bar, i) => ({ bar, from: Number(bar.getAttribute("x")), i })).sort((a, b) => a.from - b.from || a.i - b.i).map(({ bar }) => bar),
    node: svg("g", { class: `row ${fate(lane.outcome)}` },
      svg("rect", { class: "ground", x: 0, y: top, width, height: row, rx: 3 }),
      label(lane.label, narrow ? width - textWidth(said, true) - 16 : left - 12, { x: narrow ? 0 : left - 12, y: narrow ? top + 14 : middle, dy: narrow ? 0 : "0.32em", "text-anchor": narrow ? "start" : "end", class: fate(lane.outcome) === "kept" ? "strong" : null }),
      ...bars, outcome),
  };
}

/** All lanes as one picture. */
function laneChart(width, lanes, steps, summary) {
  const narrow = width < 560;
  const left = narrow ? 4 : Math.min(270, width * 0.3);
  const row = narrow ? 44 : lanes.length > 20 ? 24 : 30;
  const x = d3.scaleLinear([0, Math.max(1, steps)], [left, width - (narrow ? 8 : 76)]);
  const height = 24 + lanes.length * row + 8;
  const states = new Set(lanes.flatMap((lane) => lane.spans.filter((span) => span.arm).map((span) => span.state)));
  const drawing = picture(width, height, { class: "lanes", role: "group", "aria-label": summary }, svg("defs", {}, ...[...states].map(hatching)));
  for (const at of x.ticks(narrow ? 4 : 7)) {
    drawing.append(svg("line", { x1: x(at), x2: x(at), y1: 20, y2: height, style: "stroke: var(--line)" }));
    drawing.append(svg("text", { x: x(at), y: 12, "text-anchor": at === 0 ? "start" : x(at) > width - 24 ? "end" : "middle" }, at === 0 ? "step 0" : count(at)));
  }
  const rows = lanes.map((lane, i) => laneRow(lane, { x, top: 24 + i * row, row, left, narrow, width }));
  drawing.append(...rows.map(({ node }) => node));
  roam(rows.flatMap(({ bars }) => bars));
  return drawing;
}

/** The lifecycles, the first ones at first. */
function startLanes({ lanes, planned_steps }) {
  return startChart("lanes", (box, summary) => {
    box.replaceChildren();
    const steps = Math.max(planned_steps ?? 0, d3.max(lanes, (lane) => d3.max(lane.spans, (span) => span.to)) ?? 0);
    drawFirst(box, lanes, FIRST_LANES, "lifecycles", (shown, width) => [laneChart(width, shown, steps, summary)]);
    box.append(stateKey(new Set(lanes.flatMap((lane) => lane.spans.map((span) => span.state)))));
  });
}
