// A chart of lines with direct labels, read by pointer and by arrow keys.
//
// A series is {name, label, brief, colour, width, dash, points: [{x, y, content}]}; `content` is what the tooltip says.
// Flags are marks above the chart: {x, colour, content}.

const TOP = 34;

/** Draw the lines and return the chart as an SVG element. */
function lineChart(width, { series, flags = [], dots = [], xLabel, yLabel, log, summary }) {
  const narrow = width < 560;
  const height = narrow ? 300 : 400;
  const isDrawn = (point) => Number.isFinite(point.x) && Number.isFinite(point.y) && (!log || point.y > 0);
  const visible = series.map((one) => ({ ...one, withGaps: one.points, points: one.points.filter(isDrawn) })).filter((one) => one.points.length > 0);
  const ends = dots.filter(isDrawn);
  const chart = Plot.plot({
    width, height, marginTop: TOP, marginLeft: 46, marginRight: narrow ? 84 : 150, marginBottom: 42,
    style: { background: "none", color: "var(--quiet)", overflow: "visible" },
    x: { label: xLabel, labelAnchor: "center", labelArrow: "none", ticks: narrow ? 3 : 6, tickFormat: (x) => (x < 1e5 ? count(x) : large(x)), insetLeft: 2, labelOffset: 38 },
    y: { label: yLabel, type: log ? "log" : "linear", labelArrow: "none", ticks: 5, tickFormat: (y) => (log && !/^[125]/.test(y.toExponential()) ? "" : short(y)), nice: !log },
    marks: [
      Plot.gridY({ stroke: "var(--line)", strokeOpacity: 1, ticks: 5 }),
      ...(flags.length ? [Plot.ruleX(flags, { x: "x", stroke: "var(--line)", strokeDasharray: "2 3" })] : []),
      ...visible.map((one) => Plot.lineY(one.withGaps, { x: "x", y: "y", stroke: one.colour, strokeWidth: one.width, strokeDasharray: one.dash, curve: "linear", ariaLabel: () => one.name, marker: one.points.length === 1 ? "dot" : null })),
      ...ends.map((dot) => Plot.dot([dot], { x: "x", y: "y", r: 4, stroke: dot.colour, strokeWidth: 1.75, fill: dot.filled ? dot.colour : "var(--paper)" })),
    ],
  });
  fill(chart, { role: "img", "aria-label": `${summary} Use the arrow keys to read values.`, tabindex: "0", class: `${chart.getAttribute("class")} lines` }, []);
  const [x, y] = [chart.scale("x"), chart.scale("y")];
  labelEnds(chart, visible, x, y, width, narrow);
  const readable = [
    ...visible.map((one) => one.points.map((point) => ({ px: x.apply(point.x), py: y.apply(point.y), colour: one.colour, content: point.content }))),
    ...ends.map((dot) => [{ px: x.apply(dot.x), py: y.apply(dot.y), colour: dot.colour, content: dot.content }]),
    plantFlags(chart, flags, x),
  ].filter((points) => points.length > 0);
  readPoints(chart, readable);
  return chart;
}

/** Write the names of the lines at their ends, moved apart where they would overlap. */
function labelEnds(chart, series, x, y, width, narrow) {
  const ends = series
    .filter((one) => one.label)
    .map((one) => ({ one, at: x.apply(one.points.at(-1).x), want: y.apply(one.points.at(-1).y) }))
    .sort((a, b) => a.want - b.want);
  let lowest = -Infinity;
  for (const end of ends) lowest = end.place = Math.max(end.want, lowest + 15);
  let highest = Number(chart.getAttribute("height")) - 44 + 15;
  for (const end of ends.reverse()) highest = end.place = Math.min(end.place, highest - 15);
  for (const { one, at, place } of ends) {
    const text = label((narrow && one.brief) || one.label, width - at - 8, { x: at + 8, y: place, dy: "0.32em", "text-anchor": "start", style: `fill: ${one.colour}; font-weight: ${one.width > 2 ? 650 : 450}` });
    chart.append(text);
  }
}

/** Draw the flags above the chart and return where they are. */
function plantFlags(chart, flags, x) {
  return flags.map((flag) => {
    const px = x.apply(flag.x);
    chart.append(svg("path", { class: "flag", d: `M${px},${TOP - 4} l-5,-9 h10 z`, style: `fill: ${flag.colour}; stroke: var(--paper)` }));
    return { px, py: TOP - 9, colour: flag.colour, content: flag.content };
  });
}

/** Show the point that is nearest to the pointer, or that the arrow keys have reached. */
function readPoints(chart, lists) {
  const halo = svg("circle", { r: 5, class: "halo", style: "fill: none; stroke-width: 2; visibility: hidden" });
  chart.append(halo);
  let [list, place] = [0, 0];
  const show = (point, isSpoken) => {
    halo.setAttribute("cx", point.px);
    halo.setAttribute("cy", point.py);
    halo.style.stroke = point.colour;
    halo.style.visibility = "visible";
    const box = chart.getBoundingClientRect();
    const scale = box.width / Number(chart.getAttribute("width"));
    showTip(point.content, box.left + point.px * scale, box.top + point.py * scale);
    if (isSpoken) speak(point.content);
  };
  const leave = () => {
    halo.style.visibility = "hidden";
    hideTip();
  };
  chart.addEventListener("pointermove", (event) => {
    const box = chart.getBoundingClientRect();
    const scale = box.width / Number(chart.getAttribute("width"));
    const [px, py] = [(event.clientX - box.left) / scale, (event.clientY - box.top) / scale];
    let nearest = 60 ** 2;
    let found = false;
    lists.forEach((points, i) => points.forEach((point, j) => {
      const distance = (point.px - px) ** 2 + (point.py - py) ** 2;
      if (distance < nearest) [nearest, list, place, found] = [distance, i, j, true];
    }));
    found ? show(lists[list][place], false) : leave();
  });
  chart.addEventListener("pointerleave", leave);
  chart.addEventListener("blur", leave);
  chart.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0], Home: [0, -Infinity], End: [0, Infinity] }[event.key];
    if (move === undefined || lists.length === 0) return;
    event.preventDefault();
    if (move[0] !== 0) {
      const from = lists[list][place].px;
      list = (list + move[0] + lists.length) % lists.length;
      place = d3.leastIndex(lists[list], (a, b) => Math.abs(a.px - from) - Math.abs(b.px - from));
    } else place = Math.max(0, Math.min(lists[list].length - 1, place + move[1]));
    show(lists[list][place], true);
  });
}
