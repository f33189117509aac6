"""A small self-attention beside the host.

Legend: B batch, T tokens that ask, U tokens that answer (as many), H heads, D width of a head.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from esper.blueprints.blueprint import Blueprint, Ports, drawn
from esper.contracts.reports import Layout


@dataclass(frozen=True)
class MiniAttention(Blueprint):
    """``delta(x) = W2 attention(W1 x) + b2`` with ``W2 = b2 = 0`` at birth (:func:`attend`).

    Padding tokens are tokens to it: pad on the right of causal sequences.

    Args:
        heads: number of heads.
        head_width: width of each head's queries, keys and values.
        causal: whether no token sees the tokens after it. False only where the host itself looks both ways.
    """

    id: ClassVar[str] = "mini_attention"
    family: ClassVar[str] = "mini_attention"
    layouts: ClassVar[frozenset[Layout]] = frozenset({"tokens"})
    size: ClassVar[str | None] = "head_width"
    confidence: ClassVar[int] = 2

    heads: int = 2
    head_width: int = 8
    causal: bool = True

    def shapes(self, ports: Ports) -> dict[str, tuple[int, ...]]:
        width = self.heads * self.head_width
        return {"w1": (3 * width, ports.inputs), "w2": (ports.outputs, width), "b2": (ports.outputs,)}

    def init(self, ports: Ports, generator: Generator) -> dict[str, Tensor]:
        return drawn(self.shapes(ports), generator, "w1")

    def delta(self, params: dict[str, Tensor], x: Tensor) -> Tensor:
        mixed = attend(x, params["w1"], self.heads, is_causal=self.causal)
        return F.linear(mixed, params["w2"], params["b2"])

    def multiply_adds(self, ports: Ports) -> int:
        """Its parameters, and two products of every token with every token."""
        return self.num_parameters(ports) + 2 * ports.positions * self.heads * self.head_width


def attend(x: Tensor, weight: Tensor, heads: int, *, is_causal: bool) -> Tensor:
    """Self-attention (Vaswani et al., NeurIPS 2017, section 3.2), without a map behind it.

    The maths is written out: in torch 2.13 ``scaled_dot_product_attention`` has no rule for vmap on the CPU, and its
    FLOPs are not counted there.

    Args:
        x: ``[batch, tokens, inputs]``.
        weight: ``[3 * heads * D, inputs]``; queries, keys and values one after the other.
        heads: that mix by themselves.
        is_causal: whether no token sees the tokens after it.

    Returns:
        ``[batch, tokens, heads * D]``.
    """
    width = weight.shape[0] // (3 * heads)
    q_BHTD, k_BHUD, v_BHUD = F.linear(x, weight).unflatten(-1, (3, heads, width)).movedim(1, -2).unbind(1)
    scores_BHTU = q_BHTD @ k_BHUD.transpose(-1, -2) / math.sqrt(width)
    if is_causal:
        is_later_TU = scores_BHTU.new_ones(scores_BHTU.shape[-2:], dtype=torch.bool).triu(1)
        scores_BHTU = scores_BHTU.masked_fill(is_later_TU, -math.inf)
    mixed_BHTD = scores_BHTU.softmax(-1) @ v_BHUD
    return mixed_BHTD.transpose(1, 2).flatten(-2)
