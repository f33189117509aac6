// What each graft was worth: a dot and an interval, sorted.

const FIRST_COMPARISONS = 40;

/** One panel: all grafts against one thing. */
function worthPanel(width, against, items, summary) {
  const narrow = width < 560;
  const measured = items.filter((item) => item.mean !== null);
  const left = narrow ? 10 : Math.min(260, width * 0.3);
  const bounds = d3.extent([0, ...measured.flatMap((item) => [item.mean, item.low ?? item.mean, item.high ?? item.mean])]);
  const row = narrow ? 46 : 30;
  const height = 26 + items.length * row + 30;
  const x = d3.scaleLinear(bounds, [left + 14, width - (narrow ? 12 : 210)]).nice(5);
  const drawing = picture(width, height, { class: "worth", role: "group", "aria-label": `Loss saved against ${against}. ${summary}` });
  drawing.append(svg("text", { class: "strong", x: 0, y: 12 }, `Loss saved against ${against}`));
  for (const at of x.ticks(narrow ? 4 : 6)) {
    drawing.append(svg("line", { x1: x(at), x2: x(at), y1: 24, y2: height - 28, style: `stroke: ${at === 0 ? "var(--ink)" : "var(--line)"}` }));
    drawing.append(svg("text", { x: x(at), y: height - 10, "text-anchor": "middle" }, signed(at)));
  }
  const rows = items.map((item, i) => worthRow(item, against, { x, y: 26 + i * row + (narrow ? 30 : row / 2), left, width, narrow, row }));
  roam(rows);
  drawing.append(...rows);
  return drawing;
}

/** One graft in a panel. */
function worthRow(item, against, { x, y, left, width, narrow, row }) {
  const tint = item.passed ? "var(--growth)" : "var(--faint)";
  const content = {
    title: item.label,
    pairs: [["loss saved", item.mean === null ? MISSING : interval(item)], ["z", plainly(item.z)], ["at step", count(item.step)], ["gate", item.passed ? "passed" : "not passed"]],
    note: `Against ${against}, on the gate samples.`,
  };
  const strong = item.passed ? "strong" : null;
  const name = narrow ? label(item.label, width, { x: 0, y: y - 12, class: strong }) : label(item.label, left, { x: left, y, dy: "0.32em", "text-anchor": "end", class: strong });
  const node = svg("g", { class: "item", role: "img", "aria-label": tipText(content) }, svg("rect", { x: 0, y: y - row / 2, width, height: row, fill: "transparent" }), name);
  if (item.mean === null) node.append(svg("text", { x: x(0) + 8, y, dy: "0.32em" }, MISSING));
  else {
    if (item.low !== null && item.high !== null) node.append(svg("line", { x1: x(item.low), x2: x(item.high), y1: y, y2: y, style: `stroke: ${tint}; stroke-width: 3; stroke-linecap: round; opacity: 0.55` }));
    node.append(svg("circle", { cx: x(item.mean), cy: y, r: 5, style: `fill: ${item.passed ? tint : "var(--paper)"}; stroke: ${tint}; stroke-width: 2` }));
    if (!narrow) node.append(svg("text", { x: width, y, dy: "0.32em", "text-anchor": "end", class: strong }, interval(item)));
  }
  return explain(node, content);
}

/** A panel for each thing that grafts were compared with, each with its own scale, the best first. */
function startWorth({ worth }) {
  return startChart("worth", (box, summary) => {
    box.replaceChildren();
    for (const [against, items] of d3.groups(worth, (item) => item.against)) {
      const place = box.appendChild(html("div", { class: "panel" }));
      const sorted = d3.sort(items, (item) => -(item.mean ?? -Infinity));
      drawFirst(place, sorted, FIRST_COMPARISONS, "comparisons", (shown, width) => [worthPanel(width, against, shown, summary)]);
    }
  });
}
