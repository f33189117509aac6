"""Random models with old layers, and what breaks their files."""

import json
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from esper.blueprints.catalogue import CATALOGUE, make_blueprint
from esper.checkpoint.digests import bytes_digest
from esper.contracts.errors import ConfigError
from esper.legacy import files
from esper.legacy.fitting import check_fits
from esper.legacy.layer import LegacyConfig, LegacyKasminaLayer
from esper.legacy.states import LegacyState


@dataclass(frozen=True)
class Drawn:
    """A random model.

    Args:
        widths: of its layers.
        is_image: whether they are convolutions.
        states: of the seeds of its layers.
        model: it.
        batch: an input.
    """

    widths: tuple[int, ...]
    is_image: bool
    states: tuple[LegacyState, ...]
    model: nn.Module
    batch: Tensor

    @property
    def is_migratable(self) -> bool:
        """Whether no seed is half blended in."""
        return LegacyState.GRAFTING not in self.states


def build(widths: tuple[int, ...], is_image: bool, around: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """A chain of layers, each with something around it."""
    steps: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layer = nn.Conv2d(inputs, outputs, 3, padding=1) if is_image else nn.Linear(inputs, outputs)
        steps += [around(layer), nn.ReLU()]
    return nn.Sequential(*steps)


def draw(rng: random.Random) -> Drawn:
    """A random model."""
    torch.manual_seed(rng.getrandbits(30))
    is_image = rng.random() < 0.25
    widths = tuple(rng.randint(2, 9) for _ in range(rng.randint(2, 4)))
    if rng.random() < 0.3:
        widths = (widths[0],) * len(widths)
    ramp = rng.randint(2, 12)
    model = build(widths, is_image, lambda layer: LegacyKasminaLayer(layer, LegacyConfig(ramp_steps=ramp)))
    if rng.random() < 0.2:
        model = model.double()
    layers = list(files.legacy_layers(model).values())
    for layer in layers:
        _live(layer, rng)
    dtype = next(model.parameters()).dtype
    batch = torch.randn(3, widths[0], *((4, 4) if is_image else ()), dtype=dtype)
    return Drawn(widths, is_image, tuple(layer.state for layer in layers), model.eval(), batch)


def _live(layer: LegacyKasminaLayer, rng: random.Random) -> None:
    """Bring a seed into a random state, its graft to random bytes."""
    state = rng.choices(list(LegacyState), [3, 1, 0.4, 5, 2])[0]
    if state is LegacyState.DORMANT:
        return
    layer.request_germination(0, rng.choice([name for name in CATALOGUE if _fits(name, layer)]))
    if state in (LegacyState.GRAFTING, LegacyState.FOSSILIZED):
        layer.begin_grafting(torch.optim.SGD(layer.base_layer.parameters(), lr=0.1))
        for parameter in layer.graft.values():
            nn.init.normal_(parameter, std=0.5)
        for _ in range(layer.ramp_steps if state is LegacyState.FOSSILIZED else rng.randint(0, layer.ramp_steps - 1)):
            layer.advance()
    if state is LegacyState.CULLED:
        layer.cancel_germination(0)


def _fits(name: str, layer: LegacyKasminaLayer) -> bool:
    try:
        check_fits(make_blueprint(name, {}), layer.ports)
    except ConfigError:
        return False
    return True


def _parts(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()["header"])


def _write(path: Path, tensors: dict[str, Tensor], header: Any) -> None:
    """A file whose digest is right, whatever the header says."""
    text = json.dumps(header)
    save_file(tensors, path, {"header": text, "digest": bytes_digest(text.encode()).decode()})


def make_partial(path: Path, rng: random.Random) -> None:
    """Leave something out: the end of the file, a tensor, a field of the header, a layer."""
    tensors, header = _parts(path)
    match rng.randrange(4):
        case 0:
            raw = path.read_bytes()
            path.write_bytes(raw[: rng.randrange(len(raw))])
        case 1:
            del tensors[rng.choice(sorted(tensors))]
            _write(path, tensors, header)
        case 2:
            fields = rng.choice([header, *header["layers"].values()])
            del fields[rng.choice(sorted(fields))]
            _write(path, tensors, header)
        case _:
            del header["digests"][rng.choice(sorted(header["digests"]))]
            _write(path, tensors, header)


def make_corrupt(path: Path, rng: random.Random) -> None:
    """Flip bits, overwrite a stretch, or put something else there."""
    raw = bytearray(path.read_bytes())
    match rng.randrange(5):
        case 0:
            for _ in range(rng.randint(1, 8)):
                raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        case 1:
            start = rng.randrange(len(raw))
            end = min(len(raw), start + rng.randint(1, 64))
            raw[start:end] = rng.randbytes(end - start)
        case 2:
            raw = bytearray(rng.randbytes(rng.randrange(2000)))
        case 3:
            raw[:8] = struct.pack("<Q", rng.getrandbits(rng.choice([8, 16, 40, 63])))
        case _:
            raw = bytearray(rng.choice([b"", b"{}", b"\x80\x04]q\x00.", b"PK\x03\x04", b"not a checkpoint\n" * 9]))
    path.write_bytes(raw)


_NONSENSE: tuple[tuple[str, Any], ...] = (
    ("state", "SLEEPING"),
    ("state", 3),
    ("alpha", 2.0),
    ("alpha", float("nan")),
    ("step", -1),
    ("step", 10**30),
    ("ramp_steps", 0),
    ("ramp_steps", "5"),
    ("ports", [0, 4, "features", 1]),
    ("ports", [3, 4, "plasma", 1]),
    ("ports", [[], {}, None]),
    ("ports", [10**9, 10**9, "features", 1]),
    ("blueprint", {"id": "bottleneck_mpl", "settings": {}}),
    ("blueprint", {"id": "bottleneck_mlp", "settings": {"hidden": -3}}),
    ("blueprint", {"id": "bottleneck_mlp", "settings": {"hiden": 3}}),
    ("blueprint", {"id": "bottleneck_mlp", "settings": {"hidden": 10**12}}),
    ("blueprint", {"id": "bottleneck_mlp", "settings": {"reads": ["chunk"]}}),
    ("blueprint", {"id": "placebo", "settings": {}}),
    ("blueprint", "bottleneck_mlp"),
)


def make_nonsense(path: Path, rng: random.Random) -> None:
    """Let the header of a file whose digests are right say what cannot be."""
    tensors, header = _parts(path)
    layer_name = rng.choice(sorted(header["layers"]))
    layer = header["layers"][layer_name]
    name, value = rng.choice([(name, value) for name, value in _NONSENSE if layer[name] != value])
    layer[name] = value
    if name == "ports" and not any(key.startswith(f"{layer_name}.graft.") for key in tensors):
        layer["state"] = "SLEEPING"  # without a graft only the model can tell that widths are wrong
    _write(path, tensors, header)


def make_future(path: Path, rng: random.Random) -> None:
    """A version that is not known yet, with fields and states that it may have; or another format."""
    tensors, header = _parts(path)
    header["version"] = rng.choice([2, 3, 99, "2", 1.5, None, [1]])
    if rng.random() < 0.3:
        header["layers"] = {"0": {"state": "EVALUATING", "colony": True}}
    if rng.random() < 0.1:
        header = {"format": "another model", "version": 1}
    _write(path, tensors, header)


MAKERS: dict[str, Callable[[Path, random.Random], None]] = {
    "valid": lambda path, rng: None,
    "partial": make_partial,
    "corrupt": make_corrupt,
    "nonsense": make_nonsense,
    "future": make_future,
}
"""By what kind of file they make of a valid one."""
