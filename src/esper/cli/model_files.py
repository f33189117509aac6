"""The grown network as files that need nothing of Esper."""

import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import nn

import esper
from esper.cli.run_directory import write_text
from esper.observability.card import card
from esper.tasks.task import Task

CARD = "README.md"

PREPARATION = "`mean` and `std` of the features: the network expects `(raw - mean) / std`"
LABELS = "the name of every class, in the order of the logits"
VOCABULARY = "the characters, in the order of tokens and logits"

TARGET = "the quantity that is predicted, with its `mean` and `std`: the network gives `(quantity - mean) / std`"
COLUMNS = "how the columns of a table become features, in their order; what was missing or not known has its own"

USAGE = """\
import json
import torch
from safetensors.torch import load_file

model = torch.export.load("model.pt2").module()
preparation = load_file("preparation.safetensors")
{names} = json.load(open("{file}"))
mean, std = preparation["mean"], preparation["std"]
{encoding}
x = (raw.reshape(-1, *mean.shape) - mean) / std  # raw: float32 [batch, ...]
{predicted}"""

PREDICTED = {
    "classification": "predicted = [labels[index] for index in model(x).argmax(1).tolist()]",
    "multilabel": (
        "predicted = [[label for label, logit in zip(labels, row) if logit > 0] for row in model(x).tolist()]"
    ),
    "regression": 'predicted = (model(x).flatten() * target["std"] + target["mean"]).tolist()',
}

ENCODING = """\
columns = json.load(open("columns.json"))


def encoded(row):  # of the table: column to cell, None where it is missing
    features = []
    for column in columns:
        cell = row[column["name"]]
        if column["kind"] == "number":
            gap = [float(cell is None)] if "fill" in column else []
            features += [column["fill"] if cell is None else float(cell), *gap]
        else:
            level = "missing" if cell is None else cell
            rest = [float(level not in column["levels"])] if column["has_other"] else []
            features += [float(level == one) for one in column["levels"]] + rest
    return features


raw = torch.tensor([encoded(row) for row in rows])"""

TEXT_USAGE = """\
import json
import torch

model = torch.export.load("model.pt2").module()
vocabulary = json.load(open("vocabulary.json"))
tokens = [vocabulary.index(character) for character in prompt]  # prompt: text of characters in the vocabulary

for _ in range(200):
    logits = model(torch.tensor([tokens[-{context}:]]))[0, -1]
    tokens.append(int(torch.multinomial(logits.softmax(0), 1)))
print("".join(vocabulary[token] for token in tokens))"""

BYTE_USAGE = """\
import torch

model = torch.export.load("model.pt2").module()
tokens = list(prompt.encode())  # bytes

for _ in range(200):
    logits = model(torch.tensor([tokens[-{context}:]]))[0, -1]
    tokens.append(int(torch.multinomial(logits.softmax(0), 1)))
print(bytes(tokens).decode(errors="replace"))"""


class ModelFiles(NamedTuple):
    """An exported model on disk.

    Attributes:
        directory: where it lies.
        files: what each of its files is, in Markdown.
        usage: Python lines that load it and use it.
        weights: shape of every weight.
        fault: why there is no graph; None if there is.
    """

    directory: Path
    files: dict[str, str]
    usage: str
    weights: dict[str, list[int]]
    fault: str | None


def write_model(directory: Path, plain: nn.Module, task: Task) -> ModelFiles:
    """Write the folder ``directory`` as a whole; one that exists is replaced.

    torch cannot make a graph of every host that users bring; the weights are written all the same.

    Args:
        directory: where.
        plain: from :func:`esper.export`; it is put on the CPU and in eval mode.
        task: what it learned.
    """
    unfinished = directory.with_name(f".{directory.name}.{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    plain = plain.cpu().eval()
    weights = {name: tensor.detach().clone().contiguous() for name, tensor in plain.state_dict().items()}
    fault = _write_graph(unfinished / "model.pt2", plain, task)
    graph = _signature(task) if fault is None else f"missing, since {fault}"
    parameters = sum(parameter.numel() for parameter in plain.parameters())
    files = {"model.pt2": f"the network as a graph: {graph}", "weights.safetensors": f"its {parameters:,} parameters"}
    save_file(weights, unfinished / "weights.safetensors")
    if task.mean is not None and task.std is not None:
        save_file({"mean": task.mean, "std": task.std}, unfinished / "preparation.safetensors")
        files["preparation.safetensors"] = PREPARATION
    for name, (content, what) in _names(task).items():
        (unfinished / name).write_text(json.dumps(content))
        files[name] = what
    shutil.rmtree(directory, ignore_errors=True)
    unfinished.rename(directory)
    return ModelFiles(directory, files, _usage(task), {name: list(one.shape) for name, one in weights.items()}, fault)


def write_card(model: ModelFiles, result: dict[str, Any], anatomy: dict[str, Any]) -> None:
    """Write the folder's README: what the model is, how it came about, what may be said of it.

    Args:
        model: as written.
        result: of the run, as ``result.json`` holds it or is going to.
        anatomy: the run's ``model`` event.
    """
    text = card(result, anatomy, files=model.files, usage=model.usage, weights=model.weights, version=esper.__version__)
    write_text(model.directory / CARD, text)


def _names(task: Task) -> dict[str, tuple[Any, str]]:
    """Files of what goes in and comes out by name: their content, and what they are."""
    if task.is_text:
        return {} if task.tokens == "bytes" else {"vocabulary.json": (task.labels, VOCABULARY)}
    columns = {"columns.json": (task.columns, COLUMNS)} if task.columns else {}
    if task.scale is None:
        return {"labels.json": (task.labels, LABELS)} | columns
    return {"target.json": ({"name": task.labels[0], **task.scale._asdict()}, TARGET)} | columns


def _usage(task: Task) -> str:
    if task.is_text:
        return (BYTE_USAGE if task.tokens == "bytes" else TEXT_USAGE).format(context=task.shape[0])
    names = "labels" if task.scale is None else "target"
    return USAGE.format(
        names=names,
        file=f"{names}.json",
        encoding=ENCODING if task.columns else "",
        predicted=PREDICTED[task.kind],
    )


def _write_graph(path: Path, plain: nn.Module, task: Task) -> str | None:
    """Write the graph; gives why there is none."""
    try:
        program = torch.export.export(plain, (task.example(2).cpu(),), dynamic_shapes=(_dynamic(task),))
        torch.export.save(program, path)
        torch.export.load(path).module()  # as the card says it is used
    except Exception as error:  # it traces the host's own code, which may raise anything
        path.unlink(missing_ok=True)
        return f"torch.export failed with {type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return None


def _signature(task: Task) -> str:
    if task.is_text:
        return f"int64 `[batch, tokens]`, up to {task.shape[0]} tokens, to logits `[batch, tokens, {task.num_classes}]`"
    features = ", ".join(map(str, task.train.x.shape[1:]))
    what = "logits" if task.scale is None else "predictions"
    return f"float32 `[batch, {features}]` to {what} `[batch, {task.num_classes}]`"


def _dynamic(task: Task) -> dict[int, Any]:
    """Axes of a batch whose length may vary."""
    batch = {0: torch.export.Dim("batch")}
    return batch | {1: torch.export.Dim("tokens", max=task.shape[0])} if task.is_text else batch
