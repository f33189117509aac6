"""What all seeds sensed at every boundary, packed for a page: three or four small numbers per seed and boundary.

A report has one pack of all boundaries; a page that follows a run gets one for each, and is sent those that are new.

A value keeps two significant digits, which is finer than any colour scale. It becomes a 16 bit code that counts such
numbers upwards, so that a value that hardly changes from boundary to boundary gives a small difference. Differences are
written alternately as even and odd numbers (0, -1, 1, -2, ... become 0, 1, 2, 3, ...), which leaves nearly all high
bytes 0. Without that, noisy values take more text and longer to compress: high bytes then repeat the sign.
"""

# M measures, B boundaries, S seeds of all places

import base64
import itertools
import zlib
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esper.observability.files import METRICS
from esper.observability.labels import place_label
from esper.observability.record import Record

MEASURES = {
    "chunk_variance": "variance",
    "inactive_ratio": "inactive",
    "gradient_norm": "gradient",
    "mean_abs_correlation": "correlation",
}
"""What is shown of a seed, and its label; where all of it is too large, the last is left out."""

LARGEST = 4_200_000
"""Characters that the packed values may take: a page with its charts' library then stays below 5 MB."""

FAST = 1
"""Level of compression where somebody waits: a tenth larger, ten times as fast."""

MISSING, ZERO, FIRST, STEPS, SMALLEST_EXPONENT, LARGEST_EXPONENT = 0, 65534, 1, 90, -40, 300

ABSENT = 255
"""State of a seed that was not there at a boundary, or of which nothing is known."""

MOST_SEEDS = 2**17
"""Of one place, unless it has sensed for more: a larger number in the log is damage."""

Entry = tuple[str, int]
"""A place with one number of seeds."""


def lattice(record: Record) -> dict[str, Any] | None:
    """What the seeds of a run sensed, ready for JSON; None where no telemetry was recorded.

    A place whose number of seeds changed has one entry for every number. All boundaries are shown, also those where
    nothing was sensed, and all places.
    """
    if not record.telemetry:
        return None
    lines = _boundaries(record)
    counts = _seeds(record, lines)
    entries = _in_order(record, counts)
    if not entries:
        return None
    values_MBS = np.stack([_values(lines, counts, entries, key) for key in MEASURES])
    is_measured = [not np.isnan(values_BS).all() for values_BS in values_MBS]
    keys = [key for key, measured in zip(MEASURES, is_measured, strict=True) if measured]
    codes, kept, every = _fitting(encode(values_MBS[is_measured]), can_spare_last=keys[-1:] == ["mean_abs_correlation"])
    lines, states = lines[::every], pack_states(_states(lines, counts, entries)[::every])
    packs = [{"boundaries": len(lines), "codes": codes, "states": states}]
    return _shown(lines, keys[:kept], _places(record, entries), packs, left_out=keys[kept:], every=every)


def lengthened(record: Record, before: dict[str, Any] | None) -> dict[str, Any] | None:
    """As :func:`lattice`, with a pack for each boundary: those of before as they are, as long as its places are there.

    Args:
        record: of a run that goes on.
        before: what this gave before.
    """
    lines = [event for _, event in record.telemetry] if record.every > 1 else _boundaries(record)
    counts = _seeds(record, lines)
    entries = _in_order(record, counts)
    if not record.telemetry or not entries:
        return None
    places = _places(record, entries)
    known = [one["key"] for one in before["measures"]] if before is not None else []
    packs = dict(zip(before["steps"], before["packs"], strict=True)) if before and before["places"] == places else {}
    fresh = [line for line in lines if line["step"] not in packs]
    keys = [
        key for key in MEASURES if key in known or any(key in one for line in fresh for one in line["places"].values())
    ]
    if keys != known:
        packs, fresh = {}, lines
    count_of = dict(zip((line["step"] for line in lines), counts, strict=True))
    for line in fresh:
        of_it = [line], [count_of[line["step"]]], entries
        codes = encode(np.stack([_values(*of_it, key) for key in keys])) if keys else np.zeros((0, 1, 0), np.uint16)
        packs[line["step"]] = {
            "boundaries": 1,
            "codes": pack_codes(codes, FAST),
            "states": pack_states(_states(*of_it), FAST),
        }
    return _shown(lines, keys, places, [packs[line["step"]] for line in lines], left_out=[], every=record.every)


