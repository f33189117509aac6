"""Models that people have, in small: each a host class, an example input, and how to call it.

No test of a part of Esper uses them, so nothing was tuned on them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY = 11


@dataclass(frozen=True)
class Host:
    """One model of the zoo.

    Args:
        build: makes it from the global random state.
        example: makes an input: a tensor, a tuple of positional or a dict of keyword arguments.
        output: the tensor that a loss reads from what the model returns; its first axis is the batch.
        batch_axes: of the example's tensors, each in turn.
    """

    build: Callable[[], nn.Module]
    example: Callable[[], Any]
    output: Callable[[Any], Tensor] = lambda result: result
    batch_axes: tuple[int, ...] = (0,)


def call(model: nn.Module, example: Any) -> Any:
    if isinstance(example, dict):
        return model(**example)
    return model(*example) if isinstance(example, tuple) else model(example)


class Stage(nn.Module):
    """A residual stage with grouped convolutions, a stride and in-place activations."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, groups=2, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1, groups=2, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.skip = nn.Identity() if stride == 1 else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.skip(x), inplace=True)


class ResidualCNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.stages = nn.Sequential(Stage(8, 8, 1), Stage(8, 12, 2))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x)).mean((2, 3)))


class TiedLanguageModel(nn.Module):
    """A causal transformer whose head is its embedding, with blocks in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, 8), nn.Parameter(torch.zeros(6, 8))
        self.blocks = nn.ModuleList(CausalBlock() for _ in range(2))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, VOCABULARY, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class CausalBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(8), nn.LayerNorm(8)
        self.qkv, self.project = nn.Linear(8, 24), nn.Linear(8, 8)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Dropout(0.1), nn.Linear(16, 8))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.before(x)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.project(attended)
        return x + self.mlp(self.between(x))


class Shared(nn.Module):
    """One layer that is called three times, with weights used from outside too."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.step, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.again = self.step

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.embed(x))
        for layer in (self.step, self.again, self.step):
            h = h + torch.relu(layer(h))
        return self.head(h) + h @ self.step.weight[:, :4]


class Attention(nn.Module):
    """Attention with a tuple output, called by keywords, tokens first."""

    def __init__(self) -> None:
        super().__init__()
        self.attend, self.norm, self.head = nn.MultiheadAttention(8, 2, dropout=0.1), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        attended, _ = self.attend(query=x, key=x, value=x, key_padding_mask=mask)
        return self.head(self.norm(x + attended).mean(0))


class TokensFirst(nn.Module):
    """A language model with torch's default layout: the batch is the second axis of all that its layers see."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.rnn = nn.Embedding(VOCABULARY, 8), nn.GRU(8, 8)
        self.encoder, self.norm = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.1), nn.LayerNorm(8)
        self.mlp, self.head = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8)), nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.encoder(self.rnn(self.tokens(ids))[0])
        return self.head(x + self.mlp(self.norm(x))).mean(0)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn, self.head = kind(5, 8, num_layers=2, batch_first=True, bidirectional=True), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        states, last = self.rnn(x)
        return self.head(torch.relu(states[:, -1])), last


class Named(NamedTuple):
    logits: Tensor
    hidden: Tensor


@dataclass
class Parts:
    note: str
    logits: Tensor


class MappingBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 6)

    def forward(self, *, features: Tensor) -> dict[str, Any]:
        return {"count": len(features), "features": features + self.down(F.silu(self.up(features)))}


class Outputs(nn.Module):
    """Blocks that return mappings, named tuples and dataclasses, with keyword arguments only."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([MappingBlock(), MappingBlock()])
        self.named, self.parts = NamedHead(), PartsHead()

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        for block in self.blocks:
            features = block(features=features)["features"]
        return {"named": self.named(features).logits, "parts": self.parts(features).logits}


class NamedHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Named:
        return Named(self.linear(x), x)


class PartsHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Parts:
        return Parts("logits", self.linear(x))


class UNet(nn.Module):
    """Down, across and up again, with a transposed convolution and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(2, 6, 3, 2, padding=1), nn.GroupNorm(3, 6), nn.SiLU())
        self.across = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.InstanceNorm2d(6, affine=True), nn.GELU())
        self.up = nn.ConvTranspose2d(6, 4, 2, 2)
        self.out = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.cat([self.up(self.across(self.down(x))), x], dim=1))


class VisionTransformer(nn.Module):
    """Patches, a class token, torch's own encoder layers."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(1, 8, 4, 4), nn.Parameter(torch.zeros(1, 1, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True, norm_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], dim=1)
        return self.head(self.encoder(tokens)[:, 0])


class PatchEmbedding(nn.Module):
    """An image in, tokens out."""

    def __init__(self, inputs: int, outputs: int, side: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, side, side)

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(x).flatten(2).transpose(1, 2)


class Merging(nn.Module):
    """Four neighbours become one, channels last (Liu et al., "Swin Transformer", ICCV 2021, section 3.1)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * inputs), nn.Linear(4 * inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.reduction(self.norm(x.unflatten(1, (-1, 2)).unflatten(3, (-1, 2)).transpose(2, 3).flatten(3)))


class ChannelsLast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


class Pyramid(nn.Module):
    """An image with its channels last, and fewer positions at every stage."""

    def __init__(self) -> None:
        super().__init__()
        stem = nn.Sequential(nn.Conv2d(3, 5, 2, 2), ChannelsLast(), nn.LayerNorm(5))
        mlp = nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 6))
        self.stages, self.head = nn.ModuleList([stem, Merging(5, 6), mlp]), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        return self.head(x.mean((1, 2)))


class Patches(nn.Module):
    """Patches, then each token by itself, for dense labels."""

    def __init__(self) -> None:
        super().__init__()
        mlp = nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 6))
        self.stages, self.head = nn.ModuleList([PatchEmbedding(3, 6, 4), mlp]), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        return self.head(x)


class Mixer(nn.Module):
    """Mixes tokens and channels in turn by transposing."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 5))
        self.channels = nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 6))
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(x.mT).mT
        return self.head(self.norm(x + self.channels(x)).mean(1))


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag, self.hidden, self.head = nn.EmbeddingBag(VOCABULARY, 6), nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(F.relu_(self.hidden(self.bag(ids))))


