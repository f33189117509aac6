"""Tasks to practise on, drawn so that none repeats: eight families of synthetic data, hosts and ways to train.

A task follows from its seed alone. Sizes are log-uniform: of the data, of the host and of the run, so that some hosts
are too small for their data, some data too small for their host, and most lie between.
"""

# N samples, F features, K classes or tokens, H hidden units, P positions

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from esper.tasks.cnn import CNNHost
from esper.tasks.gpt import GPTHost
from esper.tasks.mlp import MLPHost
from esper.tasks.task import METRICS, HostFactory, Samples, Scale, Task
from esper.tasks.text_mlp import TextMLPHost

BOUNDARIES = 24
"""Of a run, at each of which the controller may act."""

HELD_OUT, TEST = 600, 2000
"""Samples; of a text a tenth."""

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Practice:
    """A task, and how it is trained.

    Args:
        family: of the data.
        task: what is learned.
        steps: of the run, a multiple of :data:`BOUNDARIES`.
        batch_size: samples of a batch.
        lr: peak learning rate.
        schedule: by its name in :data:`esper.evaluation.training.SCHEDULES`.
        seed: of first weights and order of batches.
    """

    family: str
    task: Task
    steps: int
    batch_size: int
    lr: float
    schedule: str
    seed: int


class Chance:
    """A random stream with the draws that tasks are made of."""

    def __init__(self, *seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def between(self, low: float, high: float) -> float:
        """Log-uniform."""
        return float(math.exp(self.rng.uniform(math.log(low), math.log(high))))

    def whole(self, low: int, high: int) -> int:
        """Log-uniform, both ends included."""
        return min(high, int(self.between(low, high + 1)))

    def is_so(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def one_of(self, *things: Any) -> Any:
        return things[int(self.rng.integers(len(things)))]

    def normal(self, *shape: int) -> Array:
        return self.rng.standard_normal(shape)


def draw(seed: int, family: str | None = None) -> Practice:
    """The task of a seed.

    Args:
        seed: from 0.
        family: one of :data:`FAMILIES`; None draws one.

    Returns:
        It, with a host of an MLP, a CNN, a GPT or a perceptron of tokens.
    """
    name = Chance(seed, 0).one_of(*FAMILIES) if family is None else family
    chance = Chance(seed, 1 + list(FAMILIES).index(name))
    task = FAMILIES[name](chance)
    is_slow = isinstance(task.make_host, CNNHost | GPTHost)
    steps = BOUNDARIES * round(chance.whole(*((8, 20) if is_slow else (10, 60))))
    return Practice(
        family=name,
        task=replace(task, name=f"{name}-{seed}"),
        steps=steps,
        batch_size=chance.whole(8, 32) if task.is_text else chance.whole(32, 256),
        lr=chance.between(2e-3, 2e-2),
        schedule=chance.one_of("cosine", "constant_then_linear"),
        seed=seed,
    )


def _teacher(chance: Chance) -> Task:
    """What a random perceptron says."""
    x = chance.normal(_count(chance), chance.whole(4, 40))
    hidden, outputs = chance.whole(4, 48), _outputs(chance)
    first = chance.normal(x.shape[1], hidden) * chance.between(0.7, 3) / math.sqrt(x.shape[1])
    scores = np.tanh(x @ first + chance.normal(hidden)) @ chance.normal(hidden, outputs)
    return _flat(chance, x, scores)


def _clusters(chance: Chance) -> Task:
    """Which of several clouds a point is from; each class has some."""
    classes, modes, features = chance.whole(2, 12), chance.whole(1, 8), chance.whole(3, 24)
    centre = chance.normal(classes * modes, features) * chance.between(0.8, 3)
    spread = np.exp(0.5 * chance.normal(classes * modes, features))
    cloud = chance.rng.integers(classes * modes, size=_count(chance))
    x = centre[cloud] + spread[cloud] * chance.normal(len(cloud), features)
    return _classified(chance, x, cloud % classes, classes)


def _trees(chance: Chance) -> Task:
    """What a random tree of thresholds says."""
    x, depth = chance.normal(_count(chance), chance.whole(4, 30)), chance.whole(3, 8)
    leaf = np.zeros(len(x), dtype=np.int64)
    for level in range(depth):
        feature = chance.rng.integers(x.shape[1], size=2**level)
        threshold = 0.7 * chance.normal(2**level)
        leaf = 2 * leaf + (x[np.arange(len(x)), feature[leaf]] > threshold[leaf])
    return _flat(chance, x, chance.normal(2**depth, _outputs(chance))[leaf])


def _waves(chance: Chance) -> Task:
    """A sum of waves in random directions."""
    x, waves = chance.normal(_count(chance), chance.whole(2, 16)), chance.whole(2, 24)
    direction = chance.normal(x.shape[1], waves) * chance.between(0.5, 4) / math.sqrt(x.shape[1])
    scores = np.sin(x @ direction + 2 * math.pi * chance.rng.random(waves)) @ chance.normal(waves, _outputs(chance))
    return _flat(chance, x, scores)


def _tables(chance: Chance) -> Task:
    """Columns as people have them: skewed, categorical, redundant, some that tell nothing; some interact."""
    samples, numeric = _count(chance), chance.whole(3, 16)
    hidden = chance.normal(samples, numeric)
    columns = [np.exp(hidden * (chance.rng.random(numeric) < 0.3)) + hidden]
    parts, outputs = [hidden], _outputs(chance)
    for _ in range(chance.whole(1, 4)):
        levels = chance.whole(2, 10)
        code = chance.rng.integers(levels, size=samples)
        columns.append(np.eye(levels)[code])
        parts.append(chance.normal(levels, 2)[code])
    columns.append(hidden[:, : numeric // 2] + 0.5 * chance.normal(samples, numeric // 2))
    columns.append(chance.normal(samples, chance.whole(1, 8)))
    known = np.concatenate(parts, axis=1)
    pairs = chance.rng.integers(known.shape[1], size=(2, chance.whole(2, 16)))
    products = known[:, pairs[0]] * known[:, pairs[1]]
    scores = known @ chance.normal(known.shape[1], outputs)
    scores += chance.between(0.3, 3) * products @ chance.normal(products.shape[1], outputs)
    return _flat(chance, np.concatenate(columns, axis=1), scores)


def _signals(chance: Chance) -> Task:
    """Which motif a noisy signal holds, somewhere."""
    classes, length = chance.whole(2, 10), chance.whole(24, 64)
    width = max(6, length // 3)
    motif = _smooth(chance.normal(classes, width))
    y = chance.rng.integers(classes, size=_count(chance))
    start = chance.rng.integers(length - width + 1, size=len(y))
    x = chance.between(0.2, 1) * _smooth(chance.normal(len(y), length)) + 0.1 * chance.normal(len(y), length)
    scale = 1 + 0.3 * chance.normal(len(y), 1)
    np.put_along_axis(x, start[:, None] + np.arange(width), scale * motif[y], axis=1)
    return _classified(chance, x, y, classes, _positions(chance, (1, length), classes))


def _images(chance: Chance) -> Task:
    """Gratings of an orientation and a frequency, seen through a window that moves, in noise."""
    classes, side = chance.whole(2, 10), chance.whole(8, 12)
    angle, frequency = math.pi * chance.rng.random(classes), 0.4 + chance.rng.random(classes)
    y = chance.rng.integers(classes, size=min(4000, _count(chance)))
    rows, columns = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    phase = 2 * math.pi * chance.rng.random((len(y), 1, 1))
    along = rows * np.cos(angle)[y, None, None] + columns * np.sin(angle)[y, None, None]
    centre = side * chance.rng.random((2, len(y), 1, 1))
    window = np.exp(-((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2) / (side / 2) ** 2)
    x = np.sin(along * frequency[y, None, None] + phase) * window
    x += chance.between(0.1, 0.8) * chance.normal(len(y), side, side)
    return _classified(chance, x.reshape(len(y), -1), y, classes, _positions(chance, (1, side, side), classes))


def _grammars(chance: Chance) -> Task:
    """Tokens of a random chain that looks back at two tokens, and now and then repeats what stood some tokens ago."""
    tokens, context = chance.whole(6, 40), chance.one_of(16, 24, 32)
    windows = [chance.whole(300, 3000), HELD_OUT // 4, TEST // 8]
    chain = np.cumsum(_softmax(chance.between(1, 3) * chance.normal(tokens, tokens, tokens)), axis=-1)
    back, copies = chance.whole(3, 8), 0.5 * chance.rng.random()
    rows, length = 64, math.ceil((sum(windows) + 3) * (context + 1) / 64) + back  # many chains at once
    text = np.zeros((rows, length), dtype=np.int64)
    text[:, :back] = chance.rng.integers(tokens, size=(rows, back))
    for position in range(back, length):
        row = chain[text[:, position - 2], text[:, position - 1]]
        drawn = np.minimum((chance.rng.random((rows, 1)) > row).sum(1), tokens - 1)
        is_copy = chance.rng.random(rows) < copies
        text[:, position] = np.where(is_copy, text[:, position - back], drawn)
    cut = torch.from_numpy(text[:, back:].flatten()[: sum(windows) * (context + 1)]).view(-1, context + 1)
    train, held_out, test = (Samples(part[:, :-1], part[:, 1:]) for part in cut.split(windows))
    width = 2 * chance.whole(6, 16)
    host: HostFactory = GPTHost(tokens, context, width, chance.whole(12, 48), chance.whole(1, 3), 2)
    if chance.is_so(0.4):
        host = TextMLPHost(tokens, chance.whole(3, 8), chance.whole(4, 10), (chance.whole(8, 40),) * chance.whole(1, 2))
    return Task(
        name="",
        train=train,
        held_out=held_out,
        test=test,
        make_host=host,
        labels=tuple(map(str, range(tokens))),
        shape=(context,),
        groups=torch.arange(len(held_out.y)),
    )


FAMILIES: dict[str, Callable[[Chance], Task]] = {
    "teacher": _teacher,
    "clusters": _clusters,
    "trees": _trees,
    "waves": _waves,
    "tables": _tables,
    "signals": _signals,
    "images": _images,
    "grammars": _grammars,
}
"""By name; each draws a task."""


def _count(chance: Chance) -> int:
    return chance.whole(400, 8000) + HELD_OUT + TEST


def _outputs(chance: Chance) -> int:
    """One for a quantity, else classes."""
    return 1 if chance.is_so(0.4) else chance.whole(2, 10)


def _flat(chance: Chance, x: Array, scores: Array) -> Task:
    """A task of rows: a quantity where there is one score, else the class of the highest."""
    noise = chance.between(0.02, 0.6)
    scores = (scores - scores.mean(0)) / (scores.std(0) + 1e-9)
    scores = scores + noise * chance.normal(*scores.shape)
    if scores.shape[1] > 1:
        return _classified(chance, x, scores.argmax(1), scores.shape[1])
    y = torch.from_numpy(scores[:, 0]).float()
    y = (y - y.mean()) / y.std()
    return _dealt(chance, x, y, ("quantity",), None, kind="regression", scale=Scale(0.0, 1.0))


def _classified(chance: Chance, x: Array, y: Array, classes: int, host: HostFactory | None = None) -> Task:
    is_wrong = chance.rng.random(len(y)) < chance.rng.uniform(0, 0.15)
    y = np.where(is_wrong, chance.rng.integers(classes, size=len(y)), y)
    return _dealt(chance, x, torch.from_numpy(y), tuple(map(str, range(classes))), host)


def _dealt(
    chance: Chance, x: Array, y: torch.Tensor, labels: tuple[str, ...], host: HostFactory | None, **kind: Any
) -> Task:
    given = torch.from_numpy((x - x.mean(0)) / (x.std(0) + 1e-9)).float()
    sizes = [len(y) - HELD_OUT - TEST, HELD_OUT, TEST]
    parts = [Samples(*both) for both in zip(given.split(sizes), y.split(sizes), strict=True)]
    hidden = (chance.whole(4, 32),) * chance.whole(1, 3)
    return Task(
        name="",
        train=parts[0],
        held_out=parts[1],
        test=parts[2],
        make_host=host or MLPHost((x.shape[1], *hidden, len(labels))),
        labels=labels,
        shape=(x.shape[1],),
        metric=METRICS[kind.get("kind", "classification")],
        **kind,
    )


def _positions(chance: Chance, shape: tuple[int, ...], classes: int) -> HostFactory | None:
    """A host that knows of positions; in some tasks a perceptron, that is None."""
    if chance.is_so(0.35):
        return None
    stages = chance.whole(1, 3)
    widths = tuple(chance.whole(3, 8) for _ in range(stages + 1))
    return CNNHost(shape, classes, widths, tuple(1 if stage == 0 else 2 for stage in range(stages)))


def _smooth(noise: Array) -> Array:
    """Over three neighbours, twice; of unit deviation."""
    for _ in range(2):
        noise = (np.roll(noise, 1, axis=1) + noise + np.roll(noise, -1, axis=1)) / 3
    return noise / noise.std()


def _softmax(scores: Array) -> Array:
    raised = np.exp(scores - scores.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)
