"""The directory of one run: which one, what is in it, and that it never holds half a file."""

import json
import math
import os
import secrets
import shlex
from pathlib import Path
from typing import Any

from esper.cli.configuration_file import read_file, to_values
from esper.cli.options import INVOCATION, Options, Request, named, request
from esper.contracts.errors import ConfigError
from esper.whole_file import write_whole

ROOT = Path("runs")
CONFIG, RESULT, PROGRESS, CHECKPOINTS, MODEL = "config.yaml", "result.json", "progress.json", "checkpoints", "model"
SAMPLES, REPORT, FIRST_WEIGHTS = "samples.safetensors", "report.html", "first_weights.safetensors"
RUN_ID, FLAGS_FILE = "run_id", "flags.json"
_OURS = (
    CONFIG,
    RESULT,
    PROGRESS,
    CHECKPOINTS,
    MODEL,
    SAMPLES,
    REPORT,
    FIRST_WEIGHTS,
    RUN_ID,
    FLAGS_FILE,
    "metrics.jsonl",
    "audit.jsonl",
)


def locate(asked: Request) -> tuple[Options, Path | None]:
    """The run's options, and its directory if it is to be resumed. Nothing is written.

    Raises:
        ConfigError: if the output directory cannot take a new run, or there is no such run to resume.
    """
    resume, output = asked.options.resume, asked.options.output
    if resume == "auto" and output is None:
        raise ConfigError("--resume auto needs --output DIR: where the run is, or is to be.")
    if resume == "last" or (resume == "auto" and output is not None and (Path(output) / CONFIG).is_file()):
        directory, stored = find(asked)
        return stored, directory
    if output is not None:
        check_free(output)
    return asked.options, None


def check_free(output: str) -> None:
    """Refuse an output directory that cannot take a new run.

    Raises:
        ConfigError: if it holds a run, is a file, or cannot be written.
    """
    directory = Path(output)
    try:
        exists = directory.exists()
    except OSError as error:  # a name that is too long
        raise ConfigError(
            f"--output {output[:60]} cannot be used: {error.strerror}. Name another directory."
        ) from error
    if exists and not directory.is_dir():
        raise ConfigError(f"--output {directory} is a file. Name a directory.")
    held = [name for name in _OURS if (directory / name).exists()]
    if held:
        raise ConfigError(
            f"--output {directory} already holds a run ({held[0]}). Name another directory, or go on with it: "
            f"{resume_command(directory)}"
        )
    existing = next(parent for parent in (directory, *directory.absolute().parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ConfigError(
            f"--output {directory} cannot be written: {existing} does not allow it. Name another directory."
        )


def resume_command(directory: Path) -> str:
    """The command that goes on with a run, to be pasted into a shell."""
    return f"esper run --resume last --output {shlex.quote(str(directory))}"


def create(options: Options, task_name: str) -> Path:
    """Make the directory of a new run, with its ``config.yaml``."""
    if options.output is not None:
        directory = Path(options.output)
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--output {directory} cannot be made: {error}. Name another directory.") from error
    else:
        directory = _new_directory(f"{task_name}-{options.seed}")
    import yaml

    write_text(directory / CONFIG, yaml.safe_dump(to_values(options), sort_keys=False))
    return directory


def discard(directory: Path) -> None:
    """Take back :func:`create`: a run that could not begin leaves nothing behind."""
    for name in (CONFIG, FIRST_WEIGHTS, RUN_ID, FLAGS_FILE):
        (directory / name).unlink(missing_ok=True)
    for made in (directory, ROOT):
        if made.is_dir() and not any(made.iterdir()):
            made.rmdir()


def run_id(directory: Path | None, task_name: str) -> str:
    """What the run in a directory is called wherever it is heard of; a new name for one that has none."""
    stored = None if directory is None else directory / RUN_ID
    if stored is not None and stored.is_file():
        return stored.read_text(encoding="utf-8").strip()
    return f"{task_name}-{secrets.token_hex(6)}"


def has_checkpoint(directory: Path) -> bool:
    """Whether the run can go on from a checkpoint."""
    return any((directory / CHECKPOINTS).glob("[0-9]*"))


def find(asked: Request) -> tuple[Path, Options]:
    """The run to resume, and its options.

    Raises:
        ConfigError: if there is none, it does not tell all its options, or one that was given differs from those that
            it was started with.
    """
    output = asked.options.output
    if output is not None:
        directory = Path(output)
        if not (directory / CONFIG).is_file():
            raise ConfigError(f"--resume: there is no run in {directory}. Start one without --resume.")
    else:
        configs = sorted(ROOT.glob(f"*/{CONFIG}"), key=lambda path: path.stat().st_mtime_ns)
        if not configs:
            raise ConfigError(
                f"--resume: there is no run under {ROOT}/. Start one without --resume, or name it by --output."
            )
        directory = configs[-1].parent
    read = request(read_file(directory / CONFIG))
    stored = read.options
    untold = named(to_values(stored)) - read.given
    if missing := sorted(name for name in untold if _lookup(stored, name) is not None):  # None asks for nothing
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ConfigError(
            f"--resume: {directory / CONFIG} does not tell {', '.join(missing[:3])}{more}: "
            "another version of Esper began it, perhaps with another default. Add to the file what it was, or start "
            "another run without --resume."
        )
    for name in sorted(asked.given - set(INVOCATION)):
        wanted, actual = _lookup(asked.options, name), _lookup(stored, name)
        if wanted != actual and (name, wanted) != ("device", "auto"):  # what auto was then is kept
            raise ConfigError(
                f"--resume: the run in {directory} was started with {name} {actual}, not {wanted}. Leave {name} out to "
                "go on with it, or start another run without --resume."
            )
    return directory, stored


def write_text(path: Path, text: str) -> None:
    """Write a file as a whole or not at all."""
    write_whole(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a file as a whole or not at all; a number that is not finite becomes null."""
    write_text(path, json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")


def note_progress(directory: Path, seconds: float, rows: dict[str, Any]) -> None:
    """Keep what an unfinished run must not do again.

    Args:
        directory: of the run.
        seconds: that it has trained.
        rows: of the controls that are finished.
    """
    write_json(directory / PROGRESS, {"seconds": seconds, "rows": rows})


def read_json(path: Path) -> dict[str, Any]:
    """What :func:`write_json` wrote; empty if there is no such file.

    Raises:
        ConfigError: if it is damaged.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ConfigError(f"{path} is damaged: {error}. Delete it and try again.") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} is damaged: it holds no JSON object. Delete it and try again.")
    return value


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _new_directory(name: str) -> Path:
    number = 1
    while True:
        directory = ROOT / (name if number == 1 else f"{name}-{number}")
        try:
            directory.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return directory


def _lookup(options: Options, name: str) -> Any:
    return (
        getattr(options.growth, name.removeprefix("growth.")) if name.startswith("growth.") else getattr(options, name)
    )
