// Colours of the lattice: a scale for each measure, states, and the legend.

const SHARES = new Set(["inactive_ratio", "mean_abs_correlation"]);

/** How a measure maps to 0..1: shares linearly, the others by their logarithm. */
function measureScale(key, codes) {
  if (SHARES.has(key)) return { scale: d3.scaleLinear([0, 1], [0, 1]).clamp(true), isLog: false };
  const [low, high] = valueRange(codes);
  return { scale: d3.scaleLog(low === high ? [low / 2 || 0.1, high * 2 || 1] : [low || 1e-40, high || 1], [0, 1]).clamp(true), isLog: true };
}

/** A colour as the number that an ImageData holds (little endian). */
function packed(text) {
  const { r, g, b } = d3.rgb(text);
  return ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
}

/** The ramp from low to high as 256 packed colours. */
function heatRamp() {
  const ramp = d3.interpolateRgbBasis(d3.range(5).map((i) => colour(`--heat-${i}`)));
  return Uint32Array.from({ length: 256 }, (_, i) => packed(ramp(i / 255)));
}

/** The packed colour of a value; nothing where it is missing. */
function valueColour(value, { scale, isLog }, ramp) {
  if (Number.isNaN(value)) return 0;
  return ramp[Math.round(255 * (isLog && value <= 0 ? 0 : scale(value)))];
}

/** Packed colours of all codes of a measure. */
function codeColours(scale, ramp) {
  return Uint32Array.from(VALUES, (value) => valueColour(value, scale, ramp));
}

/** Packed colours of all states; asleep is the lowest of the ramp, absent nothing. */
function stateColours(ramp) {
  const colours = new Uint32Array(256);
  colours[0] = ramp[0];
  for (let state = 1; state < STATES.length; state++) colours[state] = packed(colour(`--state-${state}`));
  return colours;
}

/** The legend of a measure: its ramp with values below. */
function measureLegend(name, { scale, isLog }, ramp) {
  const canvas = html("canvas", { width: 256, height: 1 });
  const image = new ImageData(256, 1);
  new Uint32Array(image.data.buffer).set(ramp);
  canvas.getContext("2d").putImageData(image, 0, 0);
  const ticks = d3.range(5).map((i) => html("span", { style: `left: ${25 * i}%` }, `${isLog ? { 0: "\u2264 ", 4: "\u2265 " }[i] ?? "" : ""}${short(Number(scale.invert(i / 4).toPrecision(2)))}`));
  return html("div", { class: "legend" }, `${name}${isLog ? ", logarithmic" : ""}`, canvas, html("div", { class: "ticks" }, ...ticks));
}
