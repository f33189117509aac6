// The model as a picture: boxes from input to output, places as brackets, grafts as leaves.

/** How many grafts that were not kept are drawn at each place: fewer where there are many. */
function refusedShown(grafts) {
  return grafts.length > 30 ? 1 : 4;
}

/** The grafts of a place that are drawn: all that were kept or are open, and the last ones that were not. */
function drawnGrafts(grafts, most) {
  const refused = grafts.filter((graft) => fate(graft.outcome) === "refused");
  const left = new Set(refused.slice(0, Math.max(0, refused.length - most)));
  return { drawn: grafts.filter((graft) => !left.has(graft)), left: left.size };
}

/** The strongest fate among grafts, for their place. */
function placeFate(grafts) {
  const fates = grafts.map((graft) => fate(graft.outcome));
  return ["kept", "open", "refused"].find((one) => fates.includes(one)) ?? "";
}

/** What became of each seed of each layer: layer_id -> seed or "all" -> fate. */
function fatesOfSeeds(grafts) {
  const fates = new Map();
  for (const graft of grafts) {
    const seed = /, seed (\d+)/.exec(graft.label);
    const of = fates.get(graft.layer_id) ?? fates.set(graft.layer_id, new Map()).get(graft.layer_id);
    if (fate(graft.outcome) !== "refused") of.set(seed ? Number(seed[1]) : "all", fate(graft.outcome));
  }
  return fates;
}

/** Whether a place begins and ends at boxes of its own, and not inside closed ones; a colony, whether it meets several. */
function isSeen({ kind, covers }, boxes) {
  if (kind === "colony") return new Set(covers.map((name) => boxOf(boxes, name))).size > 1;
  return [...covers.slice(0, 1), ...covers.slice(-1)].every((name) => boxes.some((box) => box.members.length === 1 && box.module.name === name));
}

/** Brackets of places beside the boxes, with where their leaves grow. */
function placeBrackets(anatomy, boxes, { right, deepest }) {
  const whole = { top: d3.min(boxes, (box) => box.y), bottom: d3.max(boxes, (box) => box.y + box.height), right, centre: boxes[0].x + boxes[0].width / 2 };
  const sites = anatomy.places
    .map((place) => ({ place, grafts: anatomy.grafts.filter((graft) => graft.layer_id === place.layer_id), ...extent(place, boxes, whole) }))
    .filter((site) => site.top !== undefined && (site.grafts.length > 0 || isSeen(site.place, boxes)));
  const brackets = nestBrackets(sites.filter(({ place }) => place.kind !== "layer"));
  const depth = d3.max(brackets, (bracket) => bracket.depth) ?? 0;
  const step = Math.min(46, (deepest - right - 30) / Math.max(1, depth));
  for (const bracket of brackets) {
    const out = bracket.stops ? 0 : Math.min(5 + 2.5 * (bracket.depth - 1), GAP / 2 + (bracket.isWhole ? 4 : 0));
    Object.assign(bracket, { top: bracket.top - out, bottom: bracket.bottom + out, x: right + 16 + (bracket.depth - 0.5) * step, fate: placeFate(bracket.grafts) });
  }
  for (const site of sites) if (site.place.kind === "layer") Object.assign(site, { x: site.right, fate: placeFate(site.grafts) });
  return { sites, brackets };
}

/** The leaves of all places, with the labels spread over the height. */
function growLeaves(sites, most, shown, narrow, top) {
  const leaves = sites.flatMap((site) => {
    const { drawn, left } = drawnGrafts(site.grafts, shown);
    const middle = (site.top + site.bottom) / 2;
    const room = Math.min(30, (site.bottom - site.top) / Math.max(1, drawn.length));
    return drawn.map((graft, i) => ({
      graft, fate: fate(graft.outcome), px: site.x, py: middle + (i - (drawn.length - 1) / 2) * room, left: i === 0 ? left : 0,
      size: (narrow ? 16 : 26) + (narrow ? 12 : 28) * Math.sqrt((graft.parameters ?? 0) / most),
    }));
  });
  for (const leaf of leaves) Object.assign(leaf, { want: leaf.py - leaf.size * 0.5, height: leaf.left > 0 ? 56 : 40 });
  const sorted = d3.sort(leaves, (leaf) => leaf.want);
  return { leaves: sorted, edge: spread(sorted, top) };
}

