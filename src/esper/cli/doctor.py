"""``esper doctor``: what is installed here, on what it runs, and whether it works."""

import importlib
import os
import platform
import time
from collections.abc import Iterator
from importlib import metadata

import esper
from esper.contracts.errors import EsperError

OURS = "esper-morphogenetic"
CORE = ("torch", "numpy", "safetensors")
BROKEN = (EsperError, ImportError, OSError, RuntimeError, TypeError, ValueError, AttributeError, LookupError)
"""What versions that do not fit together, or half an installation, may raise anywhere."""

EXTRAS = {"run": ("Jinja2", "pandas", "pyarrow", "PyYAML", "rich", "scikit-learn", "structlog"), "bench": ("scipy",)}


def doctor() -> bool:
    """Print versions, devices and extras, then test; gives whether all is well."""
    print(f"esper        {_version(OURS) or esper.__version__}")
    print(f"python       {platform.python_version()} on {platform.platform()}")
    for name in (*CORE, "triton"):
        print(f"{name:13}{_version(name) or 'not installed'}")
    if others := shadowing():
        print(
            f"\nesper is also the import name of {', '.join(others)}, whose files lie where Esper's lie or are found "
            f"before them. Remove it and install Esper anew: pip uninstall {' '.join(others)}; pip install "
            f"--force-reinstall --no-deps {OURS}"
        )
        return False
    try:
        importlib.import_module("torch")
    except (ImportError, OSError, RuntimeError) as error:  # missing, or its libraries do not load
        print(f"\ntorch cannot be imported: {type(error).__name__}: {error}\nInstall it anew: pip install torch")
        return False
    for line in (*_devices(), *_extras()):
        print(line)
    print("\nself-test")
    return _self_test()


def shadowing() -> list[str]:
    """Other packages that bring a module named ``esper`` along, by the names under which they are installed."""
    return sorted(set(metadata.packages_distributions().get("esper", ())) - {OURS})


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> Iterator[str]:
    import torch

    yield f"cpu          {os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"
    if not torch.cuda.is_available():
        yield "cuda         no device"
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        yield f"cuda:{index}       {device.name}, {device.total_memory / 2**30:.0f} GiB"


def _extras() -> Iterator[str]:
    for extra, packages in EXTRAS.items():
        missing = [name for name in packages if _version(name) is None]
        install = f"lacks {', '.join(missing)}: pip install 'esper-morphogenetic[{extra}]'"
        yield f"{'[' + extra + ']':13}{install if missing else 'installed'}"


def _self_test() -> bool:
    """Run the steps up to the first that fails; gives whether none did."""
    started = time.perf_counter()
    name = "Esper loads"
    try:
        from esper.cli.self_test import steps

        for name, step in steps():
            fault = step()
            if fault is not None:
                print(f"  failed  {name}: {fault}")
                return False
            print(f"  ok      {name}", flush=True)
    except BROKEN as error:
        print(f"  failed  {name}: {type(error).__name__}: {error}")
        return False
    print(f"All is well ({time.perf_counter() - started:.1f} s).")
    return True
