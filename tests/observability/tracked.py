"""Reading back what trackers have stored, each from its own files, by its own library."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple


class Stored(NamedTuple):
    """What a tracker holds of a run.

    Attributes:
        scalars: by name, pairs of step and value in the order in which they were stored.
        histograms: by name, pairs of step and number of samples.
        texts: by step.
    """

    scalars: dict[str, list[tuple[int, float]]]
    histograms: dict[str, list[tuple[int, int]]]
    texts: dict[int, str]


def tensorboard(directory: Path) -> Stored:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(directory / "tensorboard"), size_guidance=dict.fromkeys(_KINDS, 0)).Reload()
    tags = read.Tags()
    return Stored(
        {name: [(one.step, one.value) for one in read.Scalars(name)] for name in tags["scalars"]},
        {
            name: [(one.step, int(one.histogram_value.num)) for one in read.Histograms(name)]
            for name in tags["histograms"]
        },
        {one.step: one.tensor_proto.string_val[0].decode() for name in tags["tensors"] for one in read.Tensors(name)},
    )


_KINDS = ("scalars", "histograms", "tensors")


def wandb(directory: Path) -> Stored:
    from wandb.proto.wandb_internal_pb2 import Record

    stored = Stored({}, {}, {})
    for file in sorted(directory.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns):
        for data in _leveldb_records(file.read_bytes()):
            record = Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                _take_wandb(stored, record.history, file.parent / "files")
    return stored


def _leveldb_records(content: bytes) -> Iterator[bytes]:
    """Records of a log of LevelDB, which begins with seven bytes that say whose it is.

    Blocks of 32 KiB hold pieces: a checksum of four bytes, a length of two, and a byte that says whether the piece is
    whole (1), or the first (2), a middle (3) or the last one (4) of its record.
    """
    at, record = 7, b""
    while at + 7 <= len(content):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


def _take_wandb(stored: Stored, history: Any, files: Path) -> None:
    """Fields of one value are items of their own: ``["growth", "path"]``."""
    found: dict[str, dict[str, Any]] = {}
    for item in history.item:
        name, *field = item.nested_key or [item.key]
        found.setdefault(name, {})[field[0] if field else ""] = json.loads(item.value_json)
    step = history.step.num
    for name, fields in found.items():
        if fields.get("_type") == "histogram":
            stored.histograms.setdefault(name, []).append((step, sum(fields["values"])))
        elif fields.get("_type") == "html-file":
            stored.texts[step] = (files / fields["path"]).read_text()
        elif not name.startswith("_"):
            stored.scalars.setdefault(name, []).append((step, fields[""]))


def mlflow(directory: Path) -> Stored:
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("esper")
    (run,) = client.search_runs([experiment.experiment_id])
    id_ = run.info.run_id
    scalars = {
        name: [(one.step, one.value) for one in client.get_metric_history(id_, name)] for name in run.data.metrics
    }
    root = Path(client.download_artifacts(id_, ""))
    stored = Stored(scalars, {}, {})
    for file in sorted((root / "sensed").glob("*.json")):
        for name, values in json.loads(file.read_text()).items():
            stored.histograms.setdefault(name, []).append((int(file.stem), len(values)))
    stored.texts.update({int(file.stem): file.read_text() for file in sorted((root / "growth").glob("*.md"))})
    return stored


def trackio(directory: Path) -> Stored:
    from trackio.sqlite_storage import SQLiteStorage

    stored = Stored({}, {}, {})
    (run,) = SQLiteStorage.get_runs("esper")
    for line in SQLiteStorage.get_logs("esper", run):
        step = line.pop("step")
        for name, value in line.items():
            kind = value.get("_type", "") if isinstance(value, dict) else ""
            if kind == "trackio.histogram":
                stored.histograms.setdefault(name, []).append((step, sum(value["values"])))
            elif kind == "trackio.markdown":
                stored.texts[step] = value["_value"]
            elif isinstance(value, int | float):
                stored.scalars.setdefault(name, []).append((step, value))
    return stored


READERS: dict[str, Callable[[Path], Stored]] = {
    "tensorboard": tensorboard,
    "wandb": wandb,
    "mlflow": mlflow,
    "trackio": trackio,
}


def local(directory: Path) -> dict[str, str]:
    """Environment in which trackers store on this machine only, below a directory."""
    return {
        "WANDB_MODE": "offline",
        "MLFLOW_TRACKING_URI": f"sqlite:///{directory}/mlflow.db",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_DISABLE_ENV_CREATION": os.environ.get("MLFLOW_DISABLE_ENV_CREATION", "true"),
        "TRACKIO_DIR": f"{directory}/trackio",
        "HF_HUB_OFFLINE": "1",
    }
