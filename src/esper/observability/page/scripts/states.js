// The states of a seed: their codes, colours and what becomes of a graft.

const STATES = ["DORMANT", "GERMINATED", "TRAINING", "GRAFTING", "STABILIZATION", "EVALUATING", "FINE_TUNING", "FOSSILIZED", "CULLED", "CANCELLED", "ROLLED_BACK"];

/** The colour of a state, as a style sheet variable. */
function stateColour(state) {
  return `var(--state-${STATES.indexOf(state)})`;
}

/** What became of a graft: kept, refused, or still open. */
function fate(outcome) {
  return outcome === "FOSSILIZED" ? "kept" : outcome === null || outcome === undefined ? "open" : "refused";
}

/** The end of a lifecycle in words. */
function ending(outcome, reason) {
  if (outcome === "FOSSILIZED") return "kept";
  if (outcome === null || outcome === undefined) return "still open";
  const why = reason ? `: ${words(reason)}` : "";
  return (outcome === "CULLED" ? "refused" : words(outcome).toLowerCase()) + why;
}

/** A key that names the states which occur. */
function stateKey(names) {
  const shown = STATES.filter((state) => names.has(state));
  return html("ul", { class: "key", "aria-label": "States" }, ...shown.map((state) => html("li", {}, html("i", { style: `background: ${stateColour(state)}` }), words(state).toLowerCase())));
}
