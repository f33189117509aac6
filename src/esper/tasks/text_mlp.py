"""A perceptron that predicts the next token from the last few."""

# B windows, T tokens, F features of a token, K tokens that a prediction sees

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch.nn.functional as F
from torch import Tensor, nn

from esper.tasks.mlp import mlp, num_parameters, scaled


class LastTokens(nn.Module):
    """int64 ``[B, T]`` to ``[B, T, K * F]``: at every token the vectors of the last ``K``, itself the last of them.

    Before the first token stands a vector of its own, which is learned as the tokens' are.

    Args:
        vocabulary: number of tokens.
        window: how many tokens a prediction sees, ``K``.
        features: of each token, ``F``.
    """

    def __init__(self, vocabulary: int, window: int, features: int) -> None:
        super().__init__()
        self.vectors = nn.Embedding(vocabulary + 1, features)
        self.padding, self.window = vocabulary, window

    def forward(self, tokens: Tensor) -> Tensor:
        x_BTF: Tensor = self.vectors(F.pad(tokens, (self.window - 1, 0), value=self.padding))
        return x_BTF.unfold(1, self.window, 1).transpose(-1, -2).flatten(-2)


def text_mlp(vocabulary: int, window: int, features: int, hidden: Sequence[int]) -> nn.Sequential:
    """int64 ``[B, T]`` to logits ``[B, T, vocabulary]`` of the token that comes next, from the last ``window`` tokens.

    After Bengio et al., "A neural probabilistic language model", JMLR 2003, section 2, with ReLU and without direct
    connections from the embedding to the output.

    Args:
        vocabulary: number of tokens.
        window: how many of them a prediction sees.
        features: of each token.
        hidden: widths of the hidden layers.
    """
    return nn.Sequential(
        OrderedDict(
            embedding=LastTokens(vocabulary, window, features),
            perceptron=mlp([window * features, *hidden, vocabulary]),
        )
    )


@dataclass(frozen=True)
class TextMLPHost:
    """A :class:`~esper.tasks.task.HostFactory` of :func:`text_mlp`.

    The features of a token are scaled to a whole number, and the hidden layers so that the parameters come closest to
    those that the unrounded widths would have.
    """

    vocabulary: int
    window: int = 8
    features: int = 8
    hidden: tuple[int, ...] = (18, 18)

    def __call__(self, width_factor: float = 1.0) -> nn.Sequential:
        return text_mlp(self.vocabulary, self.window, *self.scaled(width_factor))

    def deeper(self) -> Self:
        """The same with one more hidden layer, as wide as the last one."""
        return replace(self, hidden=(*self.hidden, self.hidden[-1]))

    def scaled(self, factor: float) -> tuple[int, tuple[int, ...]]:
        """Features of a token, and widths of the hidden layers."""
        features = max(1, round(self.features * factor))
        wanted = self.num_parameters(self.features * factor, [width * factor for width in self.hidden])
        low, high = 0.0, 2 * factor
        while self.num_parameters(features, [width * high for width in self.hidden]) < wanted:
            high *= 2
        while high - low > 1e-9 * high:
            middle = (low + high) / 2
            is_small = self.num_parameters(features, [width * middle for width in self.hidden]) < wanted
            low, high = (middle, high) if is_small else (low, middle)
        widths = scaled([self.window * features, *self.hidden, self.vocabulary], high)
        return features, tuple(widths[1:-1])

    def num_parameters(self, features: float, hidden: Sequence[float]) -> float:
        """Parameters of :func:`text_mlp`, also for widths that are not whole."""
        return (self.vocabulary + 1) * features + num_parameters([self.window * features, *hidden, self.vocabulary])
