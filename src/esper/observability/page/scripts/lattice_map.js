// A heat map that is painted at the resolution of its data and scaled by the browser.
//
// A grid is {rows, columns, paint(Uint32Array), stateAt(row, column), labels: [[row, text]], content(row, column), open(row)}.

const MAP_HEIGHT = 480;

/** Height of a row in pixels: many seeds are thin, few are not thick. */
function rowHeight(rows, most) {
  return Math.max(2, Math.min(most, Math.floor(MAP_HEIGHT / rows)));
}

/** Where labels stand so that they do not touch: every row, or every so many. */
function labelledRows(rows, height) {
  if (height >= 13) return d3.range(rows);
  return d3.ticks(0, rows - 1, Math.max(2, Math.min(120, Math.floor((rows * height) / 40)))).filter(Number.isInteger);
}

/** Dots on cells whose seeds are awake. */
function drawStates(canvas, grid, height) {
  const context = canvas.getContext("2d");
  const cell = canvas.width / grid.columns;
  const radius = Math.max(1, Math.min(3.5, height * 0.22, cell * 0.4));
  for (let row = 0; row < grid.rows; row++) {
    for (let column = 0; column < grid.columns; column++) {
      const state = grid.stateAt(row, column);
      if (state === 0 || state === ABSENT) continue;
      context.beginPath();
      context.arc((column + 0.5) * cell, (row + 0.5) * height, radius, 0, 2 * Math.PI);
      context.fillStyle = colour(`--state-${state}`);
      context.strokeStyle = colour("--paper");
      context.lineWidth = 1.25;
      context.stroke();
      context.fill();
    }
  }
}

/** Build the map of a grid, with its ticks; `cursor` {row, column} is kept up to date. */
function heatMap(grid, { name, cursor, height, showStates, columnLabel }) {
  const canvas = html("canvas", { width: grid.columns, height: grid.rows });
  const image = new ImageData(grid.columns, grid.rows);
  grid.paint(new Uint32Array(image.data.buffer));
  canvas.getContext("2d").putImageData(image, 0, 0);
  const mark = html("div", { class: "cursor" });
  const field = html("div", { class: "field", style: `height: ${grid.rows * height}px` }, canvas);
  const line = height >= 13 ? Math.min(18, height) : 18;
  const labels = html("div", { class: "labels", style: `height: ${grid.rows * height}px`, "aria-hidden": "true" },
    ...grid.labels.map(([row, text]) => html("span", { title: text, style: `position: absolute; right: 0.75rem; max-width: calc(100% - 0.75rem); top: ${Math.max(0, (row + 0.5) * height - line / 2)}px; line-height: ${line}px` }, text)));
  labels.append(html("span", { style: "visibility: hidden; height: 0" }, d3.greatest(grid.labels, ([, text]) => text.length)?.[1] ?? ""));
  const map = html("div", { class: "map", tabindex: "0", role: "application", "aria-label": `${name}. Arrow keys move, Enter opens, Escape goes back.` }, labels, field);
  field.append(mark);

  const show = (row, column, isSpoken) => {
    Object.assign(cursor, { row: Math.max(0, Math.min(grid.rows - 1, row)), column: Math.max(0, Math.min(grid.columns - 1, column)) });
    mark.style.cssText = `display: block; left: ${(100 * cursor.column) / grid.columns}%; width: ${100 / grid.columns}%; top: ${cursor.row * height}px; height: ${height}px; min-width: 4px; min-height: 4px`;
    const content = grid.content(cursor.row, cursor.column);
    if (isSpoken) {
      const top = cursor.row * height;
      if (top < map.scrollTop || top + height > map.scrollTop + map.clientHeight) map.scrollTop = top - map.clientHeight / 2;
      speak(content);
    }
    const box = field.getBoundingClientRect();
    return [content, box.left + ((cursor.column + 1) / grid.columns) * box.width, box.top + (cursor.row + 1) * height];
  };
  const cellAt = (event) => {
    const box = field.getBoundingClientRect();
    return [Math.floor((event.clientY - box.top) / height), Math.floor(((event.clientX - box.left) / box.width) * grid.columns)];
  };
  const leave = () => {
    mark.style.display = "none";
    hideTip();
  };
  field.addEventListener("pointermove", (event) => {
    const [content] = show(...cellAt(event), false);
    showTip(content, event.clientX, event.clientY);
  });
  field.addEventListener("pointerleave", leave);
  map.addEventListener("blur", leave);
  field.addEventListener("click", (event) => grid.open(cellAt(event)[0]));
  map.addEventListener("keydown", (event) => {
    const page = Math.max(1, Math.floor(map.clientHeight / height) - 1);
    const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0], PageUp: [-page, 0], PageDown: [page, 0], Home: [0, -Infinity], End: [0, Infinity] }[event.key];
    if (event.key === "Enter") grid.open(cursor.row);
    else if (move !== undefined) {
      const [content, x, y] = show(cursor.row + move[0], cursor.column + move[1], true);
      showTip(content, x, y);
    } else return;
    event.preventDefault();
    event.stopPropagation();
  });
  const ticks = html("div", { class: "ticks", "aria-hidden": "true" });
  const more = html("p", { class: "how" });
  const frame = html("div", { class: "lattice" }, map, html("div", { style: "display: grid" }, ticks), more);
  drawToFit(field, (width) => {
    ticks.style.marginLeft = `${labels.offsetWidth}px`;
    ticks.style.width = `${width}px`;
    const every = Math.max(1, Math.ceil(grid.columns / Math.max(2, Math.floor(width / 90))));
    ticks.replaceChildren(...d3.range(0, grid.columns, every).map((column) => html("span", { style: `left: ${(100 * (column + 0.5)) / grid.columns}%` }, columnLabel(column))));
    const inView = Math.floor(map.clientHeight / height);
    more.textContent = inView < grid.rows ? `${count(inView)} of ${count(grid.rows)} rows are in view; scroll for the others.` : "";
    field.querySelector(".marks")?.remove();
    if (!showStates) return;
    const marks = html("canvas", { class: "marks", width, height: grid.rows * height });
    drawStates(marks, grid, height);
    mark.before(marks);
  });
  return frame;
}