def _shown(
    lines: list[dict[str, Any]],
    keys: list[str],
    places: list[dict[str, Any]],
    packs: list[dict[str, Any]],
    *,
    left_out: list[str],
    every: int,
) -> dict[str, Any]:
    return {
        "epochs": [line["epoch"] for line in lines],
        "steps": [line["step"] for line in lines],
        "measures": [{"key": key, "label": MEASURES[key]} for key in keys],
        "places": places,
        "left_out": [MEASURES[key] for key in left_out],
        "every": every,
        "packs": packs,
    }


def encode(values: NDArray[np.float64]) -> NDArray[np.uint16]:
    """Codes of values, two significant digits each: ``1 + (e + 40) * 90 + (10 * d.d - 10)`` for d.d x 10^e.

    What is not finite or negative is missing; what is below 10^-40 is zero.
    """
    usable = np.isfinite(values) & (values >= 0)
    is_zero = usable & (values < 10.0**SMALLEST_EXPONENT)
    positive = np.where(usable & ~is_zero, values, 1.0)
    exponent = np.clip(np.floor(np.log10(positive)), SMALLEST_EXPONENT, LARGEST_EXPONENT)
    digits = np.rint(positive / 10.0**exponent * 10)
    # Rounding, here or in the logarithm, may lead to the power of ten above.
    exponent, digits = np.where(digits > 99, exponent + 1, exponent), np.where(digits > 99, 10, digits)
    codes = FIRST + (exponent - SMALLEST_EXPONENT) * STEPS + np.maximum(digits, 10) - 10
    codes = np.where(is_zero, ZERO, np.where(usable, codes, MISSING))
    return codes.astype(np.uint16)


def pack_codes(codes_MBS: NDArray[np.uint16], level: int = 9) -> str:
    """Differences from boundary to boundary, alternating; all low bytes, then all high bytes; zlib, base64."""
    change = np.diff(codes_MBS, axis=1, prepend=np.uint16(0)).view(np.int16)
    folded = ((change << 1) ^ (change >> 15)).view(np.uint16)
    return _pack((folded & 0xFF).astype(np.uint8).tobytes() + (folded >> 8).astype(np.uint8).tobytes(), level)


def pack_states(states_BS: NDArray[np.uint8], level: int = 9) -> str:
    """Differences from boundary to boundary modulo 256; zlib, base64."""
    return _pack(np.diff(states_BS, axis=0, prepend=np.uint8(0)).tobytes(), level)


def _pack(content: bytes, level: int) -> str:
    packer = zlib.compressobj(level, strategy=zlib.Z_FILTERED)
    return base64.b64encode(packer.compress(content) + packer.flush()).decode("ascii")


def _fitting(codes_MBS: NDArray[np.uint16], *, can_spare_last: bool) -> tuple[str, int, int]:
    """Packed codes that are not too large, of how many measures, and of every how manieth boundary."""
    kept, every = len(codes_MBS), 1
    packed = pack_codes(codes_MBS)
    if len(packed) > LARGEST and can_spare_last:
        kept -= 1
        packed = pack_codes(codes_MBS[:kept])
    while len(packed) > LARGEST and every < codes_MBS.shape[1]:
        every *= 2
        packed = pack_codes(codes_MBS[:kept, ::every])
    return packed, kept, every


