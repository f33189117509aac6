"""For all tests."""

import gc
import os
import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings
from torch import distributed

if not torch.cuda.is_available():  # before the first import of triton
    os.environ["TRITON_INTERPRET"] = "1"

# The same examples in every run, on machines of any speed.
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is imported and collected stays until the end: garbage is looked for among what comes later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _files_are_not_flushed_to_the_disk():
    """That matters only where the power may fail, and takes seconds where the disk is busy."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _triton_is_made_to_interpret_once():
    """Its interpreter searches ``triton.language`` for what to replace whenever a function is called, which is half of
    a kernel's time there. Here that is done once for each module of kernels, and stays."""
    interpreter = sys.modules.get("triton.runtime.interpreter")
    if interpreter is None:
        yield
        return
    replace, done = interpreter._patch_lang, set()

    def replace_once(function):
        if function.__module__ not in done:
            done.add(function.__module__)
            replace(function)
        return interpreter._LangPatchScope()  # with nothing to put back

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(interpreter, "_patch_lang", replace_once)
        yield


_OF_RANKS = (
    "RANK",
    "LOCAL_RANK",
    "NODE_RANK",
    "GROUP_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)


@pytest.fixture(autouse=True)
def _leaves_no_process_group():
    """A trainer's strategy begins one and leaves it to the end of the process; and what it tells its ranks by."""
    before = {name: os.environ.get(name) for name in _OF_RANKS}
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
