// The parts of the picture of the model: boxes, brackets, leaves.

/** Words of a box: one module, or a run of equal ones. */
function boxName({ members }) {
  return members.length === 1 ? members[0].name : `${members[0].name} \u2026 ${members.at(-1).name}`;
}

const PIECES = { beside: "beside it", copy: "a copy behind it" };

/** What the tooltip says about a box. */
function boxContent(box, placesByModule, piecesByModule) {
  const { members, module } = box;
  const pairs = [["parameters", count(d3.sum(members, (one) => one.parameters))]];
  for (const place of placesByModule.get(module.name) ?? []) pairs.push([`seeds (${place.kind})`, count(place.seeds)], ["channels", `${count(place.inputs)} \u2192 ${count(place.outputs)}`]);
  for (const [label, pieces] of d3.group(piecesByModule.get(module.name) ?? [], (piece) => piece.label)) pairs.push([`colony ${label}`, pieces.map(({ role }) => PIECES[role] ?? "more channels").join(", ")]);
  const note = module.children.length === 0 ? null : box.isOpen ? "A click or Enter closes it." : members.length > 1 ? `${members.length} equal parts. A click or Enter opens them.` : "A click or Enter opens it.";
  return { title: `${boxName(box)}: ${module.type}`, pairs, note };
}

/** The name within the box around it, and the type and the parameters as far as there is room. */
function boxWords(box, isBare, middle) {
  const { x, width, members, module, parent } = box;
  const inside = (name) => (parent && name.startsWith(`${parent}.`) ? name.slice(parent.length + 1) : name);
  const name = members.length === 1 ? inside(module.name) : `${inside(module.name)} \u2026 ${inside(members.at(-1).name)}`;
  const total = d3.sum(members, (one) => one.parameters);
  const amount = isBare ? "" : width < 220 ? large(total) : count(total);
  const margin = width < 220 ? 7 : 12;
  const room = width - 2 * margin - textWidth(amount) - 8;
  const typeAt = textWidth(name, true) + 8;
  const at = { y: middle, dy: "0.33em" };
  return [
    label(name, room, { class: "strong", x: x + margin, ...at }),
    room - typeAt > 30 ? label(members.length > 1 ? `${members.length} \u00d7 ${module.type}` : module.type, room - typeAt, { x: x + margin + typeAt, ...at }) : null,
    svg("text", { x: x + width - margin, "text-anchor": "end", ...at }, amount),
  ].filter((text) => text !== null);
}

/** The box of a module. */
function boxMark(box, placesByModule, piecesByModule, seedFates) {
  const { x, y, width, height, members, module, isOpen } = box;
  const isContainer = module.children.length > 0;
  const content = boxContent(box, placesByModule, piecesByModule);
  const node = svg("g", { class: isContainer ? "module fold" : "module", role: isContainer ? "button" : "img", "aria-label": tipText(content), "aria-expanded": isContainer ? String(isOpen) : null });
  if (members.length > 1) for (const shift of [8, 4]) node.append(svg("rect", { class: "container", x: x + shift, y: y + shift, width, height, rx: 5 }));
  const isBare = !isContainer && module.parameters === 0;
  node.append(svg("rect", { class: isContainer ? "container" : isBare ? "bare" : "box", x, y, width, height, rx: isBare ? height / 2 : 5 }));
  const seeds = (placesByModule.get(module.name) ?? []).find((place) => place.kind === "layer");
  const middle = isOpen ? y + 19 : y + height / 2 - (seeds && !isContainer ? 4 : 0);
  node.append(...boxWords(box, isBare, middle));
  if (seeds && !isContainer) node.append(seedTicks(seeds, seedFates, { x: x + 12, y: y + height - 9, width: width - 24 }));
  return explain(node, content);
}

/** The seeds of a layer as ticks, coloured where something grows. */
function seedTicks(place, seedFates, { x, y, width }) {
  const shown = Math.min(place.seeds, Math.floor(width / 3));
  const fates = seedFates.get(place.layer_id) ?? new Map();
  const ticks = d3.range(shown).map((i) => {
    const from = Math.floor((i * place.seeds) / shown);
    const to = Math.floor(((i + 1) * place.seeds) / shown);
    const fate = fates.get("all") ?? d3.range(from, to).map((seed) => fates.get(seed)).find(Boolean) ?? "";
    return svg("rect", { class: `seed ${fate}`, x: x + (i * width) / shown, y, width: Math.max(1, width / shown - 1), height: 3 });
  });
  return svg("g", {}, ...ticks);
}