def separable() -> nn.Sequential:
    """A chain over a signal: depthwise and pointwise convolutions, a stride, batch norm, a pooled head."""
    return nn.Sequential(
        nn.Conv1d(1, 6, 5, stride=2, padding=2),
        nn.BatchNorm1d(6),
        nn.ReLU(inplace=True),
        nn.Conv1d(6, 6, 3, padding=1, groups=6),
        nn.Conv1d(6, 8, 1),
        nn.ReLU6(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def encoder() -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.2, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def perceptron() -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(12, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Dropout(0.3), nn.Linear(9, 7), nn.Linear(7, 3)
    )


def pixels() -> nn.Sequential:
    """More pixels than a graft would read if they were pooled."""
    return nn.Sequential(nn.Flatten(), nn.Linear(392, 6), nn.ReLU(), nn.Linear(6, 3))


def ids(*shape: int) -> Tensor:
    return torch.randint(0, VOCABULARY, shape)


def padded() -> tuple[Tensor, Tensor]:
    mask = torch.zeros(4, 5, dtype=torch.bool)
    mask[0, 3:] = True
    return torch.randn(5, 4, 8), mask


ZOO: dict[str, Host] = {
    "residual_cnn": Host(ResidualCNN, lambda: torch.randn(4, 3, 8, 8)),
    "separable_cnn": Host(separable, lambda: torch.randn(5, 1, 16)),
    "unet": Host(UNet, lambda: torch.randn(3, 2, 8, 8)),
    "encoder": Host(encoder, lambda: torch.randn(3, 5, 8)),
    "vision_transformer": Host(VisionTransformer, lambda: torch.randn(3, 1, 8, 8)),
    "tied_language_model": Host(TiedLanguageModel, lambda: ids(3, 6)),
    "shared_layer": Host(Shared, lambda: torch.randn(5, 6)),
    "attention": Host(Attention, padded, batch_axes=(1, 0)),
    "tokens_first": Host(TokensFirst, lambda: ids(5, 4), batch_axes=(1,)),
    "gru": Host(lambda: Recurrent(nn.GRU), lambda: torch.randn(4, 6, 5), lambda result: result[0]),
    "lstm": Host(lambda: Recurrent(nn.LSTM), lambda: torch.randn(4, 6, 5), lambda result: result[0]),
    "outputs": Host(Outputs, lambda: {"features": torch.randn(5, 6)}, lambda result: result["named"] + result["parts"]),
    "mixer": Host(Mixer, lambda: torch.randn(4, 5, 6)),
    "embedding_bag": Host(Bag, lambda: ids(4, 3)),
    "patches": Host(Patches, lambda: torch.randn(3, 3, 8, 12)),
    "pyramid": Host(Pyramid, lambda: torch.randn(3, 3, 12, 8)),
    "pixels": Host(pixels, lambda: torch.randn(3, 2, 14, 14)),
    "perceptron": Host(perceptron, lambda: torch.randn(6, 3, 4)),
}


def real(kind: str, **own: Any) -> Callable[[], nn.Module]:
    """Builds a model of transformers from a small configuration."""

    def build() -> nn.Module:
        import transformers

        common = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": None, "pad_token_id": 0}
        config = getattr(transformers, kind.partition("For")[0].removesuffix("LMHeadModel") + "Config")
        model: nn.Module = getattr(transformers, kind)(config(**common | own))
        return model

    return build


def ids_of(name: str = "input_ids") -> Callable[[], dict[str, Tensor]]:
    return lambda: {name: ids(3, 6)}


HIDDEN = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
ENDS = {
    f"{end}_{part}": size
    for end in ("encoder", "decoder")
    for part, size in {"layers": 2, "attention_heads": 2, "ffn_dim": 24}.items()
}

REAL: dict[str, Host] = {
    name: Host(build, example, lambda result: result.logits)
    for name, build, example in (
        ("gpt2", real("GPT2LMHeadModel", n_embd=16, n_layer=2, n_head=2, n_positions=32), ids_of()),
        ("bert", real("BertForSequenceClassification", **HIDDEN, num_labels=3), ids_of()),
        (
            "vit",
            real("ViTForImageClassification", **HIDDEN, image_size=8, patch_size=4, num_labels=3),
            lambda: {"pixel_values": torch.randn(3, 3, 8, 8)},
        ),
        ("llama", real("LlamaForCausalLM", **HIDDEN, max_position_embeddings=64), ids_of()),
        (
            "t5",
            real("T5ForConditionalGeneration", d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2),
            lambda: {"input_ids": ids(3, 6), "decoder_input_ids": ids(3, 4)},
        ),
        ("mamba", real("MambaForCausalLM", hidden_size=16, state_size=4, num_hidden_layers=2), ids_of()),
        (
            "whisper",
            real("WhisperForConditionalGeneration", **ENDS, d_model=16, num_mel_bins=4, max_source_positions=8),
            lambda: {"input_features": torch.randn(3, 4, 16), "decoder_input_ids": ids(3, 4)},
        ),
    )
}
"""Models of transformers, which nobody here has written."""
