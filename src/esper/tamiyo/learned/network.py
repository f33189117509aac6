"""The network that judges: a transformer over the tokens of a boundary, and a head for each question.

For every action it says whether the graft would beat its twin, what share of the final loss that would save at equal
total training FLOPs against never growing, what it costs if it does not, and how uncertain all that is; for the run,
what whoever waits can still hope for. Two further heads are a policy: how strongly each action, waiting and stopping
are preferred.
"""

# B boundaries, R features of the run, P places, G features of a place, A actions, H features of an action, D width

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esper.tamiyo.learned.tokens import Tokens, names

WAIT, STOP = 0, 1
"""Choices before the actions in what the policy prefers: nothing now, and nothing in this run any more."""

LEAST_SPREAD = 0.01
"""A judgement is never taken to be more certain."""


@dataclass(frozen=True)
class Shape:
    """Of a network, and how it decides.

    Args:
        width: of its vectors.
        heads: of its attention.
        layers: of its encoder.
        chooses_by: ``"judgement"`` takes the action of which it expects most, where that is worth its cost;
            ``"policy"`` what it prefers.
        caution: so many deviations are taken off what is expected of an action.
    """

    width: int = 64
    heads: int = 4
    layers: int = 2
    chooses_by: Literal["judgement", "policy"] = "judgement"
    caution: float = 0.5

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


class Padded(NamedTuple):
    """Boundaries of several runs, side by side.

    Args:
        run: ``[B, R]``.
        places: ``[B, P, G]``.
        is_place: bool ``[B, P]``; the others are padding.
        actions: ``[B, A, H]``.
        is_action: bool ``[B, A]``.
        place_of: int64 ``[B, A]``, index of each action's place.
    """

    run: Tensor
    places: Tensor
    is_place: Tensor
    actions: Tensor
    is_action: Tensor
    place_of: Tensor

    @classmethod
    def of(cls, boundaries: Sequence[Tokens]) -> Self:
        """Boundaries ``[B]``, padded to the most places and actions, at least one each."""
        known = names()
        most = [max(1, *(len(one[index]) for one in boundaries)) for index in (1, 2)]
        sizes = len(known.place), len(known.action)
        shape = [torch.zeros(len(boundaries), count, size) for count, size in zip(most, sizes, strict=True)]
        is_there = [torch.zeros(len(boundaries), count, dtype=torch.bool) for count in most]
        place_of = torch.zeros(len(boundaries), most[1], dtype=torch.int64)
        for row, one in enumerate(boundaries):
            for index, vectors in enumerate((one.places, one.actions)):
                if vectors:
                    shape[index][row, : len(vectors)] = torch.tensor(vectors)
                    is_there[index][row, : len(vectors)] = True
            place_of[row, : len(one.place_of)] = torch.tensor(one.place_of, dtype=torch.int64)
        return cls(
            torch.tensor([one.run for one in boundaries]), shape[0], is_there[0], shape[1], is_there[1], place_of
        )

    def rows(self, index: Tensor) -> Self:
        """Some of them."""
        return type(self)(*(part[index] for part in self))

    def with_one_action(self, index: Tensor) -> Self:
        """The same with one action at each: ``index`` is int64 ``[B]``."""
        row = torch.arange(len(index))
        actions, is_action, place_of = (part[row, index][:, None] for part in self[3:])
        return type(self)(*self[:3], actions, is_action, place_of)


class Judged(NamedTuple):
    """What the network says of boundaries.

    Args:
        adopt: ``[B, A]``, logit of the graft beating its twin.
        adopted: ``[B, A]``, share of the final loss that is saved if it does.
        lost: ``[B, A]``, the same if it does not: what trying costs, negative.
        spread: ``[B, A]``, standard deviation of what is saved, above 0.
        choice: ``[B, 2 + A]``, log-probabilities of waiting, stopping and each action; -inf where there is none.
        value: ``[B]``, what share can still be saved by whoever waits.
    """

    adopt: Tensor
    adopted: Tensor
    lost: Tensor
    spread: Tensor
    choice: Tensor
    value: Tensor

    @property
    def gain(self) -> Tensor:
        """``[B, A]``, share of the final loss that an action is expected to save; negative where it costs."""
        chance = self.adopt.sigmoid()
        return chance * self.adopted + (1 - chance) * self.lost


