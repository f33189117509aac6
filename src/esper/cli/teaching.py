"""``esper tamiyo collect``, ``train``, ``improve`` and ``card``: how the controller learns, for people."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import torch

from esper.contracts.config import GrowthConfig
from esper.contracts.errors import ConfigError
from esper.learning import records as kept
from esper.learning.supervised import Settings
from esper.learning.training import train as trained
from esper.tamiyo.learned.network import Shape, TamiyoNetwork
from esper.tamiyo.learned.weights import load

FORMAT = ".safetensors"


def collect(
    records: list[str], tasks: int, first: int, episodes: int, workers: int, seconds: float | None, guide: str | None
) -> None:
    """Train drawn tasks again and again; what is there already is left as it is.

    Raises:
        ConfigError: if the folder cannot be used, or the guide cannot be read.
    """
    from esper.learning.collect import collect as collected

    folder, seeds = Path(records[0]), range(first, first + tasks)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is no folder. Name one for the records.")
    weights = None if guide is None else Path(guide)
    how = {"episodes": episodes, "workers": workers}
    written = collected(folder, seeds, GrowthConfig(), **how, seconds=seconds, guide=weights, tell=_print)
    _print(f"{written} records were written to {folder}")


def train(
    records: list[str],
    output: str,
    learns: Literal["judgement", "imitation"],
    without_curves: bool,
    steps: int,
    seed: int,
    curves: str | None,
    threads: int,
) -> None:
    """Train a controller, and say how much of what it was shown can be foreseen.

    Raises:
        ConfigError: if the weights cannot go there.
        DataError: if there are no records, or they cannot be read.
    """
    path = Path(output)
    if path.suffix != FORMAT or not path.absolute().parent.is_dir():
        raise ConfigError(f"Weights go into a {FORMAT} file in a folder that is there, not to {output!r}.")
    torch.set_num_threads(threads)
    data = kept.read([Path(folder) for folder in records])
    with ExitStack() as stack:
        file = None if curves is None else stack.enter_context(Path(curves).open("w", buffering=1, encoding="utf-8"))

        def tell(phase: str, step: int, measured: dict[str, float]) -> None:
            if file is not None:
                file.write(json.dumps({"phase": phase, "step": step, **measured}) + "\n")

        settings = Settings(steps=steps, seed=seed, without_curves=without_curves)
        card = trained(data, path, settings, tell, learns)
    _show(card)
    _print(f"The weights are in {path}; esper run --policy learned:{path}")


def improve(
    weights: str | None,
    output: str,
    updates: int,
    tasks: int,
    first: int,
    workers: int,
    seconds: float | None,
    seed: int,
    tensorboard: bool,
) -> None:
    """Let a controller go on learning by what its own choices lead to; goes on where the folder has a checkpoint.

    Raises:
        ConfigError: if weights cannot be read, or the folder holds another run.
    """
    from esper.learning.ppo import learn
    from esper.learning.ppo_settings import Settings as Practising

    torch.manual_seed(seed)
    network = TamiyoNetwork(Shape()) if weights is None else load(Path(weights))[0]

    def tell(told: dict[str, float]) -> None:
        known = ("reward", "flops", "tried", "adopted", "waited", "entropy", "explained_variance")
        _print("  ".join(f"{name} {told[name]:.3g}" for name in known if name in told))

    settings = Practising(tasks=min(tasks, Practising.tasks), seed=seed, tensorboard=tensorboard)
    seeds, folder = range(first, first + tasks), Path(output)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is no folder. Name one for weights and checkpoints.")
    learn(network, settings, seeds, folder, updates=updates, workers=workers, seconds=seconds, tell=tell)
    _print(f"The weights are in {folder / 'weights.safetensors'}")


def card(file: str) -> None:
    """Print what weights say of themselves.

    Raises:
        ConfigError: if they cannot be read.
    """
    network, told = load(Path(file))
    _show({**told, "parameters": network.num_parameters, **network.shape.to_dict()})


def _show(told: dict[str, Any]) -> None:
    for name, value in told.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {_short(one)}" for key, one in value.items())
        _print(f"{name:>16}  {_short(value)}")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _print(text: str) -> None:
    print(text, flush=True)
