// Commands to the run that is shown: asked for in a form, confirmed in a dialog, sent with the token in a header.

const asking = document.getElementById("commands");
const fields = asking.querySelector("form").elements;
const said = document.getElementById("said");

/** Offer what the run that is shown can be asked. */
function offerCommands(data) {
  const places = data.anatomy?.places ?? [];
  const grafts = data.anatomy?.grafts ?? [];
  const isCancel = fields.action.value === "cancel";
  const open = new Set(grafts.filter((graft) => fate(graft.outcome) === "open").map((graft) => graft.layer_id));
  const offered = places.filter((place) => !isCancel || open.has(place.layer_id));
  if ([...fields.layer_id.options].map((option) => option.value).join("\n") !== offered.map((place) => place.layer_id).join("\n") || fields.layer_id.options.length !== offered.length) {
    const chosen = fields.layer_id.value;
    fields.layer_id.replaceChildren(...offered.map((place) => html("option", { value: place.layer_id }, place.label)));
    if (offered.some((place) => place.layer_id === chosen)) fields.layer_id.value = chosen;
  }
  document.getElementById("blueprints").replaceChildren(...[...new Set(grafts.map((graft) => graft.blueprint))].filter(Boolean).map((value) => html("option", { value })));
  for (const label of asking.querySelectorAll("label[data-for]")) {
    label.hidden = !label.dataset.for.split(" ").includes(fields.action.value);
    for (const input of label.querySelectorAll("input, select")) input.disabled = label.hidden;
  }
}

/** The fields of the message that the form asks for. */
function commandFields(run) {
  const content = { run_id: run, reason: fields.reason.value };
  if (fields.action.value === "rollback") return content;
  Object.assign(content, { layer_id: fields.layer_id.value, seed_ids: fields.seed.value === "all" ? "all" : Number(fields.seed.value) });
  if (fields.action.value === "germinate") Object.assign(content, { blueprint: fields.blueprint.value, settings: JSON.parse(fields.settings.value || "{}"), trial: fields.trial.value });
  return content;
}

/** Ask the reader once more; true if it is meant. */
function isMeant(question) {
  const dialog = asking.querySelector("dialog");
  dialog.querySelector("#question").textContent = question;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((done) => dialog.addEventListener("close", () => done(dialog.returnValue === "yes"), { once: true }));
}

/** Send what the form asks for, if it is meant, and say what became of it. */
async function sendCommand(run) {
  const action = fields.action.value;
  let content;
  try {
    content = commandFields(run);
  } catch {
    said.textContent = "The settings are no JSON object. Write for example {\"hidden\": 16}.";
    return;
  }
  const where = content.layer_id === undefined ? "to go back to its last good state" : `to ${action} ${content.blueprint ? `${content.blueprint} ` : ""}at ${fields.layer_id.selectedOptions[0]?.textContent}, seed ${content.seed_ids}`;
  if (!(await isMeant(`Ask the run ${run} ${where}? This changes the run.`))) return;
  const headers = { Authorization: `Bearer ${fields.token.value}`, "Content-Type": "application/json" };
  try {
    const response = await fetch("commands", { method: "POST", headers, body: JSON.stringify({ action, fields: content }) });
    said.textContent = response.ok ? "" : (await response.json()).said;
  } catch {
    said.textContent = "The server does not answer: nothing was asked.";
  }
}

/** Let the form work. */
function startCommands(shown) {
  fields.action.addEventListener("change", () => offerCommands(shown.data));
  asking.querySelector("form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (shown.run !== null) sendCommand(shown.run);
  });
}
