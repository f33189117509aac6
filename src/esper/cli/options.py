"""The options of ``esper run``: one frozen dataclass, from which parser, help and configuration file follow."""

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple, get_type_hints

from esper.contracts.config import GrowthConfig
from esper.contracts.errors import ConfigError, closest

MAX_SEED = 2**31 - 1
MAX_THREADS = 1024
MAX_PORT = 65535
TEXT = "text:"
REMOTE = "remote"
FILES = (".npz", ".csv", ".tsv", ".txt", ".gz", ".parquet")
"""How files of samples end."""


class Pace(NamedTuple):
    """How long and fast a host trains unless told otherwise."""

    epochs: int
    batch_size: int
    lr: float
    schedule: str
    steps_per_epoch: int | None


STAYS_UP = "constant_then_linear"
PACES = {
    "mlp": Pace(epochs=60, batch_size=32, lr=5e-3, schedule="cosine", steps_per_epoch=None),
    "cnn": Pace(epochs=60, batch_size=32, lr=3e-2, schedule=STAYS_UP, steps_per_epoch=None),
    "text": Pace(epochs=30, batch_size=16, lr=1e-2, schedule=STAYS_UP, steps_per_epoch=40),
    "mlp on text": Pace(epochs=30, batch_size=16, lr=1e-2, schedule=STAYS_UP, steps_per_epoch=160),
    "a folder": Pace(epochs=20, batch_size=32, lr=3e-3, schedule=STAYS_UP, steps_per_epoch=10),
}
"""By host, ``text``, ``HOST on text``, or ``a folder`` of texts, whatever the host.

A host of one's own learns at the pace of mlp, from text at that of text.
"""

_DEVICE = re.compile(r"auto|cpu|cuda(:(0|[1-9][0-9]{0,2}))?")


def _option(
    default: Any, help_: str, metavar: str | None = None, shown: str | None = None, flag: str | None = None
) -> Any:
    return field(default=default, metadata={"help": help_, "metavar": metavar, "shown": shown, "flag": flag})


def _by_kind(name: str) -> str:
    values = ((kind, getattr(pace, name)) for kind, pace in PACES.items())
    return ", ".join(f"{'all' if value is None else value} for {kind}" for kind, value in values)


