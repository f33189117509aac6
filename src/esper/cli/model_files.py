"""The grown network as files that need nothing of Esper."""

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from esper.tasks.task import Task

README = """\
# A grown network

Grown by Esper on `{task}`; nothing here needs Esper.

| file | what |
|---|---|
| `model.pt2` | the network as a graph: float32 `[batch, {features}]` to logits `[batch, {classes}]` |
| `weights.safetensors` | its {parameters:,} parameters by name |
| `preparation.safetensors` | `mean` and `std` of the {features} features: the network expects `(raw - mean) / std` |
| `labels.json` | the name of every class, in the order of the logits |

```python
import json
import torch
from safetensors.torch import load_file

model = torch.export.load("model.pt2").module()
preparation = load_file("preparation.safetensors")
labels = json.load(open("labels.json"))

x = (raw.flatten(1) - preparation["mean"]) / preparation["std"]  # raw: float32 [batch, ...]
predicted = [labels[index] for index in model(x).argmax(1).tolist()]
```

| weight | shape |
|---|---|
{weights}
"""


def write_model(directory: Path, plain: nn.Module, task: Task) -> None:
    """Write the folder ``directory`` as a whole; one that exists is replaced.

    Args:
        directory: where.
        plain: from :func:`esper.export`.
        task: what it learned.
    """
    unfinished = directory.with_name(f".{directory.name}.{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    plain = plain.eval()
    weights = {name: tensor.detach().clone().contiguous() for name, tensor in plain.state_dict().items()}
    save_file(weights, unfinished / "weights.safetensors")
    save_file({"mean": task.mean, "std": task.std}, unfinished / "preparation.safetensors")
    (unfinished / "labels.json").write_text(json.dumps(task.labels))
    batch = torch.export.Dim("batch")
    program = torch.export.export(plain, (task.train.x[:2],), dynamic_shapes=({0: batch},))
    torch.export.save(program, unfinished / "model.pt2")
    text = README.format(
        task=task.name,
        features=task.mean.numel(),
        classes=task.num_classes,
        parameters=sum(parameter.numel() for parameter in plain.parameters()),
        weights="\n".join(f"| `{name}` | {list(tensor.shape)} |" for name, tensor in weights.items()),
    )
    (unfinished / "README.md").write_text(text)
    shutil.rmtree(directory, ignore_errors=True)
    unfinished.rename(directory)
