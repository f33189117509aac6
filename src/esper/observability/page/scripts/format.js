// Numbers as a reader wants them.

const MISSING = "not measured";

/** Three significant digits, for labels. */
function short(value) {
  if (value === null || value === undefined) return MISSING;
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1e5 || size < 1e-3 ? value.toExponential(1).replace("e+", "e") : String(Number(value.toPrecision(3)));
}

/** Six significant digits, for tooltips. */
function exact(value) {
  if (value === null || value === undefined) return MISSING;
  const size = Math.abs(value);
  return value !== 0 && (size >= 1e7 || size < 1e-4) ? value.toExponential(3).replace("e+", "e") : String(Number(value.toPrecision(6)));
}

/** A count in full, with commas. */
function count(value) {
  return value === null || value === undefined ? MISSING : d3.format(",")(value);
}

/** A large count with a letter: 147.8 M. */
function large(value) {
  if (value === null || value === undefined) return MISSING;
  if (value < 1000) return String(Math.round(value));
  const text = d3.format(".4~s")(value);
  return `${text.slice(0, -1)}\u202f${text.at(-1)}`;
}

/** A change with its sign. */
function signed(value) {
  return value === null || value === undefined ? MISSING : (value > 0 ? "+" : "") + short(value).replace("-", "\u2212");
}

/** A gain with its interval, where there is one. */
function interval({ mean, low, high }) {
  return low === null || high === null ? signed(mean) : `${signed(mean)} (${signed(low)} to ${signed(high)})`;
}

/** One measured value of any kind, as text. */
function plainly(value) {
  if (typeof value === "number") return exact(value);
  if (typeof value === "boolean") return value ? "yes" : "no";
  return value === null || value === undefined ? MISSING : typeof value === "object" ? JSON.stringify(value) : String(value);
}

/** A name from the record as words: `lost_round` becomes "lost round". */
function words(name) {
  return String(name).replaceAll("_", " ");
}