/** The line that the data take, with input and output. */
function trunk(boxes, bottom) {
  const x = boxes[0].x + boxes[0].width / 2;
  const part = (from, to) => svg("path", { class: "trunk", d: `M${x},${from} V${to}` });
  const gaps = (siblings) => siblings.flatMap((box, i) => [...(i > 0 ? [part(siblings[i - 1].y + siblings[i - 1].height, box.y)] : []), ...gaps(box.children)]);
  const arrow = svg("path", { d: `M${x},${bottom + 44} l-4,-7 h8 z`, style: "fill: var(--host)" });
  return svg("g", {}, part(18, boxes[0].y), ...gaps(boxes), part(bottom, bottom + 38), arrow,
    svg("text", { x, y: 12, "text-anchor": "middle" }, "input"), svg("text", { x, y: bottom + 60, "text-anchor": "middle" }, "output"));
}

/** The whole picture for a width. */
function drawModel(width, anatomy, open, summary, toggle) {
  const narrow = width < 640;
  const boxWidth = narrow ? Math.round(width * 0.42) : Math.min(340, Math.round(width * 0.38));
  const labelWidth = narrow ? Math.round(width * 0.31) : Math.min(330, Math.round(width * 0.36));
  const { boxes, bottom } = layOut(anatomy, open, { x: 1, y: 46, width: boxWidth, inset: narrow ? 6 : 12 });
  const flat = flatten(boxes);
  const labelX = width - labelWidth;
  const { sites, brackets } = placeBrackets(anatomy, flat, { right: boxWidth + 1, deepest: labelX - (narrow ? 14 : 34) });
  const most = Math.max(1, ...allModules(anatomy.modules).map((module) => module.parameters), ...anatomy.grafts.map((graft) => graft.parameters ?? 0));
  const { leaves, edge } = growLeaves(sites, most, refusedShown(anatomy.grafts), narrow, 24);
  const placesByModule = d3.group(anatomy.places.filter((place) => place.kind !== "colony" && place.covers.length === 1), (place) => place.covers[0]);
  const piecesByModule = d3.group(anatomy.places.flatMap((place) => place.pieces.map((piece) => ({ ...piece, label: place.label }))), (piece) => piece.module);
  const height = Math.max(bottom + 68, edge + 8);
  const drawing = picture(width, height, { class: "anatomy", role: "group", "aria-label": summary });
  const seedFates = fatesOfSeeds(anatomy.grafts);
  const boxNodes = flat.map((box) => {
    const node = boxMark(box, placesByModule, piecesByModule, seedFates);
    if (box.module.children.length > 0) onPress(node, () => toggle(box));
    return node;
  });
  const graftNodes = leaves.map((leaf) => graftMark(leaf, labelX, labelWidth, narrow));
  drawing.append(trunk(boxes, bottom), ...boxNodes, ...d3.sort(brackets, (one) => one.fate === "kept").map(bracketMark), ...graftNodes);
  roam([...drawing.querySelectorAll(".graft"), ...boxNodes]);
  return drawing;
}

/** Do something on a click, Enter or the space bar. */
function onPress(node, act) {
  node.addEventListener("click", act);
  node.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    act();
  });
}

/** The picture of the model. */
function startAnatomy({ anatomy }) {
  return startChart("anatomy", (box, summary) => {
    const open = remembered("anatomy", () => openAtFirst(anatomy));
    const toggle = ({ members }) => {
      for (const module of members) open.has(module.name) ? open.delete(module.name) : open.add(module.name);
      hideTip();
      draw(Math.floor(box.clientWidth));
    };
    const draw = (width) => box.replaceChildren(drawModel(width, anatomy, open, summary, toggle));
    drawToFit(box, draw);
  });
}
