// Seeds over time: places, then the seeds of one place, then one seed.

/** Everything that is derived from the unpacked lattice, made once and kept. */
function latticeCache(lattice, unpacked, before) {
  const kept = new Map();
  const once = (key, make) => kept.get(key) ?? kept.set(key, make()).get(key);
  const { boundaries, seeds, codes, states } = unpacked;
  const cache = {
    medians: (measure) => once(`medians ${measure}`, () => lattice.places.map((place, i) => placeMedians(codes[measure], unpacked, place, before?.medians(measure)[i]))),
    placeStates: () => once("states", () => lattice.places.map((place) => Uint8Array.from({ length: boundaries }, (_, boundary) => placeState(states, boundary, seeds, place)))),
    scale: (measure) => once(`scale ${measure}`, () => measureScale(lattice.measures[measure].key, codes[measure].subarray(0, boundaries * seeds))),
    ramp: () => once("ramp", heatRamp),
    colours: (measure) => once(`colours ${measure}`, () => codeColours(cache.scale(measure), cache.ramp())),
    forgetColours: () => [...kept.keys()].filter((key) => /^(ramp|colours)/.test(key)).forEach((key) => kept.delete(key)),
    forgetBefore: () => (before = null),
  };
  return cache;
}

/** When a boundary was, for tooltips. */
function when(lattice, boundary) {
  return [["epoch", count(lattice.epochs[boundary])], ["step", count(lattice.steps[boundary])]];
}

/** A state code in words. */
function stateWords(state) {
  return state === ABSENT ? "not there" : words(STATES[state]).toLowerCase();
}

/** The grid of all places: medians of their seeds. `measure` is an index, or "state". */
function placesGrid(lattice, unpacked, cache, measure, open) {
  const states = cache.placeStates();
  const medians = measure === "state" ? null : cache.medians(measure);
  const ramp = cache.ramp();
  const name = measure === "state" ? "furthest state" : `median ${lattice.measures[measure].label}`;
  return {
    rows: lattice.places.length, columns: unpacked.boundaries,
    paint(pixels) {
      const colours = stateColours(ramp);
      const scale = measure === "state" ? null : cache.scale(measure);
      lattice.places.forEach((_, row) => {
        for (let column = 0; column < this.columns; column++) pixels[row * this.columns + column] = scale ? valueColour(medians[row][column], scale, ramp) : colours[states[row][column]];
      });
    },
    stateAt: (row, column) => states[row][column],
    labels: lattice.places.map((place, row) => [row, place.label]),
    content: (row, column) => ({
      title: lattice.places[row].label,
      pairs: [...when(lattice, column), [name, medians ? (Number.isNaN(medians[row][column]) ? MISSING : exact(medians[row][column])) : stateWords(states[row][column])], ...(medians ? [["furthest state", stateWords(states[row][column])]] : []), ["seeds", count(lattice.places[row].seeds)]],
    }),
    open,
  };
}

/** The grid of the seeds of one place. */
function seedsGrid(lattice, unpacked, cache, place, measure, height, open) {
  const { boundaries, seeds, states } = unpacked;
  const codes = measure === "state" ? states : unpacked.codes[measure];
  const at = (row, column) => column * seeds + place.first + row;
  const colours = measure === "state" ? stateColours(cache.ramp()) : cache.colours(measure);
  return {
    rows: place.seeds, columns: boundaries,
    paint(pixels) {
      for (let column = 0; column < boundaries; column++) for (let row = 0, i = at(0, column); row < place.seeds; row++, i++) pixels[row * boundaries + column] = colours[codes[i]];
    },
    stateAt: (row, column) => states[at(row, column)],
    labels: labelledRows(place.seeds, height).map((row) => [row, `seed ${row}`]),
    content: (row, column) => {
      const value = measure === "state" ? null : VALUES[codes[at(row, column)]];
      return { title: `${place.label}, seed ${row}`, pairs: [...when(lattice, column), ...(value === null ? [] : [[lattice.measures[measure].label, Number.isNaN(value) ? MISSING : exact(value)]]), ["state", stateWords(states[at(row, column)])]] };
    },
    open,
  };
}

