// Where the boxes of the model stand: nesting, folding, sizes. Measures in pixels.

const GAP = 18;
const MOST_BOXES = 36;
const FOLDED_HEIGHT = 34;

/** All modules of a tree, parents before children. */
function allModules(modules) {
  return modules.flatMap((module) => [module, ...allModules(module.children)]);
}

/** What makes two modules look the same. */
function signature(module) {
  return `${module.type}/${module.parameters}(${module.children.map(signature).join()})`;
}

/** Names of modules, and of all around them, at which a place with a graft begins or ends. A colony grows alike in equal parts, which may stay folded. */
function grownNames({ places, grafts }) {
  const grown = new Set(grafts.map((graft) => graft.layer_id));
  const names = places.filter((place) => place.kind !== "colony" && grown.has(place.layer_id)).flatMap((place) => [...place.covers.slice(0, 1), ...place.covers.slice(-1)]);
  return new Set(names.flatMap((name) => name.split(".").map((_, i, parts) => parts.slice(0, i + 1).join("."))));
}

/** Which containers are open at first: all in a small model, else those in which something grew. */
function openAtFirst(anatomy) {
  const modules = allModules(anatomy.modules);
  if (modules.length <= MOST_BOXES) return new Set(modules.map((module) => module.name));
  const grown = grownNames(anatomy);
  const inside = new Set([...grown].map((name) => name.split(".").slice(0, -1).join(".")));
  const open = new Set(modules.filter((module) => inside.has(module.name)).map((module) => module.name));
  if (anatomy.modules.length === 1) open.add(anatomy.modules[0].name);
  for (const module of anatomy.modules) if (module.children.length > 0 && module.children.length <= 16) open.add(module.name);
  return open;
}

/** Siblings as they are shown: runs of three or more closed equals in which nothing grew become one. */
function foldEquals(siblings, open, grown) {
  const groups = [];
  for (const module of siblings) {
    const last = groups.at(-1);
    const isPlain = !open.has(module.name) && !grown.has(module.name) && module.children.length > 0;
    if (last?.isPlain && isPlain && last.look === signature(module)) last.members.push(module);
    else groups.push({ isPlain, look: signature(module), members: [module] });
  }
  return groups.flatMap(({ members }) => (members.length < 3 ? members.map((module) => [module]) : [members]));
}

/** Boxes from input to output: {members, x, y, width, height, isOpen, parent, children}; returns them and the height of all. */
function layOut(anatomy, open, { x, y, width, inset }) {
  const grown = grownNames(anatomy);
  const most = Math.max(1, ...allModules(anatomy.modules).filter((module) => module.children.length === 0).map((module) => module.parameters));
  const inLayers = new Set(anatomy.places.filter((place) => place.kind === "layer").flatMap((place) => place.covers));
  const stack = (siblings, left, top, wide, parent) => {
    let down = top;
    const boxes = foldEquals(siblings, open, grown).map((members) => {
      const [module] = members;
      const isOpen = members.length === 1 && module.children.length > 0 && open.has(module.name);
      const box = { members, module, x: left, y: down, width: wide, isOpen, parent, children: [] };
      if (isOpen) {
        const inner = stack(module.children, left + inset, down + 30, wide - 2 * inset, module.name);
        box.children = inner.boxes;
        box.height = inner.bottom - down + inset;
      } else box.height = module.children.length > 0 ? FOLDED_HEIGHT : leafHeight(module, most, inLayers.has(module.name));
      down += box.height + GAP;
      return box;
    });
    return { boxes, bottom: down - GAP };
  };
  return stack(anatomy.modules, x, y, width, null);
}

/** Height of the box of a module without children; its area grows with its parameters. */
function leafHeight(module, most, hasSeeds) {
  if (module.parameters === 0 && !hasSeeds) return 22;
  return Math.round(34 + 44 * Math.sqrt(module.parameters / most));
}

/** All boxes of a layout, outer before inner. */
function flatten(boxes) {
  return boxes.flatMap((box) => [box, ...flatten(box.children)]);
}

/** The boxes that show a module: its own, or the closed one around it. */
function boxOf(boxes, name) {
  const holds = (module) => module.name === name || name.startsWith(`${module.name}.`);
  return boxes.filter((box) => box.members.some(holds)).at(-1) ?? null;
}

/** Where a colony meets boxes: at the middle of closed ones, at the title of open ones; from top to bottom. */
function stopsOf(covered) {
  const stops = [...new Set(covered)].map((box) => ({ x: box.x + box.width, y: box.y + (box.isOpen ? 19 : box.height / 2) }));
  return d3.sort(stops, (stop) => stop.y);
}

/** Where a place lies: from the top of the first to the bottom of the last box that it covers; null if unknown. */
function extent(place, boxes, whole) {
  if (place.covers.length === 0) return { ...whole, isWhole: true };
  const covered = place.covers.map((name) => boxOf(boxes, name)).filter((box) => box !== null);
  if (covered.length === 0) return null;
  if (place.kind === "colony") {
    const stops = stopsOf(covered);
    return { stops, top: stops[0].y, bottom: stops.at(-1).y, isWhole: false };
  }
  return { top: d3.min(covered, (box) => box.y), bottom: d3.max(covered, (box) => box.y + box.height), right: d3.max(covered, (box) => box.x + box.width), centre: covered[0].x + covered[0].width / 2, isWhole: false };
}

/** Give each bracket a depth such that those that overlap lie beside each other, short ones inside. */
function nestBrackets(brackets) {
  const placed = [];
  for (const bracket of d3.sort(brackets, (one) => one.bottom - one.top)) {
    const under = placed.filter((other) => other.top < bracket.bottom && bracket.top < other.bottom);
    bracket.depth = 1 + (d3.max(under, (other) => other.depth) ?? 0);
    placed.push(bracket);
  }
  return placed;
}

/** Move labels, sorted by where their middles want to be, apart as little as is needed; returns the lowest edge. */
function spread(labels, top) {
  const clumps = [];
  for (const one of labels) {
    clumps.push({ members: [one], start: Math.max(top, one.want - one.height / 2), height: one.height });
    while (clumps.length > 1 && clumps.at(-2).start + clumps.at(-2).height > clumps.at(-1).start) {
      const [above, below] = clumps.splice(-2);
      const [a, b] = [above.members.length, below.members.length];
      const start = (above.start * a + (below.start - above.height) * b) / (a + b);
      clumps.push({ members: [...above.members, ...below.members], start: Math.max(top, start), height: above.height + below.height });
    }
  }
  for (const { members, start } of clumps) members.reduce((edge, one) => (one.y = edge) + one.height, start);
  return d3.max(clumps, (clump) => clump.start + clump.height) ?? top;
}
