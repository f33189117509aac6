// One seed's own charts: each measure over time, and its states.

/** A small line chart of one measure. */
function seedChart(name, points, width) {
  const chart = Plot.plot({
    width, height: 150, marginLeft: 46, marginRight: 12, marginTop: 10, marginBottom: 28,
    style: { background: "none", color: "var(--quiet)", overflow: "visible" },
    x: { label: null, ticks: 4, tickFormat: (x) => (Number.isInteger(x) ? count(x) : "") },
    y: { label: null, ticks: 3, tickFormat: short, zero: true },
    marks: [Plot.gridY({ stroke: "var(--line)", strokeOpacity: 1, ticks: 3 }), Plot.lineY(points, { x: "x", y: "y", stroke: "var(--growth)", strokeWidth: 2, curve: "linear" })],
  });
  fill(chart, { role: "img", tabindex: "0", "aria-label": `${name} over epochs. Use the arrow keys to read values.` }, []);
  const measured = points.filter((point) => Number.isFinite(point.y));
  const [x, y] = [chart.scale("x"), chart.scale("y")];
  if (measured.length > 0) readPoints(chart, [measured.map((point) => ({ px: x.apply(point.x), py: y.apply(point.y), colour: "var(--growth)", content: point.content }))]);
  return html("div", {}, html("h3", {}, name), measured.length > 0 ? chart : html("p", { class: "empty" }, "Not measured for this seed."));
}

/** The states of a seed as a strip. */
function stateStrip(states, epochs, width) {
  const cell = width / states.length;
  const runs = [];
  states.forEach((state, i) => (runs.at(-1)?.state === state ? (runs.at(-1).to = i) : runs.push({ state, from: i, to: i })));
  const drawing = picture(width, 22, { role: "group", "aria-label": "States over epochs" });
  const bars = runs.filter(({ state }) => state !== ABSENT).map(({ state, from, to }) => {
    const content = { title: words(STATES[state]).toLowerCase(), pairs: [["epochs", from === to ? count(epochs[from]) : `${count(epochs[from])} to ${count(epochs[to])}`]] };
    return explain(svg("rect", { x: from * cell, y: 4, width: (to - from + 1) * cell, height: 14, role: "img", "aria-label": tipText(content), style: `fill: ${state === 0 ? "var(--line)" : stateColour(STATES[state])}` }), content);
  });
  roam(bars);
  drawing.append(...bars);
  const names = new Set(runs.filter(({ state }) => state !== ABSENT && state !== 0).map(({ state }) => STATES[state]));
  return html("div", {}, html("h3", {}, "state"), drawing, names.size > 0 ? stateKey(names) : html("p", { class: "how" }, "This seed slept all the time."));
}

/** All charts of one seed. */
function seedCharts(lattice, unpacked, seed, width) {
  const { boundaries, seeds, codes, states } = unpacked;
  const own = (array) => d3.range(boundaries).map((boundary) => array[boundary * seeds + seed]);
  const columns = width < 640 ? 1 : 2;
  const wide = Math.floor((width - (columns - 1) * 32) / columns);
  const charts = lattice.measures.map(({ label: name }, i) => seedChart(name, own(codes[i]).map((code, boundary) => ({
    x: lattice.epochs[boundary], y: VALUES[code], content: { title: `epoch ${count(lattice.epochs[boundary])}`, pairs: [[name, code === 0 ? MISSING : exact(VALUES[code])]] },
  })), wide));
  return html("div", { class: "seed-charts", style: `grid-template-columns: repeat(${columns}, minmax(0, 1fr))` }, ...charts, stateStrip(own(states), lattice.epochs, wide));
}
