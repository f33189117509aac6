// Unpacks what the seeds sensed: two significant digits in sixteen bits (see lattice.py for the format).

const ZERO_CODE = 65534;
const ABSENT = 255;

/** The value of every code as it is kept here: 0 is missing, 1 is zero, others are moved up by one to stay in order. */
const VALUES = Float64Array.from({ length: 65536 }, (_, kept) => {
  if (kept === 0) return NaN;
  if (kept === 1) return 0;
  const code = kept - 2;
  return Number(`${(code % 90) + 10}e${Math.floor(code / 90) - 41}`);
});

/** Bytes of a base64 text that holds a zlib stream. */
async function inflate(text) {
  const letters = atob(text);
  const packed = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) packed[i] = letters.charCodeAt(i);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Codes of all measures as Uint16Arrays [boundaries * seeds] in the order that `VALUES` understands. */
function unfoldCodes(bytes, measures, boundaries, seeds) {
  const total = measures * boundaries * seeds;
  return d3.range(measures).map((measure) => {
    const codes = new Uint16Array(boundaries * seeds);
    const first = measure * boundaries * seeds;
    for (let i = 0; i < codes.length; i++) {
      const folded = bytes[first + i] | (bytes[total + first + i] << 8);
      codes[i] = (i < seeds ? 0 : codes[i - seeds]) + ((folded >>> 1) ^ -(folded & 1));
    }
    for (let i = 0; i < codes.length; i++) codes[i] = codes[i] === 0 ? 0 : codes[i] === ZERO_CODE ? 1 : codes[i] + 1;
    return codes;
  });
}

/** An array with the same beginning and room for twice as much as is needed. */
function roomier(array, needed) {
  if (array.length >= needed) return array;
  const larger = new array.constructor(2 * needed);
  larger.set(array);
  return larger;
}

/** The packs of a lattice, each with `at`, its first boundary, and `from`, that boundary where it was unpacked before, or null. */
function placePacks(lattice, before) {
  const known = new Map(before?.packs.map((pack) => [pack.codes, pack]));
  let at = 0;
  return lattice.packs.map((pack) => {
    const same = known.get(pack.codes);
    const placed = { ...pack, at, from: same?.states === pack.states ? same.at : null };
    at += pack.boundaries;
    return placed;
  });
}

/** The lattice unpacked: {boundaries, seeds, codes: one array per measure, states, origin: each boundary's place before, or -1}. */
async function unpackLattice(lattice, last = null) {
  const seeds = d3.sum(lattice.places, (place) => place.seeds);
  const before = last !== null && last.seeds === seeds && last.codes.length === lattice.measures.length ? last : null;
  const packs = placePacks(lattice, before);
  const boundaries = d3.sum(packs, (pack) => pack.boundaries);
  const isLonger = before !== null && before.packs.every((pack, i) => packs[i]?.from === pack.at);
  const fresh = packs.filter((pack) => pack.from === null);
  const inflated = await Promise.all(fresh.map((pack) => Promise.all([inflate(pack.codes), inflate(pack.states)])));
  const codes = lattice.measures.map((_, i) => (isLonger ? roomier(before.codes[i], boundaries * seeds) : new Uint16Array(boundaries * seeds)));
  const states = isLonger ? roomier(before.states, boundaries * seeds) : new Uint8Array(boundaries * seeds);
  if (!isLonger) for (const { at, from, boundaries: own } of packs.filter((pack) => pack.from !== null)) {
    codes.forEach((array, i) => array.set(before.codes[i].subarray(from * seeds, (from + own) * seeds), at * seeds));
    states.set(before.states.subarray(from * seeds, (from + own) * seeds), at * seeds);
  }
  inflated.forEach(([bytes, own], i) => {
    for (let j = seeds; j < own.length; j++) own[j] += own[j - seeds];
    states.set(own, fresh[i].at * seeds);
    unfoldCodes(bytes, codes.length, fresh[i].boundaries, seeds).forEach((array, measure) => codes[measure].set(array, fresh[i].at * seeds));
  });
  const origin = packs.flatMap((pack) => d3.range(pack.boundaries).map((i) => (pack.from === null ? -1 : pack.from + i)));
  return { packs, boundaries, seeds, codes, states, origin };
}

/** Median over the seeds of a place at each boundary: Float64Array [boundaries], NaN where nothing was measured. */
function placeMedians(codes, { boundaries, seeds, origin }, { first, seeds: own }, before) {
  const medians = new Float64Array(boundaries);
  for (let boundary = 0; boundary < boundaries; boundary++) {
    if (before !== undefined && origin[boundary] >= 0) {
      medians[boundary] = before[origin[boundary]];
      continue;
    }
    const sorted = codes.slice(boundary * seeds + first, boundary * seeds + first + own).sort();
    const start = d3.bisectRight(sorted, 0);
    const measured = sorted.length - start;
    const [low, high] = [start + ((measured - 1) >> 1), start + (measured >> 1)];
    medians[boundary] = measured === 0 ? NaN : (VALUES[sorted[low]] + VALUES[sorted[high]]) / 2;
  }
  return medians;
}

/** The state that stands for a place at a boundary: the furthest of its seeds; ABSENT if there are none. */
function placeState(states, boundary, seeds, { first, seeds: own }) {
  let furthest = ABSENT;
  for (let i = boundary * seeds + first; i < boundary * seeds + first + own; i++) {
    const state = states[i];
    if (state !== ABSENT && (furthest === ABSENT || stateRank(state) > stateRank(furthest))) furthest = state;
  }
  return furthest;
}

/** Order of states: asleep, over, then by how far the seed has come. */
function stateRank(state) {
  return state === 0 ? 0 : state > 7 ? 1 : state + 1;
}

/** Smallest and largest value worth a colour: all but one in a hundred at either end; zeros do not count. */
function valueRange(codes) {
  const counts = new Uint32Array(65536);
  for (const code of codes) counts[code]++;
  const total = codes.length - counts[0] - counts[1];
  if (total === 0) return [0, 1];
  const at = (share) => {
    let seen = 0;
    for (let code = 2; code < 65536; code++) if ((seen += counts[code]) > share * (total - 1)) return VALUES[code];
    return 1;
  };
  return [at(0.01), at(0.99)];
}
