"""Five-state files to what a wrapped model goes on from.

A migrated checkpoint is a directory that :mod:`esper.checkpoint.store` writes: whole or not at all, with a digest of
every tensor. It holds the weights of the bare host, and of every old layer what its seed has come to.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from torch import Tensor

from esper.checkpoint import store
from esper.checkpoint.digests import file_digest_in_a_row
from esper.checkpoint.shape import check_shape
from esper.contracts.errors import CheckpointError, ConfigError
from esper.legacy.files import below, graft_of, read
from esper.legacy.saved import SavedBlueprint, SavedLayer
from esper.legacy.states import LegacyState

KIND, VERSION = "esper migrated model", 1

OUTCOME = {
    LegacyState.DORMANT: "DORMANT",
    LegacyState.GERMINATING: "DORMANT: its graft was never trained, ask for it again by session.germinate",
    LegacyState.FOSSILIZED: "a fossil, and DORMANT: it may grow another",
    LegacyState.CULLED: "CULLED: DORMANT again once its embargo is over",
}
"""What becomes of a seed."""


class MigratedLayer(TypedDict):
    """What an old layer has come to.

    ``was`` is its old state, ``ports`` what it connects; ``fossil`` is what it has grown, and ``params`` the bytes.
    """

    was: str
    ports: list[Any]
    fossil: SavedBlueprint | None
    params: dict[str, Tensor]


class Migrated(TypedDict):
    """A migrated checkpoint. ``host`` has the keys of the model without any layer of Esper's."""

    kind: str
    version: int
    source: str
    host: dict[str, Tensor]
    layers: dict[str, MigratedLayer]


@dataclass(frozen=True)
class Migration:
    """What was done with a file.

    Args:
        source: the file.
        output: the directory.
        is_new: whether it was written now; else it was there already.
        layers: what each old layer has come to, in words.
    """

    source: Path
    output: Path
    is_new: bool
    layers: Mapping[str, str]


def migrate(sources: Sequence[str | Path], output: str | Path | None = None) -> list[Migration]:
    """Migrate five-state files. All are read and checked before anything is written; none of them is touched.

    Args:
        sources: files of :func:`esper.legacy.files.save`.
        output: folder that takes a directory ``<name>.migrated`` of each; None puts it beside its file.

    Returns:
        What was done with each. A file whose migration is there already is left as it is.

    Raises:
        CheckpointError: if a file cannot be used, or a layer of it cannot be migrated, with the reason and the remedy.
        ConfigError: if two files would go to one directory, or one goes where something else is.
        OSError: if it cannot be written.
    """
    files = [Path(source) for source in sources]
    targets = [(source.parent if output is None else Path(output)) / f"{source.stem}.migrated" for source in files]
    if output is not None and Path(output).exists() and not Path(output).is_dir():
        raise ConfigError(f"{output} is a file. Name a folder: --output DIR.")
    if twice := [target for target in targets if targets.count(target) > 1]:
        raise ConfigError(f"Several files would go to {twice[0]}. Migrate them one by one, each to another --output.")
    trees = [converted(source) for source in files]
    are_there = [_is_there(target, tree) for target, tree in zip(targets, trees, strict=True)]
    done = []
    for source, target, tree, is_there in zip(files, targets, trees, are_there, strict=True):
        if not is_there:
            store.write(target, tree)
        told = {name: OUTCOME[LegacyState[layer["was"]]] for name, layer in tree["layers"].items()}
        done.append(Migration(source, target, not is_there, told))
    return done


def converted(source: Path) -> Migrated:
    """What a file is migrated to.

    Raises:
        CheckpointError: if it cannot be.
    """
    digest = file_digest_in_a_row(source) if source.is_file() else ""  # before it is read, lest it change in between
    old, layers = read(source), {}
    for name, layer in old.layers.items():
        try:
            layers[name] = _layer(layer, graft_of(name, old.tensors))
        except ConfigError as error:
            raise CheckpointError(f"{source}: layer {name!r} cannot be migrated: {error}") from error
    host = {}
    for key, tensor in old.tensors.items():
        owner = next((name for name in old.layers if key.startswith(below(name, "base_layer"))), None)
        if owner is not None:
            key = below(owner) + key.removeprefix(below(owner, "base_layer"))
        elif any(key.startswith(below(name, "graft")) for name in old.layers):
            continue
        host[key] = tensor
    return {"kind": KIND, "version": VERSION, "source": digest, "host": host, "layers": layers}


def _layer(layer: SavedLayer, graft: dict[str, Tensor]) -> MigratedLayer:
    """What an old layer comes to; ConfigError if that cannot be."""
    state = LegacyState[layer["state"]]
    if state is LegacyState.GRAFTING:
        raise ConfigError(
            f"its graft is half blended in (alpha {layer['alpha']:.3g}), and the new layer judges a graft against the "
            f"same run without it. Train {layer['ramp_steps'] - layer['step']} steps more with the old layer, until "
            "the seed is FOSSILIZED, or cancel_germination(0); then save and migrate."
        )
    is_grown = state is LegacyState.FOSSILIZED
    if is_grown and not all(bool(tensor.isfinite().all()) for tensor in graft.values()):
        raise ConfigError("its graft holds values that are not finite, and the new layer leaves such a graft out.")
    return {
        "was": state.name,
        "ports": layer["ports"],
        "fossil": layer["blueprint"] if is_grown else None,
        "params": graft if is_grown else {},
    }


def _is_there(target: Path, tree: Migrated) -> bool:
    """Whether a directory holds this very migration. ConfigError if it holds something else."""
    if not target.exists() or (target.is_dir() and not any(_finished(target))):
        return False  # nothing, or what a run left that was killed
    try:
        if read_migrated(target)["source"] == tree["source"]:
            return True
    except CheckpointError as error:
        raise ConfigError(f"{target} is there already. {error} Remove it, or name another --output.") from error
    raise ConfigError(
        f"{target} holds the migration of another file, or of what this one was before. Remove it, or name another "
        "--output."
    )


def _finished(directory: Path) -> Iterator[Path]:
    """What a directory holds, but for what a write left that was cut."""
    return (path for path in directory.iterdir() if not path.name.startswith("."))


def read_migrated(directory: Path) -> Migrated:
    """A migrated checkpoint.

    Raises:
        CheckpointError: if it is missing, damaged, of a later version, or something else.
    """
    tree = store.read(directory)
    if not isinstance(tree, dict) or tree.get("kind") != KIND:
        raise CheckpointError(f"{directory} holds no migrated model. 'esper migrate FILE' writes one.")
    if tree.get("version") != VERSION:
        raise CheckpointError(
            f"{directory} is of version {tree.get('version')!r}; this Esper reads {VERSION}. Update it."
        )
    check_shape(tree, Migrated, "")
    return tree  # type: ignore[return-value]