class TamiyoNetwork(nn.Module):
    """Judges boundaries.

    A token is a linear map of its standardised features; run and places attend to each other (Vaswani et al.,
    "Attention is all you need", NeurIPS 2017; norms first). An action reads its own features and what came out for its
    place and for the run.

    Args:
        shape: of the network.
        inputs: features of a run, a place and an action; None takes those of :mod:`esper.tamiyo.learned.tokens`.
    """

    def __init__(self, shape: Shape, inputs: tuple[int, int, int] | None = None) -> None:
        super().__init__()
        known, width = names(), shape.width
        sizes = inputs or (len(known.run), len(known.place), len(known.action))
        self.shape = shape
        self.run, self.place, self.action = (_Read(size, width) for size in sizes)
        layer = nn.TransformerEncoderLayer(
            width, shape.heads, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, shape.layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.meet = nn.Sequential(nn.Linear(3 * width, 2 * width), nn.GELU(), nn.Linear(2 * width, width), nn.GELU())
        self.heads = nn.Linear(width, 4)
        self.prefer = nn.Linear(width, 1)
        of_run = nn.Linear(width, 3)
        self.of_run = nn.Sequential(nn.Linear(width, width), nn.GELU(), of_run)
        for last in (self.heads, self.prefer, of_run):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, seen: Padded) -> Judged:
        """Judge boundaries.

        Args:
            seen: ``[B]`` of them.
        """
        tokens_BPD = torch.cat([self.run(seen.run)[:, None], self.place(seen.places)], dim=1)
        is_padding = torch.cat([torch.zeros_like(seen.is_place[:, :1]), ~seen.is_place], dim=1)
        read_BPD = self.encoder(tokens_BPD, src_key_padding_mask=is_padding)
        run_BD, places_BPD = read_BPD[:, 0], read_BPD[:, 1:]
        where_BAD = places_BPD.gather(1, seen.place_of[..., None].expand(-1, -1, places_BPD.shape[-1]))
        met_BAD = self.meet(
            torch.cat([self.action(seen.actions), where_BAD, run_BD[:, None].expand_as(where_BAD)], dim=-1)
        )
        adopt, adopted, lost, spread = self.heads(met_BAD).unbind(-1)
        wait, stop, value = self.of_run(run_BD).unbind(-1)
        preferred = self.prefer(met_BAD)[..., 0].masked_fill(~seen.is_action, -torch.inf)
        choice = torch.cat([wait[:, None], stop[:, None], preferred], dim=1).log_softmax(-1)
        return Judged(adopt, adopted, lost, LEAST_SPREAD + F.softplus(spread - 3), choice, value)

    @torch.no_grad()
    def standardise(self, seen: Padded) -> None:
        """Take means, deviations and ranges of features from the boundaries to learn from."""
        for reader, vectors in (
            (self.run, seen.run),
            (self.place, seen.places[seen.is_place]),
            (self.action, seen.actions[seen.is_action]),
        ):
            reader.take(vectors)

    @torch.no_grad()
    def strangeness(self, seen: Padded) -> Tensor:
        """How far the worst feature of a boundary lies outside of what was seen in training, in deviations: ``[B]``."""
        parts = [self.run.outside(seen.run)]
        for reader, vectors, is_there in (
            (self.place, seen.places, seen.is_place),
            (self.action, seen.actions, seen.is_action),
        ):
            parts.append(reader.outside(vectors).masked_fill(~is_there, 0).amax(1))
        return torch.stack(parts).amax(0)

    @property
    def num_parameters(self) -> int:
        """Of what is learned."""
        return sum(parameter.numel() for parameter in self.parameters())


class _Read(nn.Module):
    """A linear map of standardised features; it knows their ranges."""

    mean: Tensor
    deviation: Tensor
    least: Tensor
    most: Tensor

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, width)
        for name, value in (("mean", 0.0), ("deviation", 1.0), ("least", 0.0), ("most", 0.0)):
            self.register_buffer(name, torch.full((inputs,), value))

    def forward(self, vectors: Tensor) -> Tensor:
        read: Tensor = self.linear((vectors - self.mean) / self.deviation)
        return read

    def take(self, vectors: Tensor) -> None:
        self.mean.copy_(vectors.mean(0))
        self.deviation.copy_(vectors.std(0, correction=0).clamp(min=0.05))
        self.least.copy_(vectors.amin(0))
        self.most.copy_(vectors.amax(0))

    def outside(self, vectors: Tensor) -> Tensor:
        """Of each vector, how far its worst feature lies outside of the range, in deviations."""
        return (torch.maximum(self.least - vectors, vectors - self.most).clamp(min=0) / self.deviation).amax(-1)
