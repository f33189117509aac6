"""For all tests."""

import os

import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available():  # before the first import of triton
    os.environ["TRITON_INTERPRET"] = "1"

# The same examples in every run, on machines of any speed.
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session", autouse=True)
def _files_are_not_flushed_to_the_disk():
    """That matters only where the power may fail, and takes seconds where the disk is busy."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda descriptor: None)
        yield