/** The lattice in its box: measure, breadcrumbs and one of three levels. */
function showLattice(box, lattice, unpacked, cache) {
  const view = remembered("view of seeds", () => ({ measure: lattice.measures.length > 0 ? 0 : "state", place: null, seed: null }));
  const cursors = remembered("cursors among seeds", () => ({ places: { row: 0, column: 0 }, seeds: { row: 0, column: 0 } }));
  view.place = lattice.places.find((place) => place.label === view.place?.label) ?? null;
  if (view.place === null || view.seed >= view.place.seeds) view.seed = null;
  if (view.measure >= lattice.measures.length) view.measure = "state";
  const scrolled = box.querySelector(".map")?.scrollTop ?? 0;
  const crumbs = html("nav", { class: "crumbs", "aria-label": "Where in the lattice" });
  const stage = html("div", { class: "stage" });

  const go = (place, seed) => {
    if (place !== view.place) cursors.seeds = { row: 0, column: cursors.places.column };
    Object.assign(view, { place, seed });
    hideTip();
    draw();
    (stage.querySelector(".map") ?? crumbs.querySelector("button:last-of-type"))?.focus({ preventScroll: true });
  };
  const back = () => (view.seed !== null ? go(view.place, null) : view.place !== null && go(null, null));
  const crumb = (text, act) => {
    if (act === null) return html("span", { "aria-current": "location" }, text);
    const button = html("button", { type: "button" }, text);
    button.addEventListener("click", act);
    return button;
  };
  const drawCrumbs = () => {
    const parts = [crumb("all places", view.place === null ? null : () => go(null, null))];
    if (view.place !== null) parts.push("\u203a", crumb(view.place.label, view.seed === null ? null : () => go(view.place, null)));
    if (view.seed !== null) parts.push("\u203a", crumb(`seed ${view.seed}`, null));
    crumbs.replaceChildren(...parts);
  };
  const drawMap = () => {
    const isTop = view.place === null;
    const height = isTop ? Math.max(14, rowHeight(lattice.places.length, 30)) : rowHeight(view.place.seeds, 22);
    const grid = isTop
      ? placesGrid(lattice, unpacked, cache, view.measure, (row) => {
          cursors.places.row = row;
          go(lattice.places[row], null);
        })
      : seedsGrid(lattice, unpacked, cache, view.place, view.measure, height, (row) => {
          cursors.seeds.row = row;
          go(view.place, row);
        });
    const frame = heatMap(grid, {
      name: isTop ? "Places over time" : `Seeds of ${view.place.label} over time`, cursor: isTop ? cursors.places : cursors.seeds, height,
      showStates: view.measure !== "state" && height >= 4, columnLabel: (column) => (column === 0 ? `epoch ${lattice.epochs[0]}` : count(lattice.epochs[column])),
    });
    const legend = view.measure === "state" ? stateKey(new Set(STATES.slice(1))) : measureLegend(lattice.measures[view.measure].label, cache.scale(view.measure), cache.ramp());
    stage.replaceChildren(frame, legend);
  };
  const draw = () => {
    drawCrumbs();
    if (view.seed === null) drawMap();
    else stage.replaceChildren(seedCharts(lattice, unpacked, view.place.first + view.seed, Math.floor(box.clientWidth)));
  };
  const choices = [...lattice.measures.map(({ label: name }, i) => [String(i), name]), ["state", "state"]];
  const chooser = oneOf("Measure", choices, String(view.measure), (value) => {
    view.measure = value === "state" ? "state" : Number(value);
    if (view.seed === null) drawMap();
  });
  box.onkeydown = (event) => {
    if (event.key === "Escape") back();
  };
  onColours("lattice", () => {
    cache.forgetColours();
    draw();
  });
  box.replaceChildren(html("div", { class: "controls" }, chooser), crumbs, stage);
  draw();
  if (scrolled > 0) stage.querySelector(".map")?.scrollTo(0, scrolled);
  prepare(lattice, cache);
}

/** Work out what other measures will need while nobody waits. */
function prepare(lattice, cache) {
  const jobs = lattice.measures.flatMap((_, i) => [() => cache.scale(i), () => cache.medians(i)]);
  const next = () => {
    jobs.shift()?.();
    if (jobs.length > 0) setTimeout(next, 0);
    else cache.forgetBefore();
  };
  setTimeout(next, 0);
}

/** The lattice, once it is unpacked. */
function startLattice({ lattice }) {
  return startChart("lattice", async (box) => {
    if (typeof DecompressionStream === "undefined") {
      sayInstead(box, "This browser is too old to unpack what the seeds sensed. Open the report in a newer one: any since the year 2023.");
      return;
    }
    const kept = remembered("seeds", () => ({ unpacked: null, cache: null }));
    const unpacked = await unpackLattice(lattice, kept.unpacked);
    const cache = latticeCache(lattice, unpacked, unpacked.origin.some((at) => at >= 0) ? kept.cache : null);
    Object.assign(kept, { unpacked, cache });
    showLattice(box, lattice, unpacked, cache);
  });
}
