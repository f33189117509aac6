"""Commands go down to Kasmina, answers come back: every command gets exactly one."""

import secrets
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from esper.contracts.lifecycle import State

SeedId = int | Literal["all"]
"""One seed of a layer, or all of them as one group with one graft and one lifecycle."""


@dataclass(frozen=True, slots=True)
class Command:
    """Move the seeds of one place to ``target``.

    Args:
        layer_id: dotted name of the place, ``first:last`` for a span, ``""`` for the whole model.
        seed_id: the seed, or ``"all"``.
        target: the state to enter.
        reason: why, for the audit log.
        who: who asks, for the audit log.
        version: the seed's version as the sender saw it, such as in :attr:`PlaceReport.versions`; a command for another
            version is refused. None skips this.
        blueprint: for GERMINATED: id of the blueprint to grow.
        settings: for GERMINATED: the blueprint's hyper-parameters.
        strategy: for GERMINATED: how the graft is blended in.
        trial: for GERMINATED: ``"round"`` tries the graft in an arm of its own, from the next round on; ``"live"``
            grows it in the run itself, and its twin is trained afterwards.
        id: tells this command from all others, also from an equal one: the answer carries it. It is no part of what
            makes two commands equal, and ``dataclasses.replace`` keeps it.
    """

    layer_id: str
    seed_id: SeedId
    target: State
    reason: str = ""
    who: str = "tamiyo"
    version: int | None = None
    blueprint: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    strategy: str = "fixed_ramp"
    trial: Literal["round", "live"] = "round"
    id: str = field(default_factory=partial(secrets.token_hex, 6), compare=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a command. A refusal changed nothing and says why.

    Args:
        accepted: whether it was carried out.
        reason: why it was not.
        version: of the seeds, now that it was.
        command_id: the command's ``id``, which makes no answer differ from another; empty for what was asked for
            without a command.
    """

    accepted: bool
    reason: str = ""
    version: int | None = None
    command_id: str = field(default="", compare=False)
