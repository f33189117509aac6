"""Hosts whose blocks can be copied, and some whose blocks cannot."""

from collections import OrderedDict

import torch
from torch import Tensor, nn

import esper
from esper.kasmina.host.anchoring import places
from esper.kasmina.places.place import Place
from esper.tasks.cnn import cnn
from esper.tasks.gpt import GPT
from tests.kasmina.growing import place_of

WIDTH = 8


class Bottleneck(nn.Module):
    """He et al., "Deep residual learning", CVPR 2016, figure 5 right."""

    def __init__(self, channels: int, hidden: int, stride: int = 1):
        super().__init__()
        self.down, self.norm1 = nn.Conv2d(channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden)
        self.conv, self.norm2 = nn.Conv2d(hidden, hidden, 3, stride, 1, bias=False), nn.BatchNorm2d(hidden)
        self.up, self.norm3 = nn.Conv2d(hidden, channels, 1, bias=False), nn.BatchNorm2d(channels)
        self.activation = nn.ReLU(inplace=True)
        self.shortcut = nn.Identity() if stride == 1 else nn.AvgPool2d(stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.norm1(self.down(x)))
        y = self.activation(self.norm2(self.conv(y)))
        return self.activation(self.norm3(self.up(y)) + self.shortcut(x))


class ResNet(nn.Module):
    def __init__(self, *strides: int):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH), nn.ReLU())
        self.stage = nn.Sequential(*(Bottleneck(WIDTH, 4, stride) for stride in strides))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stage(self.stem(x)).mean((2, 3)))


class Encoder(nn.Module):
    """Torch's own encoder, with padding that is masked."""

    def __init__(self, *, norm_first: bool, dropout: float = 0.1):
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 12, dropout, batch_first=True, norm_first=norm_first)
        self.embed, self.head = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x), src_key_padding_mask=padding))


class Rooted(nn.Module):
    """A block whose gradients are not finite where ``scale`` is 0, although what it gives is."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.scale = nn.Linear(6, 7), nn.Linear(7, 6), nn.Parameter(torch.ones(7))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2((self.fc1(x).square() * self.scale).sqrt())


def rooted() -> nn.Sequential:
    blocks = nn.Sequential(Rooted(), Rooted(), Rooted())
    return nn.Sequential(OrderedDict(embed=nn.Linear(6, 6), blocks=blocks, head=nn.Linear(6, 4)))


def padded() -> tuple[Tensor, Tensor]:
    padding = torch.zeros(3, 7, dtype=torch.bool)
    padding[0, 4:] = True
    return torch.randn(3, 7, 5), padding


HOSTS = {
    "gpt": (
        lambda: GPT(11, 16, WIDTH, 12, 4, 2, dropout=0.1),
        lambda: (torch.randint(0, 11, (3, 16)),),
        "blocks.*",
        ("attention.out.weight", "attention.out.bias", "mlp.2.weight", "mlp.2.bias"),
    ),
    "cnn": (
        lambda: cnn((1, 20), (4, 4, 4, 6), (1, 1, 2), 10),
        lambda: (torch.randn(5, 20),),
        "stages.*",
        ("body.4.weight", "body.4.bias"),
    ),
    "encoder": (
        lambda: Encoder(norm_first=True),
        padded,
        "encoder.layers.*",
        ("self_attn.out_proj.weight", "self_attn.out_proj.bias", "linear2.weight", "linear2.bias"),
    ),
    "resnet": (
        lambda: ResNet(1, 1),
        lambda: (torch.randn(4, 3, 6, 6),),
        "stage.*",
        ("norm3.weight", "norm3.bias"),
    ),
}
"""How to build a host, an example, the colony of its blocks, and what is zero in their copies."""


def built(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    build, example, *_ = HOSTS[name]
    torch.manual_seed(0)
    return build(), example()


def deepened(name: str) -> tuple[nn.Module, Place, tuple[Tensor, ...]]:
    """A wrapped host, the colony of its blocks, and an example."""
    model, example = built(name)
    esper.wrap(model, esper.GrowthConfig(), example)
    return model, place_of(model, HOSTS[name][2]), example


def copied(model: nn.Module) -> set[str]:
    """Names of the blocks of a wrapped model that may be copied."""
    return {piece.module for place in places(model) for piece in place.site.pieces if piece.role == "copy"}
