"""A task on a device and in a precision."""

import pytest
import torch

from esper.contracts.errors import ConfigError
from esper.evaluation.controls import Setting, host_on
from esper.evaluation.scoring import mean_loss, per_sample
from esper.evaluation.training import Recipe
from esper.tasks.catalogue import load_task
from esper.tasks.placed import OnDevice, device_named, placed


@pytest.fixture
def task():
    return load_task("digits", 0, "mlp")


@pytest.fixture
def gpus(monkeypatch):
    def pretend(count):
        monkeypatch.setattr("torch.cuda.is_available", lambda: count > 0)
        monkeypatch.setattr("torch.cuda.device_count", lambda: count)

    return pretend


@pytest.mark.parametrize(
    ("count", "name", "device"),
    [(0, "auto", "cpu"), (2, "auto", "cuda"), (0, "cpu", "cpu"), (1, "cuda", "cuda"), (2, "cuda:1", "cuda:1")],
)
def test_names_of_devices_mean_what_is_there(count, name, device, gpus):
    gpus(count)
    assert device_named(name) == device


@pytest.mark.parametrize(
    ("count", "name", "said"),
    [
        (0, "cuda", "no device 'cuda' here: torch finds no GPU. Take cpu, or auto"),
        (1, "cuda:7", "no device 'cuda:7' here, only cuda:0"),
        (2, "cuda:2", "only cuda:0 to cuda:1. Take one of those"),
    ],
)
def test_devices_that_are_not_there_are_refused(count, name, said, gpus):
    gpus(count)
    with pytest.raises(ConfigError, match=said):
        device_named(name)


def test_on_the_cpu_in_float32_a_task_is_what_it_was(task):
    assert vars(placed(task)) == vars(task)


def test_hosts_on_a_device_have_the_weights_that_they_have_on_the_cpu(task):
    """Their first weights are drawn on the CPU, whose random stream goes on alike; ``meta`` stands in for a GPU."""
    torch.manual_seed(3)
    expected = [task.make_host(), torch.rand(1)][1]
    torch.manual_seed(3)
    host = OnDevice(task.make_host, torch.device("meta"))(width_factor=1.0)
    assert torch.rand(1) == expected
    assert {parameter.device.type for parameter in host.parameters()} == {"meta"}


def test_bfloat16_is_computed_under_autocast_with_a_loss_in_float32(task):
    host, few, seen = task.make_host(), tuple(one[:32] for one in task.train), []
    host[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    loss = mean_loss(host, few, "bf16")
    loss.backward()
    assert seen == [torch.bfloat16]
    assert loss.dtype is host[0].weight.grad.dtype is torch.float32
    assert 0 < abs(loss - mean_loss(host, few)) < 0.02
    losses, scores = per_sample(host, task.test, precision="bf16")
    assert losses.dtype is scores.dtype is torch.float32
    assert not torch.equal(losses, per_sample(host, task.test)[0])


def test_controls_train_and_are_judged_in_the_precision_of_the_task(task):
    setting = Setting(32, 0, 0, recipes=(Recipe(1e-2, "cosine"),))
    exact, rounded = (host_on(placed(task, precision=one), 2_000_000, setting) for one in ("fp32", "bf16"))
    assert exact.train_flops == rounded.train_flops
    assert 0 < abs(exact.test_loss - rounded.test_loss) < 0.1