@dataclass(frozen=True)
class Options:
    """What a run is to do. Checked where it is built; what depends on the host and was left out is filled in.

    Attributes:
        growth: where, when and how much the host may grow; in the file the mapping ``growth``.
    """

    data: str = _option(
        "digits",
        "what to learn: digits, mnist1d, the path of an .npz file with x, y or of a table (.csv, .tsv, .txt, also .gz, "
        ".parquet), the characters of a text, or the bytes of the texts in a folder",
        "digits|mnist1d|PATH.npz|PATH.csv|text:PATH",
    )
    label: str | None = _option(
        None,
        "of a table: the column to predict, by name or number from 0; several with commas between hold 0 or 1 each",
        "COLUMN,...",
        "the one that is called label, target, class or y, else the last",
    )
    task: Literal["auto", "classification", "regression"] = _option(
        "auto", "whether a table's or archive's label is a class or a quantity", "auto|classification|regression"
    )
    layout: Literal["first", "last"] | None = _option(
        None, "where the channels of an archive's images stand, for --host cnn", "first|last", "told by their shape"
    )
    host: str = _option(
        None,
        "the network that is to grow; a factory of your own takes any of inputs, classes, shape, width_factor and "
        "returns a torch module",
        "mlp|cnn|gpt|MODULE:FACTORY",
        "gpt for text, else mlp",
    )
    host_settings: Mapping[str, int | Sequence[int]] | None = _option(
        None,
        "size of the host: of gpt width, hidden, blocks, heads, context, of mlp hidden, such as 32-16, or hidden and "
        "depth, on text also window, features, context, of cnn widths and strides",
        "NAME=N,...",
        "the host's own",
    )
    weights: str | None = _option(
        None,
        "file of trained weights with which the host begins, a state dict as .safetensors; give the data and "
        "the seed that they were trained with, or they may have seen the held-out and test samples",
        "WEIGHTS",
        "random weights",
        flag="--from",
    )
    policy: str = _option(
        "heuristic",
        "who decides when and where to grow: heuristic, learned, with weights of your own learned:FILE, random, never, "
        "one of your own, or remote, a controller that 'esper tamiyo serve' runs elsewhere",
        "NAME",
    )
    bus: str | None = _option(
        None,
        "message bus that hears what happens and brings commands: sqlite:PATH, redis://HOST:PORT, nats://HOST:PORT, "
        "kafka://HOST:PORT",
        "URL",
        "none",
    )
    traces: str | None = _option(
        None, "collector that takes traces, by OTLP over HTTP: http://HOST:4318", "URL", "none"
    )
    decision_timeout: float = _option(10.0, "seconds to wait for a decision of a remote policy", "S")
    stand_in: Literal["none", "heuristic"] = _option(
        "none", "who decides where none came in time: none lets the run go on", "none|heuristic"
    )
    metrics_port: int | None = _option(
        None, "where to serve /metrics for Prometheus while the run trains; 0 takes a free port", "N", "none"
    )
    metrics_host: str = _option(
        "127.0.0.1", "address to serve them at; whoever reaches it reads them, without a password", "ADDRESS"
    )
    flags: str | None = _option(None, "store of feature flags, a flagd file; see 'esper flags'", "FILE", "none")
    model_id: str | None = _option(
        None, "name by which feature flags are decided: the same name, the same flags", "ID", "DATA-SEED"
    )
    tensorboard: bool = _option(False, "write what TensorBoard shows into the run directory", shown="no")
    track: Sequence[str] = _option(
        (),
        "trackers that are told of the run, with commas between: tensorboard, wandb, mlflow, trackio",
        "NAME,...",
        "none",
    )
    seed: int = _option(0, "seed of the split of the data, first weights and order of batches", "N")
    epochs: int = _option(None, "epochs of the run", "N", _by_kind("epochs"))
    batch_size: int = _option(None, "samples of a batch", "N", _by_kind("batch_size"))
    steps_per_epoch: int | None = _option(
        None, "batches of an epoch; the next one goes on in the data", "N", _by_kind("steps_per_epoch")
    )
    lr: float = _option(None, "peak learning rate of AdamW", "RATE", _by_kind("lr"))
    schedule: Literal["constant_then_linear", "cosine"] = _option(
        None,
        "how the learning rate falls: not before the last 30 % of the run and linearly, or by half a cosine",
        "constant_then_linear|cosine",
        _by_kind("schedule"),
    )
    controls: bool = _option(True, "train the fair controls afterwards: the host trained on, and a static network")
    threads: int = _option(1, "threads of torch; tiny models are fastest with 1", "N")
    device: str = _option(
        "cpu", "where to train, the controls too; auto is a GPU where there is one", "auto|cpu|cuda|cuda:N"
    )
    precision: Literal["fp32", "bf16"] = _option(
        "fp32", "of the forward pass, the controls' too; bf16 is autocast, weights stay fp32", "fp32|bf16"
    )
    compile: bool = _option(
        False, "have torch compile the model, the controls too: the start takes longer, each step less on a GPU"
    )
    output: str | None = _option(None, "run directory", "DIR", "a new one, runs/DATA-SEED")
    config: str | None = _option(None, "YAML file with these options, besides a mapping 'growth'", "FILE", "none")
    resume: Literal["last", "auto"] | None = _option(
        None,
        "last goes on with the run in --output, or with the newest one under runs; auto with the one in --output, if "
        "there is one, and else starts it",
        "last|auto",
        "start a new run",
    )
    plain: bool = _option(
        False, "print plain lines instead of a live display", shown="a live display where the output is a terminal"
    )
    log_format: Literal["text", "json"] = _option(
        "text", "what to print: text, or one JSON object per event and line", "text|json"
    )
    growth: GrowthConfig = field(default_factory=GrowthConfig)

    def __post_init__(self) -> None:
        for name in ("data", "label", "output", "config", "host", "policy", "weights", "flags", "model_id"):
            self._check(name, getattr(self, name) != "", "a name or path")
            self._check(name, _is_text(getattr(self, name)), "a name or path of characters, in UTF-8")
        is_text = self.data.startswith(TEXT)
        host = self.host or ("gpt" if is_text else "mlp")
        pace = PACES.get(f"{host} on text", PACES["text"]) if is_text else PACES.get(host, PACES["mlp"])
        if is_text and os.path.isdir(self.data.removeprefix(TEXT)):
            pace = PACES["a folder"]
        for name, value in {"host": host, **pace._asdict()}.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        self._check("seed", 0 <= self.seed <= MAX_SEED, f"0 to {MAX_SEED}")
        for name in ("epochs", "batch_size"):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        self._check("steps_per_epoch", self.steps_per_epoch is None or self.steps_per_epoch >= 1, "at least 1")
        self._check("decision_timeout", 0 < self.decision_timeout < math.inf, "above 0 and finite")
        self._check("metrics_port", self.metrics_port is None or 0 <= self.metrics_port <= MAX_PORT, f"0 to {MAX_PORT}")
        if self.metrics_port is None and self.metrics_host != Options.metrics_host:
            raise ConfigError("metrics_host has no use without metrics_port. Name that, too.")
        self._check("threads", 1 <= self.threads <= MAX_THREADS, f"1 to {MAX_THREADS}")
        if not _DEVICE.fullmatch(self.device):
            raise ConfigError(
                f"There is no device {self.device!r}. {closest(self.device, ['auto', 'cpu', 'cuda', 'cuda:N'])}"
            )
        self._check("lr", math.isfinite(self.lr) and self.lr > 0, "above 0 and finite")

    @property
    def trackers(self) -> tuple[str, ...]:
        """Names of all trackers that are told of the run."""
        return (*self.track, *["tensorboard"] * self.tensorboard)

    def _check(self, name: str, is_right: bool, wanted: str) -> None:
        if not is_right:
            raise ConfigError(f"{name} must be {wanted}, not {getattr(self, name)!r}.")


