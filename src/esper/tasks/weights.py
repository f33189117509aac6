"""Weights that a host begins with: read from a file, and put into it strictly."""

from collections.abc import Mapping
from pathlib import Path
from shlex import quote

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from esper.contracts.errors import ConfigError

Weights = Mapping[str, Tensor]
"""Tensors by their names in the host's state dict."""

FORMAT = ".safetensors"
PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
CONVERT = (
    "import sys, torch; from safetensors.torch import save_file; "
    "save_file({k: v.clone() for k, v in torch.load(sys.argv[1], 'cpu', weights_only=True).items()}, sys.argv[2])"
)
NAMED = 3
"""So many tensors of a kind are named in a message, at most."""

GRAFT = "graft_"
"""How the grafts of an exported network are named; see :mod:`esper.kasmina.host.export`."""


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file. Files of ``torch.save`` are pickles, which Esper reads from nowhere.

    Raises:
        ConfigError: if there is no such file, it cannot be read, is a pickle, or holds values that are not finite.
    """
    path = Path(path)
    if path.is_dir():
        usual = [path / name for name in ("weights.safetensors", "model/weights.safetensors")]
        told = next((f", {one}" for one in usual if one.is_file()), "")
        raise ConfigError(f"{path} is a folder: name the file of weights in it{told}.")
    if path.suffix in PICKLED:
        raise ConfigError(
            f"Weights are read from {FORMAT}, not from {path.name!r}: a pickle can run whatever is in it. If you trust "
            f'the file: python -c "{CONVERT}" {quote(str(path))} {quote(str(path.with_suffix(FORMAT)))}'
        )
    if path.suffix != FORMAT:
        raise ConfigError(f"Weights are read from {FORMAT}, not from {path.name!r}.")
    if not path.is_file():
        raise ConfigError(f"There is no file {path} to begin from.")
    try:
        loaded = load_file(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from error
    except SafetensorError as error:
        told = " ".join(str(error).split("\n")[0].split())
        raise ConfigError(
            f"{path} holds no weights that can be read: {told}. Save them by "
            "safetensors.torch.save_file(model.state_dict(), PATH)."
        ) from error
    spoilt = [name for name, tensor in loaded.items() if not _is_finite(tensor)]
    if spoilt:
        raise ConfigError(f"{path} holds values that are not finite: {_some(spoilt)}. Begin from weights before that.")
    return loaded


def put_weights(host: nn.Module, weights: Weights, source: str = "the weights") -> None:
    """Let a bare host go on from trained weights. A refusal changes nothing.

    Args:
        host: not wrapped yet; floating-point tensors are cast to its dtype.
        weights: every tensor of its state dict, and no other.
        source: how messages call them.

    Raises:
        ConfigError: if a tensor is missing, unknown, or of another shape, naming some.
    """
    wanted = {name: tuple(value.shape) for name, value in host.state_dict().items() if isinstance(value, Tensor)}
    missing, unknown = sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys())
    if any(part.startswith(GRAFT) for name in unknown for part in name.split(".")):
        raise ConfigError(
            f"{source} are those of a network that has grown ({_some(unknown)}), not of its bare host, and a grown "
            "network is another graph than the host. Begin from weights of the host alone: those before it grew, or "
            "esper.host_state_dict(model)."
        )
    faults = [f"missing: {_some(missing)}"] if missing else []
    faults += [f"unknown to the host: {_some(unknown)}"] if unknown else []
    faults += [
        f"{name!r} is {list(weights[name].shape)} there and {list(shape)} in the host"
        for name, shape in wanted.items()
        if name in weights and tuple(weights[name].shape) != shape
    ][:NAMED]
    if faults:
        raise ConfigError(
            f"{source} do not fit the host: {'; '.join(faults)}. Name the host that they were trained in, and data of "
            "the same shape and classes."
        )
    host.load_state_dict(dict(weights), strict=False)  # names were checked; a module's own extra state stays new


def _some(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:NAMED]))
    return shown if len(names) <= NAMED else f"{shown} and {len(names) - NAMED} more"


def _is_finite(tensor: Tensor) -> bool:
    has_test = tensor.itemsize > 1 or not tensor.is_floating_point()  # torch has none for eight bits
    return bool(torch.isfinite(tensor if has_test else tensor.float()).all())
