"""Commands go down to Kasmina, answers come back: every command gets exactly one."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from esper.contracts.lifecycle import State

SeedId = int | Literal["all"]
"""One seed of a layer, or all of them as one group with one graft and one lifecycle."""

SeedIds = SeedId | tuple[int, ...]
"""The same, or several seeds of a layer, each with a graft and a lifecycle of its own."""


@dataclass(frozen=True, slots=True)
class Command:
    """Move seeds to ``target``: all that are named, or none of them.

    Args:
        layer_id: dotted name of the place, ``first:last`` for a span, ``""`` for the whole model.
        seed_id: the seed, ``"all"``, or a tuple of seeds.
        target: the state to enter.
        reason: why, for the audit log.
        who: who asks, for the audit log.
        version: the seed's version as the sender saw it, such as in :attr:`PlaceReport.versions`, or one of each of
            ``addresses``; a command for another version is refused. One number for several seeds means that all of them
            are at it. None skips this.
        blueprint: for GERMINATED: id of the blueprint to grow.
        settings: for GERMINATED: the blueprint's hyper-parameters.
        strategy: for GERMINATED: how the graft is blended in.
        trial: for GERMINATED: ``"round"`` tries the graft in an arm of its own, from the next round on; ``"live"``
            grows it in the run itself, and its twin is trained afterwards.
        also: seeds of further places, for the same order.
        id: tells this command from all others, also from an equal one: the answer carries it. It is no part of what
            makes two commands equal, and ``dataclasses.replace`` keeps it.
    """

    layer_id: str
    seed_id: SeedIds
    target: State
    reason: str = ""
    who: str = "tamiyo"
    version: int | tuple[int, ...] | None = None
    blueprint: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    strategy: str = "fixed_ramp"
    trial: Literal["round", "live"] = "round"
    also: Mapping[str, SeedIds] = field(default_factory=dict)
    id: str = field(default_factory=partial(secrets.token_hex, 6), compare=False)

    @property
    def addresses(self) -> tuple[tuple[str, SeedId], ...]:
        """Place and seed of every lifecycle that is meant, in the order in which they are named."""
        named = (self.layer_id, self.seed_id), *self.also.items()
        return tuple(
            (layer_id, seed_id)
            for layer_id, seed_ids in named
            for seed_id in (seed_ids if isinstance(seed_ids, tuple) else (seed_ids,))
        )

    @property
    def versions(self) -> tuple[int | None, ...]:
        """The version that each of ``addresses`` is expected to be at."""
        return self.version if isinstance(self.version, tuple) else (self.version,) * len(self.addresses)


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a command. A refusal changed nothing and says why.

    Args:
        accepted: whether it was carried out.
        reason: why not.
        version: the new version of the seeds, where the command named one lifecycle.
        versions: those of each of the command's ``addresses``.
        command_id: the command's ``id``, which makes no answer differ from another; empty for what was asked for
            without a command.
    """

    accepted: bool
    reason: str = ""
    version: int | None = None
    versions: tuple[int, ...] = ()
    command_id: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Handled:
    """A command that came from elsewhere was answered.

    Args:
        command_id: its id.
        who: who asked.
        accepted: whether it was carried out.
        reason: why not.
        received: when it came, in seconds since 1970.
        answered: when it was answered, likewise.
        headers: of the message that brought it.
        is_decision: whether it is part of a decision that the run has asked for.
    """

    command_id: str
    who: str
    accepted: bool
    reason: str
    received: float
    answered: float
    headers: Mapping[str, str]
    is_decision: bool = False
