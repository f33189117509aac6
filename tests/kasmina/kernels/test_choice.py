"""Which kernels are used."""

import importlib.util
import sys
import types
import warnings

import pytest
import torch

import esper
from esper.contracts.errors import ConfigError
from esper.kasmina import kernels
from esper.kasmina.kernels import choice
from esper.kasmina.kernels.adamw import reference
from esper.kasmina.kernels.adamw.ops import step_adamw
from esper.kasmina.kernels.adamw.reference import Rows
from esper.kasmina.kernels.choice import uses_triton


class OnGPU:
    """Stands for a tensor there."""

    device = torch.device("cuda")


@pytest.fixture(autouse=True)
def _asked_anew(monkeypatch):
    monkeypatch.delenv("ESPER_KERNELS", raising=False)
    choice._uses_triton.cache_clear()
    yield
    choice._uses_triton.cache_clear()


def has_triton(monkeypatch, there: bool) -> None:
    monkeypatch.setattr(choice, "find_spec", lambda name: object() if there else None)


def works(monkeypatch, failure: str | None) -> None:
    """What comes of Triton's first launch on a GPU."""
    module = types.ModuleType("probe")
    module.failure = lambda device: failure
    monkeypatch.setitem(sys.modules, "esper.kasmina.kernels.probe", module)
    monkeypatch.setattr(kernels, "probe", module, raising=False)


def test_a_gpu_gets_tritons_kernels_and_a_cpu_their_twins(monkeypatch):
    has_triton(monkeypatch, True)
    works(monkeypatch, None)
    assert uses_triton(OnGPU())
    assert not uses_triton(torch.zeros(1))


def test_without_triton_the_twins_work_on_a_gpu_too_and_that_is_said_once(monkeypatch):
    has_triton(monkeypatch, False)
    with pytest.warns(UserWarning, match="triton is not installed"):
        assert not uses_triton(OnGPU())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not uses_triton(OnGPU())


def test_where_triton_cannot_build_a_kernel_the_twins_work_and_the_reason_is_told(monkeypatch):
    has_triton(monkeypatch, True)
    works(monkeypatch, "RuntimeError: Failed to find C compiler")
    with pytest.warns(UserWarning, match=r"cannot build a kernel here.*C compiler"):
        assert not uses_triton(OnGPU())
    monkeypatch.setenv("ESPER_KERNELS", "triton")
    with pytest.raises(ConfigError, match=r"C compiler.*unset ESPER_KERNELS"):
        uses_triton(OnGPU())


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has no interpreter")
def test_the_first_launch_tells_what_went_wrong(monkeypatch):
    from esper.kasmina.kernels import probe

    class NoCompiler:
        def __getitem__(self, grid):
            raise RuntimeError("Failed to find C compiler.\nPlease specify via CC")

    assert probe.failure("cpu") is None
    monkeypatch.setattr(probe, "_write", NoCompiler())
    assert probe.failure("cpu") == "RuntimeError: Failed to find C compiler."


def test_either_can_be_forced(monkeypatch):
    has_triton(monkeypatch, True)
    monkeypatch.setenv("ESPER_KERNELS", "reference")
    assert not uses_triton(OnGPU())
    monkeypatch.setenv("ESPER_KERNELS", "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert uses_triton(torch.zeros(1))


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has no interpreter")
def test_what_is_forced_is_what_runs(monkeypatch):
    def never(*_):
        raise AssertionError("the twin ran")

    monkeypatch.setattr(reference, "step_adamw", never)
    rows = Rows(torch.zeros(1, 2), torch.ones(1, 2), *torch.zeros(2, 1, 2), torch.zeros(1), torch.tensor([True]))
    with pytest.raises(AssertionError, match="the twin ran"):
        step_adamw([rows], 0.1, 0.0)
    monkeypatch.setenv("ESPER_KERNELS", "triton")
    step_adamw([rows], 0.1, 0.0)
    assert rows.params_SN.tolist() == [pytest.approx([-0.1, -0.1], rel=1e-5)]


@pytest.mark.parametrize(
    ("asked", "there", "interpreted", "message"),
    [
        ("cuda", True, "1", "ESPER_KERNELS is 'cuda'; it can be reference or triton"),
        ("triton", False, "1", "not installed .pip install triton.*unset ESPER_KERNELS"),
        ("triton", True, "0", "the model is on cpu.*TRITON_INTERPRET=1.*unset ESPER_KERNELS"),
    ],
)
def test_what_cannot_be_is_refused_with_the_remedy(monkeypatch, asked, there, interpreted, message):
    has_triton(monkeypatch, there)
    monkeypatch.setenv("ESPER_KERNELS", asked)
    monkeypatch.setenv("TRITON_INTERPRET", interpreted)
    with pytest.raises(ConfigError, match=message):
        uses_triton(torch.zeros(1))


@pytest.mark.skipif(torch.cuda.is_initialized(), reason="a GPU is in use")
def test_a_torch_that_is_built_for_gpus_needs_none(monkeypatch):
    """There torch raises where it is asked for graphs; the negative control asks."""

    def no_device() -> bool:
        raise RuntimeError("CUDA error: no CUDA-capable device is detected")

    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", no_device)
    model = esper.wrap(torch.nn.Sequential(torch.nn.Linear(4, 3)), esper.GrowthConfig(layers={"0": 2}))
    assert model(torch.zeros(2, 4)).shape == (2, 3)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(RuntimeError, match="no CUDA-capable device"):
        model(torch.zeros(2, 4))