PRESENTATION = ("plain", "log_format")
"""Options of what is shown; a run that is resumed may be shown otherwise."""

ELSEWHERE = ("bus", "traces", "metrics_port", "metrics_host", "tensorboard", "track")
"""Who else hears of the run. Their URLs may hold passwords."""

INVOCATION = ("output", "config", "resume", *ELSEWHERE, *PRESENTATION)
"""Options of one call; all others describe the run and are stored with it."""

HINTS = get_type_hints(Options)
GROWTH_HINTS = get_type_hints(GrowthConfig)
ON_COMMAND_LINE = tuple(one for one in fields(Options) if one.name != "growth")
IN_FILE = tuple(one.name for one in fields(Options) if one.name not in ("config", "resume", *ELSEWHERE, *PRESENTATION))


@dataclass(frozen=True)
class Request:
    """Options, and which of them were given rather than left at their defaults (growth settings as ``growth.NAME``)."""

    options: Options
    given: frozenset[str]


def request(values: Mapping[str, Any]) -> Request:
    """Options from values of the right types; ``growth`` is a mapping here.

    Raises:
        ConfigError: if a value is out of its range.
    """
    growth = dict(values.get("growth", {}))
    seed = values.get("seed", Options.seed)
    try:
        config = GrowthConfig(**{"seed": seed} | growth)
    except ConfigError as error:
        raise ConfigError(f"growth: {error}") from error
    plain = {name: value for name, value in values.items() if name != "growth"}
    if "data" in plain:
        plain["data"] = _located(plain["data"])
    for name in ("weights", "flags"):
        if plain.get(name):
            plain[name] = os.path.abspath(plain[name])
    kind, colon, path = plain.get("policy", "").partition(":")
    if kind == "learned" and path:
        plain["policy"] = kind + colon + os.path.abspath(path)
    return Request(Options(**plain, growth=config), named(values))


def named(values: Mapping[str, Any]) -> frozenset[str]:
    """The names of the options of a mapping, growth settings as ``growth.NAME``."""
    growth = (f"growth.{name}" for name in values.get("growth", {}))
    return frozenset(name for name in values if name != "growth").union(growth)


def flag(name: str) -> str:
    """What an option is called on the command line."""
    given = next((one.metadata["flag"] for one in ON_COMMAND_LINE if one.name == name), None)
    return given or "--" + name.replace("_", "-")


def _is_text(word: str | None) -> bool:
    """Whether it can be written into files: names of files may hold bytes that are no characters."""
    return word is None or not any("\ud800" <= character <= "\udfff" for character in word)


def _located(data: str) -> str:
    """Data with its path, if it has one, made absolute: a run may be resumed from elsewhere."""
    if data.startswith(TEXT):
        return TEXT + os.path.abspath(data.removeprefix(TEXT)) if data != TEXT else data
    return os.path.abspath(data) if data.lower().endswith(FILES) else data
