"""Writes docs/settings.md: all settings of GrowthConfig, grouped by what they are for, from its docstring."""

import inspect
import re
from dataclasses import fields
from pathlib import Path

from esper.contracts.config import GrowthConfig

PAGE = Path(__file__).parent.parent / "docs" / "settings.md"

GROUPS: dict[str, tuple[str, ...]] = {
    "Where seeds sit": ("layers", "exclude", "seeds_per_layer", "axis", "output_fields"),
    "What they sense": ("telemetry_rows",),
    "What may grow, and how": (
        *("blueprints", "selection", "strategy", "drift_threshold", "ramp_fraction"),
        *("objective", "incubation_fraction", "min_confidence"),
    ),
    "When": (
        *("max_rounds", "max_candidates", "max_active_seeds", "grow_after", "grow_at", "grow_until"),
        *("patience", "min_delta", "target_metric", "boundary_steps"),
    ),
    "How much: budgets": (*("capacity_per_round", "max_growth", "max_memory", "max_latency", "max_train_flops"),),
    "How candidates are compared": (
        *("trial", "judge", "round_fraction", "compare", "choice", "arms", "hold_fraction", "gate_z"),
        *("keep_looks", "freeze"),
    ),
    "How grafts train": ("graft_lr", "peak_lr", "rewarm", "graft_weight_decay"),
    "When something fails": (
        *("embargo_epochs", "quarantine_epochs", "max_failures", "timeout", "patience_after_cull"),
        *("emergency_rollback_threshold", "spike_z", "emergency_patience"),
    ),
    "Chance": ("seed",),
}

HEAD = """# Settings

All settings of `esper.GrowthConfig`, by what they are for. None needs to be set: the defaults are what
[the tables](growth.md) were made with. In `esper run --config FILE` they stand under `growth:`, and the most used ones
are options of the command line (`esper run --help`). Fractions are of the run's planned steps unless said otherwise.
`make docs` writes this page.

The five that are worth knowing first: `layers` (where), `max_rounds` (0 never grows), `capacity_per_round` (how large),
`max_train_flops` (what growth may cost in all), `seed`.
"""


def meanings() -> dict[str, str]:
    """What the docstring says of every setting."""
    text = inspect.cleandoc(GrowthConfig.__doc__ or "").partition("Args:\n")[2]
    found = re.split(r"^    (\w+): ", text, flags=re.MULTILINE)[1:]
    return {name: " ".join(said.split()) for name, said in zip(found[::2], found[1::2], strict=True)}


def page() -> str:
    """The page.

    Raises:
        KeyError: if a setting stands in no group.
    """
    group_of = {name: group for group, names in GROUPS.items() for name in names}
    said, lines = meanings(), [HEAD]
    by_group: dict[str, list[str]] = {group: [] for group in GROUPS}
    for one in fields(GrowthConfig):
        text = said[one.name].replace("``", "`")
        by_group[group_of[one.name]].append(f"| `{one.name}` | `{one.default!r}` | {text} |")
    for group, rows in by_group.items():
        lines += [f"## {group}", "", "| setting | default | meaning |", "|---|---|---|", *rows, ""]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