/** The line of a place beside its boxes, from what it reads to what it adds to. */
function bracketMark(bracket) {
  const { top, bottom, right, x, centre, fate, stops } = bracket;
  if (stops) return colonyMark(bracket);
  const r = Math.min(14, (bottom - top) / 2, x - right);
  const from = fate === "kept" ? centre : right + 3;
  const node = svg("g", {}, svg("path", { class: `bracket ${fate}`, d: `M${from},${top} H${x - r} q${r},0 ${r},${r} V${bottom - r} q0,${r} ${-r},${r} H${from}` }));
  if (fate === "kept") {
    node.append(svg("circle", { cx: centre, cy: bottom, r: 7, style: "fill: var(--growth)" }), svg("path", { d: `M${centre - 3.5},${bottom} h7 M${centre},${bottom - 3.5} v7`, style: "stroke: var(--paper); stroke-width: 1.75" }));
    node.append(svg("circle", { cx: centre, cy: top, r: 3, style: "fill: var(--growth)" }));
  }
  return node;
}

/** The line of a colony, with an arm to every box that it meets. */
function colonyMark({ stops, top, bottom, x, fate }) {
  const arms = stops.map((stop) => `M${stop.x + 3},${stop.y} H${x}`).join(" ");
  const line = (kind, d) => svg("path", { class: `bracket ${fate} ${kind}`, "stroke-linecap": "round", d });
  const node = svg("g", { class: `colony ${fate || "idle"}` }, line("arms", arms), line("", `M${x},${top} V${bottom}`));
  if (fate === "kept") node.append(...stops.map((stop) => svg("circle", { cx: stop.x, cy: stop.y, r: 4.5, style: "fill: var(--growth)" })));
  return node;
}

/** What the tooltip says about a graft. */
function graftContent(graft) {
  const pairs = [
    ["parameters", graft.parameters === null ? "not known yet" : `+${count(graft.parameters)}`],
    ["gain over its twin", graft.gain === null ? MISSING : interval(graft.gain)],
    ["steps", graft.ended_step === null ? `from ${count(graft.born_step)}` : `${count(graft.born_step)} to ${count(graft.ended_step)}`],
    ...Object.entries(graft.settings ?? {}).map(([name, value]) => [words(name), plainly(value)]),
  ];
  return { title: graft.label, pairs, note: `${ending(graft.outcome, graft.reason)}${graft.state ? ` (${words(graft.state).toLowerCase()})` : ""}` };
}

/** A leaf with its stem's end at a point. */
function leafMark({ px, py, size }, fate) {
  const wide = size * 0.42;
  const outline = `M0,0 C${size * 0.12},${-wide} ${size * 0.62},${-wide} ${size},0 C${size * 0.62},${wide} ${size * 0.12},${wide} 0,0 Z`;
  const leaf = svg("g", { class: "leaf-place", transform: `translate(${px},${py}) rotate(-30)` }, svg("path", { class: `leaf ${fate}`, d: outline }));
  if (fate === "kept") leaf.append(svg("path", { class: "vein", d: `M2,0 H${size * 0.86} ${[0.26, 0.46, 0.66].map((at) => `M${size * at},0 l${size * 0.16},${-wide * 0.48} M${size * at},0 l${size * 0.16},${wide * 0.48}`).join(" ")}` }));
  return leaf;
}

/** A graft: leaf, leader and label. */
function graftMark(one, labelX, labelWidth, narrow) {
  const { graft, fate } = one;
  const content = graftContent(graft);
  const middle = one.y + 20;
  const tipX = one.px + one.size * 0.87 + 3;
  const tipY = one.py - one.size * 0.5 - 1;
  const size = graft.parameters === null ? "" : `+${count(graft.parameters)}`;
  const gain = graft.gain === null ? "" : `, gain ${signed(graft.gain.mean)}`;
  const said = ending(graft.outcome, null);
  const brief = `${size}, ${said}`;
  const isBrief = narrow && textWidth(brief) <= labelWidth + 4;
  const second = size === "" || (narrow && !isBrief) ? said : isBrief ? brief : `${size} parameters${gain}, ${said}`;
  const node = svg("g", { class: `graft ${fate}`, role: "img", "aria-label": tipText(content) },
    svg("path", { class: "leader", d: `M${tipX},${tipY} C${(tipX + labelX) / 2},${tipY} ${(tipX + labelX) / 2},${middle} ${labelX - 5},${middle}` }),
    svg("rect", { x: labelX - 4, y: one.y, width: labelWidth + 4, height: one.height, fill: "transparent" }),
    leafMark(one, fate),
    label(narrow ? graft.blueprint : graft.label, labelWidth + 4, { class: "strong", x: labelX, y: middle - 3 }),
    label(second, labelWidth + 4, { x: labelX, y: middle + 13 }),
    one.left > 0 ? label(`and ${count(one.left)} more, not kept`, labelWidth + 4, { x: labelX, y: middle + 29 }) : null);
  return explain(node, content);
}
