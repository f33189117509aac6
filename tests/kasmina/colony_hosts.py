"""Hosts in which colonies of every kind are found, with the names of those colonies and the kinds of their pieces."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esper.tasks.cnn import cnn
from esper.tasks.gpt import GPT
from esper.tasks.text_mlp import text_mlp
from tests.kasmina.zoo import REAL, VOCABULARY, ZOO, Host, ids


class Gated(nn.Module):
    """Blocks with a gated linear unit (Shazeer, "GLU variants improve transformer", 2020) and RMS norms."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.position = nn.Embedding(VOCABULARY, 8), nn.Parameter(torch.randn(6, 8))
        self.scale = nn.Parameter(torch.rand(8))
        self.blocks = nn.ModuleList([GatedBlock(8, 12) for _ in range(2)])
        self.norm, self.head = nn.RMSNorm(8), nn.Linear(8, VOCABULARY, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) * self.scale + self.position[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class GatedBlock(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm, self.dropout = nn.RMSNorm(width), nn.Dropout(0.2)
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.down(self.dropout(F.silu(self.gate(y)) * self.up(y)))


class Bottleneck(nn.Module):
    """He et al., "Deep residual learning", CVPR 2016, figure 5."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, inner, 3, padding=1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        y += x
        return F.relu(y, inplace=True)


class Separable(nn.Module):
    """Depthwise, then across channels, with group norms, around a sum."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(width, hidden, 1),
            nn.Conv1d(hidden, hidden, 3, padding=1, groups=hidden),
            nn.GroupNorm(3, hidden),
            nn.GELU(),
            nn.Dropout1d(0.2),
            nn.Conv1d(hidden, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Patches(nn.Module):
    """Tokens whose head reads all channels of all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(4, 6), nn.Linear(5 * 6, 3)
        self.blocks = nn.Sequential(*(GatedBlock(6, 8) for _ in range(2)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.embed(x))
        return self.head(F.dropout(x.reshape(len(x), -1) * 2.0, 0.1, self.training))


def bottlenecks() -> nn.Sequential:
    blocks = nn.Sequential(Bottleneck(6, 4), Bottleneck(6, 4))
    head = [nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.2), nn.Linear(24, 3)]
    return nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), blocks, *head)


def separable() -> nn.Sequential:
    blocks = nn.Sequential(Separable(4, 6), Separable(4, 6))
    return nn.Sequential(
        nn.Conv1d(1, 4, 3), nn.GroupNorm(1, 4), blocks, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3)
    )


def perceptron() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 3))


class Found(NamedTuple):
    """A host, and the kinds of pieces of each of its colonies by name."""

    host: Host
    colonies: dict[str, set[str]]


NETS: dict[str, Found] = {
    "perceptron": Found(Host(perceptron, lambda: torch.randn(4, 5)), {"*": {"linear"}}),
    "cnn": Found(
        Host(lambda: cnn((1, 40), (4, 4, 6, 8), (1, 2, 2), 3), lambda: torch.randn(4, 40)),
        {"stages.*.body": {"conv", "batch_norm"}, "*": {"conv", "batch_norm", "linear"}},
    ),
    "gpt": Found(
        Host(lambda: GPT(VOCABULARY, 8, 8, 12, 2, 2, 0.2), lambda: ids(3, 6)),
        {
            "blocks.*.mlp": {"linear", "beside"},
            "blocks.*": {"beside"},
            "*": {"embedding", "table", "layer_norm", "linear"},
        },
    ),
    "gated": Found(
        Host(Gated, lambda: ids(3, 6)),
        {"blocks.*": {"linear", "beside"}, "*": {"embedding", "table", "rms_norm", "linear"}},
    ),
    "patches": Found(
        Host(Patches, lambda: torch.randn(4, 5, 4)),
        {"blocks.*": {"linear", "beside"}, "*": {"rms_norm", "linear"}},
    ),
    "last tokens": Found(
        Host(lambda: text_mlp(VOCABULARY, 3, 4, (6,)), lambda: ids(4, 5)), {"*": {"embedding", "linear"}}
    ),
    "bottlenecks": Found(
        Host(bottlenecks, lambda: torch.randn(4, 2, 4, 4)),
        {"*.*.body": {"conv", "batch_norm", "beside"}, "*": {"conv", "batch_norm", "linear"}, "*.*": {"beside"}},
    ),
    "separable": Found(
        Host(separable, lambda: torch.randn(4, 1, 9)),
        {
            "*.*.body": {"conv", "depthwise", "group_norm", "beside"},
            "*": {"conv", "depthwise", "group_norm", "linear"},
            "*.*": {"beside"},
        },
    ),
    "encoder": Found(ZOO["encoder"], {"layers.*": {"linear", "beside"}}),
    "llama": Found(
        REAL["llama"],
        {
            "model.layers.*.mlp": {"linear"},
            "model.layers.*": {"beside"},
            "*": {"embedding", "rms_norm", "linear"},
        },
    ),
    "t5": Found(
        REAL["t5"],
        {
            "encoder.block.*.layer.*.DenseReluDense": {"linear"},
            "decoder.block.*.layer.*.DenseReluDense": {"linear"},
            "encoder.block.*.layer.*": {"beside"},
            "decoder.block.*.layer.*": {"beside"},
            "*": {"embedding", "rms_norm", "linear"},
        },
    ),
    "vit": Found(
        REAL["vit"],
        {
            "vit.layers.*.mlp": {"linear"},
            "vit.layers.*": {"beside"},
            "*": {"conv", "table", "layer_norm", "linear"},
        },
    ),
    "gpt2": Found(
        REAL["gpt2"],
        {
            "transformer.h.*.mlp": {"linear"},
            "transformer.h.*": {"beside"},
            "*": {"embedding", "layer_norm", "linear"},
        },
    ),
}

COLONIES = [
    (name, colony, blueprint)
    for name, (_, colonies) in NETS.items()
    for colony, roles in colonies.items()
    for blueprint in ("widen", "bottleneck_mlp")
    if (roles != {"beside"} if blueprint == "widen" else "beside" in roles)
]
"""Host, colony and blueprint, as they fit."""
