// Controls above a chart.

let groups = 0;

/** A row of alternatives, of which one is chosen. */
function oneOf(name, options, chosen, onChange) {
  const group = `choice-${groups++}`;
  const labels = options.map(([value, text]) => {
    const input = html("input", { type: "radio", name: group, value });
    input.checked = value === chosen;
    input.addEventListener("change", () => onChange(value));
    return html("label", {}, input, html("span", {}, text));
  });
  return html("fieldset", { "aria-label": name }, html("legend", { class: "unseen" }, name), ...labels);
}

/** A box to tick. */
function tick(text, isOn, onChange) {
  const input = html("input", { type: "checkbox" });
  input.checked = isOn;
  input.addEventListener("change", () => onChange(input.checked));
  return html("label", { class: "check" }, input, html("span", {}, text));
}
