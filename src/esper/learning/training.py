"""From records to weights: cross-fitted judgement, what waiting is worth, and a network that has learned from all."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch

from esper.learning.examples import Examples, examples
from esper.learning.records import Record, headroom
from esper.learning.supervised import (
    Settings,
    Tell,
    Worth,
    caution_of,
    crossed,
    imitate,
    learn,
    predictability,
    worth_of,
)
from esper.tamiyo.learned.weights import save


def train(
    records: Sequence[Record],
    output: Path,
    settings: Settings,
    tell: Tell | None = None,
    learns: Literal["judgement", "imitation"] = "judgement",
) -> dict[str, Any]:
    """Train a controller and write its weights.

    Args:
        records: what was collected.
        output: the file of the weights.
        settings: how it learns; its shape says how the controller will choose.
        tell: hears of the losses.
        learns: ``"judgement"``; or ``"imitation"``, what the heuristic does and nothing else.

    Returns:
        The card: when and from what it was made, the headroom of the tasks, what was foreseen of tasks that a network
        had not learned from, and core seconds. It is written into the file as well.

    Raises:
        DataError: if nothing was tried in the records.
    """
    begun, data = time.process_time(), examples(records)
    shown: dict[str, Any] = {}
    if learns == "imitation":
        settings = replace(settings, shape=replace(settings.shape, chooses_by="policy"))
        network = imitate(data, settings, tell)
    else:
        said = crossed(data, settings, tell)
        caution = caution_of(said, data)
        settings = replace(settings, shape=replace(settings.shape, caution=caution))
        worth = worth_of(said, data, caution)
        network = learn(data, settings, worth, tell)
        shown = {"foreseen": _rounded(predictability(said, data, caution)), "acts": _acts(worth, data)}
    card = {
        "made": datetime.now(UTC).date().isoformat(),
        "learns": learns,
        "tasks": dict(sorted(Counter(one.family for one in records if one.tried).items())),
        "seeds": [min(one.seed for one in records), max(one.seed for one in records)],
        "headroom": _rounded(headroom(records)),
        **shown,
        "settings": {name: value for name, value in asdict(settings).items() if name != "shape"},
        "core_seconds": {
            "collecting": round(sum(one.seconds for one in records)),
            "training": round(time.process_time() - begun),
        },
        "torch": torch.__version__,
        "limits": "Learned from small synthetic tasks of up to a few thousand parameters; rounds of one candidate.",
    }
    save(network, output, card)
    return card


def _acts(worth: Worth, data: Examples) -> dict[str, float]:
    """At how many boundaries it would act, and in how many tasks."""
    return {
        "boundaries": round(float(worth.is_time.float().mean()), 4),
        "tasks": round(len(data.task[worth.is_time].unique()) / len(data.task.unique()), 4),
    }


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in values.items()}
