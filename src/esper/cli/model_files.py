"""The grown network as files that need nothing of Esper."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from esper.tasks.task import Task

README = """\
# A grown network

Grown by Esper on `{task}`; nothing here needs Esper.

| file | what |
|---|---|
| `model.pt2` | the network as a graph: {graph} |
| `weights.safetensors` | its {parameters:,} parameters by name |
{files}

```python
{usage}
```

| weight | shape |
|---|---|
{weights}
"""

CLASS_FILES = """\
| `preparation.safetensors` | `mean` and `std` of the features: the network expects `(raw - mean) / std` |
| `labels.json` | the name of every class, in the order of the logits |"""

CLASS_USAGE = """\
import json
import torch
from safetensors.torch import load_file

model = torch.export.load("model.pt2").module()
preparation = load_file("preparation.safetensors")
labels = json.load(open("labels.json"))
mean, std = preparation["mean"], preparation["std"]

x = (raw.reshape(-1, *mean.shape) - mean) / std  # raw: float32 [batch, ...]
predicted = [labels[index] for index in model(x).argmax(1).tolist()]"""

TEXT_FILES = "| `vocabulary.json` | the characters, in the order of tokens and logits |"

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


def write_model(directory: Path, plain: nn.Module, task: Task) -> str | None:
    """Write the folder ``directory`` as a whole; one that exists is replaced.

    torch cannot make a graph of every host that users bring; the weights are written all the same.

    Args:
        directory: where.
        plain: from :func:`esper.export`.
        task: what it learned.

    Returns:
        Why there is no ``model.pt2``; None if there is.
    """
    unfinished = directory.with_name(f".{directory.name}.{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    plain = plain.eval()
    weights = {name: tensor.detach().clone().contiguous() for name, tensor in plain.state_dict().items()}
    save_file(weights, unfinished / "weights.safetensors")
    if task.mean is not None and task.std is not None:
        save_file({"mean": task.mean, "std": task.std}, unfinished / "preparation.safetensors")
    (unfinished / ("vocabulary.json" if task.is_text else "labels.json")).write_text(json.dumps(task.labels))
    features, classes, context = ", ".join(map(str, task.train.x.shape[1:])), task.num_classes, task.shape[0]
    graph = f"float32 `[batch, {features}]` to logits `[batch, {classes}]`"
    if task.is_text:
        graph = f"int64 `[batch, tokens]`, up to {context} tokens, to logits `[batch, tokens, {classes}]`"
    fault = None
    try:
        program = torch.export.export(plain, (task.train.x[:2],), dynamic_shapes=(_dynamic(task),))
        torch.export.save(program, unfinished / "model.pt2")
    except Exception as error:  # it traces the host's own code, which may raise anything
        fault = f"torch.export failed with {type(error).__name__}: {str(error).strip().splitlines()[0]}"
        graph = f"missing, since {fault}"
    text = README.format(
        task=task.name,
        graph=graph,
        files=TEXT_FILES if task.is_text else CLASS_FILES,
        usage=TEXT_USAGE.format(context=context) if task.is_text else CLASS_USAGE,
        parameters=sum(parameter.numel() for parameter in plain.parameters()),
        weights="\n".join(f"| `{name}` | {list(tensor.shape)} |" for name, tensor in weights.items()),
    )
    (unfinished / "README.md").write_text(text)
    shutil.rmtree(directory, ignore_errors=True)
    unfinished.rename(directory)
    return fault


def _dynamic(task: Task) -> dict[int, Any]:
    """Axes of a batch whose length may vary."""
    batch = {0: torch.export.Dim("batch")}
    return batch | {1: torch.export.Dim("tokens", max=task.shape[0])} if task.is_text else batch
