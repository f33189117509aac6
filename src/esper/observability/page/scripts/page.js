// What every chart stands on: the data, making elements, and redrawing when the page changes.

const SVG = "http://www.w3.org/2000/svg";

/** The data that the report was written with. */
function readData() {
  return JSON.parse(document.getElementById("report-data").textContent);
}

/** Set attributes (null leaves one out) and append children (text becomes a text node, never markup). */
function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) if (value !== null && value !== undefined) node.setAttribute(name, value);
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** A new HTML element. */
function html(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** A new SVG element. */
function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

/** An SVG drawing of a size in pixels that shrinks with its box. */
function picture(width, height, attributes, ...children) {
  return svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, ...attributes }, ...children);
}

const ruler = document.createElement("canvas").getContext("2d");

/** Width of a text in an SVG in pixels, rounded up. */
function textWidth(text, isStrong = false) {
  ruler.font = `${isStrong ? 600 : 400} 12px ${getComputedStyle(document.body).fontFamily}`;
  return Math.ceil(ruler.measureText(text).width);
}

/** Text in an SVG, cut with an ellipsis so that it takes `width` pixels at most. */
function label(text, width, attributes) {
  const isStrong = attributes.class === "strong";
  if (textWidth(text, isStrong) <= width) return svg("text", attributes, text);
  const letters = [...text];
  const most = d3.bisector((size) => textWidth(`${letters.slice(0, size).join("")}\u2026`, isStrong)).right(d3.range(1, letters.length), width);
  return svg("text", attributes, `${letters.slice(0, Math.max(1, most)).join("")}\u2026`);
}

/** The value of a colour variable of the style sheet, as the page shows it now. */
function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** Call `draw(width)` now and whenever the width of `box` changes. */
function drawToFit(box, draw) {
  let width = 0;
  const fit = () => {
    const now = Math.floor(box.clientWidth);
    if (now === width || now === 0) return;
    width = now;
    draw(width);
  };
  new ResizeObserver(() => requestAnimationFrame(fit)).observe(box);
  fit();
}

const coloured = new Map();
for (const query of ["(prefers-color-scheme: dark)", "print"]) matchMedia(query).addEventListener("change", () => coloured.forEach((draw) => draw()));

/** Call `draw()` whenever colours change: light, dark, print. Each chart has one. */
function onColours(name, draw) {
  coloured.set(name, draw);
}

const choices = new Map();

/** What a reader has chosen in a chart; it stays when the chart is drawn anew with more data. */
function remembered(name, atFirst) {
  return choices.get(name) ?? choices.set(name, atFirst()).get(name);
}

/** Forget all that was chosen: another run is shown. */
function forgetChoices() {
  choices.clear();
  coloured.clear();
}

/** Start a chart in its figure, if the page has it; an error in one chart leaves the others alone and is told in its place. */
async function startChart(name, start) {
  const figure = document.querySelector(`figure[data-chart="${name}"]`);
  if (figure === null) return;
  const box = figure.querySelector(".drawing");
  box.style.minHeight = `${box.offsetHeight}px`; // or the page would jump while it is drawn anew
  try {
    const drawing = start(box, document.getElementById(`${name}-summary`).textContent);
    box.style.minHeight = "";
    await drawing;
  } catch (error) {
    sayInstead(box, "This picture could not be drawn. The sentences and tables tell the same.");
    throw error;
  }
}

/** A sentence in the place of a picture. */
function sayInstead(box, text) {
  box.replaceChildren(html("p", { class: "empty" }, text));
}

/** Draw the first of many items, and a button that shows all of them. `draw(items, width)` returns what is shown. */
function drawFirst(box, items, most, name, draw) {
  const place = html("div");
  const choice = remembered(`all ${name}`, () => ({ isAll: false }));
  let [shown, width] = [choice.isAll ? items : items.slice(0, most), 0];
  const redraw = () => place.replaceChildren(...draw(shown, width));
  box.append(place);
  if (items.length > shown.length) {
    const more = html("button", { type: "button", class: "plain" }, `Show all ${count(items.length)} ${name}`);
    more.addEventListener("click", () => {
      shown = items;
      choice.isAll = true;
      redraw();
      more.remove();
      place.querySelector("[tabindex='0']")?.focus({ preventScroll: true });
    });
    box.append(more);
  }
  drawToFit(place, (now) => {
    width = now;
    redraw();
  });
}

/** Open what is folded while the page is printed. */
function openForPrint() {
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    for (const part of closed) part.open = true;
  });
  addEventListener("afterprint", () => {
    for (const part of closed) part.open = false;
  });
}

/** Mark in the table of contents the section that is being read. */
function followReading() {
  const links = new Map([...document.querySelectorAll(".contents a")].map((link) => [link.hash.slice(1), link]));
  const parts = [...links.keys()].map((id) => document.getElementById(id)).filter((part) => part !== null);
  const mark = () => {
    const reached = parts.filter((part) => part.getBoundingClientRect().top < innerHeight / 3);
    const current = reached.at(-1) ?? parts[0];
    for (const [id, link] of links) id === current?.id ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current");
  };
  addEventListener("scroll", mark, { passive: true });
  mark();
}
