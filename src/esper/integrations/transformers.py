"""Models of Hugging Face transformers, and adapters of PEFT: a folder that loads a grown model without Esper."""

import json
import runpy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import esper
from esper.contracts.errors import ConfigError
from esper.integrations.source import grown_in, source_of
from esper.kasmina.host.edges import is_around_adapters
from esper.kasmina.host.export import WIDER, export
from esper.kasmina.host.layer import KasminaLayer

CODE, BESIDE, WEIGHTS = "modeling_grown.py", "grown.py", "grown.safetensors"

_FILE = '''\
"""{base} with the modules that it has grown. Written by Esper {version}; needs torch and transformers alone."""

{imports}
from {module} import {base}


{classes}

class Grown{base}({base}):
    """{base}, and what it has grown."""

    def __init__(self, config, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        grow(self)
'''

_BESIDE = '''\
"""What a model has grown beside its adapters. Written by Esper {version}; needs torch and safetensors alone."""

from pathlib import Path

{imports}
from safetensors.torch import load_file


{classes}

def attach(model):
    """Give a model with the adapters of this folder what it has grown, of the model's dtype."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(model.dtype)
    try:
        with model.device:
            grow(model)
    finally:
        torch.set_default_dtype(default)
    keys = model.load_state_dict(load_file(Path(__file__).with_name("{weights}")), strict=False)
    assert not keys.unexpected_keys, keys.unexpected_keys
    return model
'''

_CARD = """\
---
library_name: transformers
tags:
- esper
---

# A {base} that has grown

Trained with Esper {version}, which gave it new modules while it trained. `{code}` builds them with torch alone, so that
loading has to trust it; without that the plain {base} is loaded, and transformers lists the weights that it leaves out.

```python
from transformers import {auto}

model = {auto}.from_pretrained("PATH", trust_remote_code=True)
```

| grown at | parameters |
|---|---|
{rows}
"""


def save_pretrained(model: nn.Module, directory: str | Path, **options: Any) -> None:
    """Write a folder that ``AutoModel.from_pretrained(directory, trust_remote_code=True)`` loads to the same logits.

    Of a ``PeftModel`` it holds adapters as that one writes them, and ``grown.py`` beside them, whose ``attach(model)``
    gives a model with these adapters what it has grown.

    It holds ``config.json``, weights under the names that they have in the model, ``modeling_grown.py``, which builds
    what has grown and needs no Esper, and a card. It is loaded once, to see that it gives these weights. A model that
    has not grown is written as its own ``save_pretrained`` does.

    Args:
        model: wrapped and finished, or from :func:`esper.export`.
        directory: where; it is made.
        options: of the model's own ``save_pretrained``.

    Raises:
        ConfigError: if it is no model of transformers, an option is refused, layers have become wider, what was written
            loads other weights, or what :func:`esper.export` says.
    """
    kind: Any = model.esper_base if isinstance(model, KasminaLayer) else type(model)
    if not is_of_library(kind):
        raise ConfigError(
            f"save_pretrained takes a model whose class transformers or peft brings, not a {kind.__name__}. Keep this "
            "one by torch.save(esper.export(model), path)."
        )
    if options.get("push_to_hub"):
        raise ConfigError("save_pretrained writes a folder and pushes nothing. Upload the folder as a whole.")
    if options.get("state_dict") is not None:
        raise ConfigError("save_pretrained writes the model's own weights. Leave out state_dict, or load it before.")
    plain: Any = export(model) if isinstance(model, KasminaLayer) else model
    if not fits_folder(plain):
        raise ConfigError(
            "Layers of the model have become wider than its config.json can tell, so from_pretrained could not build "
            "them. Keep the model by torch.save(esper.export(model), path). A run with GrowthConfig(colonies=[]) grows "
            "nothing of that kind."
        )
    imports, classes = source_of(plain)
    if classes and not is_around_adapters(kind):
        options = {"save_original_format": False} | options  # transformers renames keys back for classes of its own
    kind.save_pretrained(plain, directory, **options)
    if not classes:
        return
    if is_around_adapters(kind):
        _write_beside(Path(directory), plain, imports, classes)
        return
    folder, base = Path(directory), kind.__name__
    names = {"base": base, "module": kind.__module__, "version": esper.__version__, "code": CODE}
    (folder / CODE).write_text(_FILE.format(imports=imports, classes=classes, **names))
    autos = _auto_classes(base, plain.config.model_type)
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = [f"Grown{base}"]
    config["auto_map"] = {auto: f"{CODE.removesuffix('.py')}.Grown{base}" for auto in autos}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    rows = "\n".join(f"| `{path}` | {parameters:,} |" for path, parameters in _grown(plain))
    (folder / "README.md").write_text(_CARD.format(rows=rows, auto=autos[0], **names))
    _check_loads(folder, plain, f"Grown{base}", options.get("variant"))


def is_of_library(kind: type[nn.Module]) -> bool:
    """Whether transformers or peft brings a class."""
    return kind.__module__.partition(".")[0] in ("transformers", "peft")


def fits_folder(plain: nn.Module) -> bool:
    """Whether an export is of a class and of widths that ``from_pretrained`` can build."""
    return is_of_library(type(plain)) and WIDER not in vars(plain)


def _check_loads(folder: Path, plain: nn.Module, name: str, variant: str | None) -> None:
    """Load what was written once, in memory.

    Raises:
        ConfigError: if weights are absent or others.
    """
    loaded, told = runpy.run_path(str(folder / CODE))[name].from_pretrained(
        folder, variant=variant, output_loading_info=True
    )
    state = loaded.state_dict()
    wrong = [key for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in told[kind]]
    wrong += [key for key, one in plain.state_dict().items() if key not in state or not _is_same(one, state[key])]
    if wrong:
        raise ConfigError(
            f"What was written to {folder} loads other weights, at {wrong[0]!r} among others: transformers renames or "
            "converts them for this class. Keep the model by torch.save(esper.export(model), path)."
        )


def _is_same(one: Tensor, other: Tensor) -> bool:
    here = one.detach().to(other.device, other.dtype)
    return here.shape == other.shape and torch.allclose(here, other.detach(), rtol=0, atol=0, equal_nan=True)


def _write_beside(folder: Path, plain: nn.Module, imports: str, classes: str) -> None:
    """What has grown, beside adapters."""
    own = [f"{path}." for path in grown_in(plain)]
    named = (*plain.named_parameters(), *plain.named_buffers())
    save_file({name: one.detach().contiguous() for name, one in named if name.startswith(tuple(own))}, folder / WEIGHTS)
    text = _BESIDE.format(imports=imports, classes=classes, version=esper.__version__, weights=WEIGHTS)
    (folder / BESIDE).write_text(text)


def _auto_classes(base: str, model_type: str) -> list[str]:
    """Names of the classes by which transformers finds a class, the most telling first."""
    from transformers.models.auto import modeling_auto

    found = []
    for name, auto in vars(modeling_auto).items():
        if name.startswith("AutoModelFor"):
            known = auto._model_mapping._model_mapping.get(model_type)
            if base in (known if isinstance(known, tuple) else (known,)):
                found.append(name)
    return [*sorted(found, key=lambda name: name == "AutoModelForPreTraining"), "AutoModel"]


def _grown(plain: nn.Module) -> list[tuple[str, int]]:
    """Where something has grown, and how many parameters."""
    return [
        (path.rpartition(".")[0] or "the model", sum(parameter.numel() for parameter in module.parameters()))
        for path, module in grown_in(plain).items()
    ]
