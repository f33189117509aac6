"""A small causal transformer."""

# B windows, T tokens, H heads, D features of a head, M features of the model

from dataclasses import dataclass, replace
from typing import Self

import torch.nn.functional as F
from torch import Tensor, nn

INIT_STD = 0.02


class Attention(nn.Module):
    """Causal multi-head self-attention.

    Args:
        width: features, a multiple of ``heads``.
        heads: that look independently of each other.
        dropout: share of attention weights dropped in training.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.heads, self.dropout = heads, dropout

    def forward(self, x: Tensor) -> Tensor:
        q_BHTD, k_BHTD, v_BHTD = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        dropout = self.dropout if self.training else 0.0
        y_BHTD = F.scaled_dot_product_attention(q_BHTD, k_BHTD, v_BHTD, dropout_p=dropout, is_causal=True)
        y: Tensor = self.out(y_BHTD.transpose(1, 2).flatten(-2))
        return y


class Block(nn.Module):
    """Attention and a perceptron, each behind a norm and around a skip connection ("pre-norm").

    Args:
        width, heads, dropout: as in :class:`Attention`; dropout also acts on both branches.
        hidden: features of the perceptron.
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.mlp(self.norm2(x)))


class Embedding(nn.Module):
    """Tokens and their positions, as vectors."""

    def __init__(self, vocabulary: int, context: int, width: int) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(context, width)
        for table in (self.token, self.position):
            nn.init.normal_(table.weight, std=INIT_STD)

    def forward(self, tokens: Tensor) -> Tensor:
        x: Tensor = self.token(tokens) + self.position.weight[: tokens.shape[-1]]
        return x


class GPT(nn.Module):
    """int64 ``[B, T]`` with ``T`` up to ``context``, to logits ``[B, T, vocabulary]`` of the token that comes next.

    After Radford et al., "Language models are unsupervised multitask learners", 2019, without tied weights.

    Args:
        vocabulary: number of tokens.
        context: longest window.
        width: features of the model, a multiple of ``heads``.
        hidden: features of each block's perceptron.
        blocks: number of blocks.
        heads: of each attention.
        dropout: share dropped in training.
    """

    def __init__(
        self,
        vocabulary: int,
        context: int,
        width: int,
        hidden: int,
        blocks: int,
        heads: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.embedding = Embedding(vocabulary, context, width)
        self.blocks = nn.Sequential(*(Block(width, heads, hidden, dropout) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.blocks(self.embedding(tokens))))
        return logits


@dataclass(frozen=True)
class GPTHost:
    """A :class:`~esper.tasks.task.HostFactory` of :class:`GPT`.

    The width of the model is scaled to whole heads and the perceptrons' so that the parameters come closest to those
    that the unrounded widths would have.
    """

    vocabulary: int
    context: int
    width: int = 24
    hidden: int = 24
    blocks: int = 4
    heads: int = 2
    dropout: float = 0.0

    def __call__(self, width_factor: float = 1.0) -> GPT:
        width, hidden = self.scaled(width_factor)
        return GPT(self.vocabulary, self.context, width, hidden, self.blocks, self.heads, self.dropout)

    def deeper(self) -> Self:
        """The same with one more block."""
        return replace(self, blocks=self.blocks + 1)

    def scaled(self, factor: float) -> tuple[int, int]:
        """Width of the model and of its perceptrons."""
        width = self.heads * max(1, round(self.width * factor / self.heads))
        wanted = self.num_parameters(self.width * factor, self.hidden * factor)
        per_unit = self.num_parameters(width, 1) - self.num_parameters(width, 0)
        return width, max(1, round((wanted - self.num_parameters(width, 0)) / per_unit))

    def num_parameters(self, width: float, hidden: float) -> float:
        """Parameters of :class:`GPT`, also for widths that are not whole."""
        perceptron = hidden * (2 * width + 1) + width
        block = 2 * (2 * width) + 4 * width * (width + 1) + perceptron
        outside = (self.vocabulary + self.context) * width + 2 * width + self.vocabulary * (width + 1)
        return self.blocks * block + outside