def _places(record: Record, entries: list[Entry]) -> list[dict[str, Any]]:
    """Where the seeds of every place stand in the packed columns."""
    kinds = {place["layer_id"]: place["kind"] for _, event in record.of("model") for place in event["places"]}
    sizes = Counter(layer_id for layer_id, _ in entries)
    starts = itertools.accumulate((seeds for _, seeds in entries), initial=0)
    return [
        {
            "layer_id": layer_id,
            "label": place_label(layer_id) + (f" ({seeds} seed{'s' * (seeds > 1)})" if sizes[layer_id] > 1 else ""),
            "kind": kinds.get(layer_id),
            "seeds": seeds,
            "first": start,
        }
        for (layer_id, seeds), start in zip(entries, starts, strict=False)
    ]


def _boundaries(record: Record) -> list[dict[str, Any]]:
    """A line for every boundary, in order: its telemetry, else one without places."""
    epochs = [event for _, event in record.epochs]
    lines = {one["step"]: {"epoch": one["epoch"], "step": one["step"], "places": {}} for one in epochs}
    lines |= {event["step"]: event for _, event in record.telemetry}
    return [lines[step] for step in sorted(lines)]


def _seeds(record: Record, lines: list[dict[str, Any]]) -> list[dict[str, int]]:
    """Seeds of every place at every boundary: as long as its columns are, else as many as were last told.

    What has measured nothing and sleeps is not in the log. Where lines are damaged, a missing one may be lost instead:
    nothing is known of its boundary then.
    """
    is_told = {event["step"] for _, event in record.telemetry}
    is_whole = not record.faults_of(METRICS)
    known = {place["layer_id"]: place["seeds"] for _, event in record.of("model") for place in event["places"]}
    changes = [event for _, event in record.of("rechunked")]
    counts = []
    for line in lines:
        while changes and changes[0]["step"] < line["step"]:
            change = changes.pop(0)
            known[change["layer_id"]] = change["num_seeds"]
        for layer_id, place in line["places"].items():
            known[layer_id] = max((len(place.get(key, ())) for key in MEASURES), default=0) or known.get(layer_id, 0)
        columns = {name for name, place in line["places"].items() if any(place.get(key) for key in MEASURES)}
        is_known = is_whole or line["step"] in is_told
        counts.append(
            {name: seeds for name, seeds in known.items() if is_known and (name in columns or 0 < seeds <= MOST_SEEDS)}
        )
    return counts


def _in_order(record: Record, counts: list[dict[str, int]]) -> list[Entry]:
    """All places, in the order of the model where it is known; those that come later at the end."""
    found = dict.fromkeys(itertools.chain.from_iterable(count.items() for count in counts))
    of_model = [place["layer_id"] for _, event in record.of("model") for place in event["places"]]
    rank = {layer_id: index for index, layer_id in enumerate(dict.fromkeys([*of_model, *(name for name, _ in found)]))}
    return sorted(found, key=lambda entry: rank[entry[0]])


def _values(
    lines: list[dict[str, Any]], counts: list[dict[str, int]], entries: list[Entry], key: str
) -> NDArray[np.float64]:
    """One measure at all boundaries, ``[B, S]``; NaN where it was not measured."""
    rows = []
    for line, count in zip(lines, counts, strict=True):
        row: list[float | None] = []
        for layer_id, seeds in entries:
            column = line["places"].get(layer_id, {}).get(key) if count.get(layer_id) == seeds else None
            row.extend(column if column is not None and len(column) == seeds else [None] * seeds)
        rows.append(np.array(row, dtype=np.float64))
    return np.stack(rows)


def _states(lines: list[dict[str, Any]], counts: list[dict[str, int]], entries: list[Entry]) -> NDArray[np.uint8]:
    """State codes at all boundaries, ``[B, S]``."""
    states_BS = np.full((len(lines), sum(seeds for _, seeds in entries)), ABSENT, dtype=np.uint8)
    for states_S, line, count in zip(states_BS, lines, counts, strict=True):
        start = 0
        for layer_id, seeds in entries:
            if count.get(layer_id) == seeds:
                states_S[start : start + seeds] = 0
                for seed, code in line["places"].get(layer_id, {}).get("awake", {}).items():
                    if int(seed) < seeds and 0 <= code < ABSENT:
                        states_S[start + int(seed)] = code
            start += seeds
    return states_BS
