"""Kernels for tests of what grows."""

import pytest


@pytest.fixture(params=["reference", "triton"])
def kernels(request, monkeypatch):
    """Plain PyTorch, and Triton: on a GPU if there is one, else in its interpreter."""
    if request.param == "triton":
        pytest.importorskip("triton", exc_type=ImportError)
    monkeypatch.setenv("ESPER_KERNELS", request.param)
    return request.param
