"""Arms on other ranks do what they do in turn, to the byte; a rank that is gone is done without."""

import json
import math
import signal
from multiprocessing import Pipe
from typing import Any

import pytest
import torch

from esper.checkpoint.packed import Packed
from esper.contracts.errors import ConfigError
from esper.runtime.costs.forecast import Forecast
from esper.runtime.state.batch_store import put_together, taken_apart
from esper.runtime.trying.parcels import Gone, Line, Parcel
from tests import warm
from tests.few import few
from tests.ranks.arm_runs import CONFIGS, recipe, trained
from tests.ranks.launch import ROOT, heard, place, started


def in_turn(name: str) -> dict[str, Any]:
    """What the run comes to in one process, as JSON tells it."""
    torch.set_num_threads(1)
    return json.loads(json.dumps(trained(recipe(name, "in_turn").build(), name), default=str))


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[dict[str, Any]]:
    """Of two ranks."""
    names = ["accumulated", "a smaller batch at the end of an epoch", "batches of many sizes", "cancelled", "rechunked"]
    return heard(tmp_path_factory.mktemp("two"), 2, *(f"elsewhere:{name}" for name in names), "unlike", "stepping")


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> list[dict[str, Any]]:
    """Of three ranks."""
    names = ["as many steps", "training in isolation", "the first"]
    return heard(tmp_path_factory.mktemp("three"), 3, *(f"elsewhere:{name}" for name in names), "failing", "otherwise")


@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_as_in_turn(two, three, name):
    """Bytes, books, and logs line by line; but for arms that need not have run, behind the first or cancelled."""
    ranks = two if f"elsewhere:{name}" in two[0] else three
    got, expected = ranks[0][f"elsewhere:{name}"], in_turn(name)
    assert got["parameters"] == expected["parameters"]
    if name not in ("the first", "cancelled"):
        assert got["events"] == expected["events"]
        assert got["books"] == expected["books"]
    assert [one for one in expected["events"] if one["event"] == "arm_ended"]


def test_arms_keep_up_with_the_run(two, three):
    """Each arm runs once, and knows its length while the window is made: also where an epoch ends with less."""
    assert two[1]["elsewhere:a smaller batch at the end of an epoch"] == ["foretold"] * 2
    assert three[1]["elsewhere:as many steps"] == three[2]["elsewhere:as many steps"] == ["foretold"]
    assert set(two[1]["elsewhere:batches of many sizes"]) == {"not foretold"}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_without_a_rank_that_is_gone(tmp_path, number):
    rank, other = started(tmp_path, 2, f"harmed:{int(number)}")
    try:
        out, errors = rank.communicate()
    finally:
        other.kill()
        other.communicate()
    assert rank.returncode == 0, errors
    got, expected = json.loads(out.splitlines()[-1])[f"harmed:{int(number)}"], in_turn("as many steps")
    assert got["parameters"] == expected["parameters"]
    (note,) = [one["text"] for one in got["events"] if one["event"] == "note" and "Rank 1" in one["text"]]
    assert "run in turn" in note


@pytest.mark.parametrize("dies_at", few(["window", "arms"], ["window"]))
def test_killed_and_resumed(tmp_path, dies_at):
    rank, other = started(tmp_path, 2, f"saving:{tmp_path}:{dies_at}")
    (_, own), (_, errors) = rank.communicate(), other.communicate()
    assert rank.returncode == -signal.SIGKILL, own
    assert "has ended without session.finish()" in errors
    (tmp_path / "store2").unlink()
    got = heard(tmp_path, 2, f"saving:{tmp_path}:never")[0][f"saving:{tmp_path}:never"]
    assert got == in_turn("as many steps")


def test_a_loss_that_is_another_one_there_is_noticed(two):
    (ended,) = [one for one in two[0]["unlike"]["events"] if one["event"] == "round_ended"]
    assert ended["adopted"] is None
    assert "a step that was taken once more had the loss" in ended["reason"]


def test_an_error_in_an_arm_is_raised_in_the_run(three):
    assert three[0]["failing"].startswith("ArmError: The arm round1/model/bottleneck_mlp raised ValueError")
    assert "on rank 1" in three[0]["failing"]
    assert three[1]["failing"] == "served", "the run may go on, and end"


def test_other_arguments_are_told_on_all(three):
    assert all("arguments of Session: 'planned_steps' differs" in told["otherwise"] for told in three)


def test_a_rank_for_arms_does_not_train(two):
    assert "Call session.serve_arms() before the loop" in two[1]["stepping"]


def test_there_must_be_other_ranks():
    with pytest.raises(ConfigError, match="torchrun"):
        recipe("as many steps").build()


def test_a_parcel_brings_what_was_sent(tmp_path):
    """Tensors of all kinds, batches with their strides, what lies on disk, and plain values."""
    image = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    sent = {
        "batch": taken_apart({"image": image, "label": 3}),
        "half": torch.randn(3).to(torch.bfloat16),
        "empty": torch.empty(0, 2),
        "number": torch.tensor(1.5),
        "sparse": torch.eye(3).to_sparse(),
        "on disk": Packed.of({"weights": torch.arange(5)}, tmp_path),
        "plain": (1, "two", None, math.inf),
    }
    one, other = Pipe()
    Line(one, torch.device("cpu"), 1.0).send(Parcel.of(sent))
    got = Line(other, torch.device("cpu"), 1.0).next(60)
    batch = put_together(got["batch"])
    assert batch["image"].equal(image)
    assert batch["image"].stride() == image.stride()
    assert batch["label"] == 3
    assert got["half"].equal(sent["half"])
    assert got["empty"].shape == (0, 2)
    assert got["number"] == 1.5
    assert got["sparse"].to_dense().equal(torch.eye(3))
    assert got["on disk"]["weights"].equal(torch.arange(5))
    assert got["plain"] == sent["plain"]


def test_the_end_of_a_line_is_told():
    """Also where nobody has closed it."""
    one, other = Pipe()
    begun, line = Line(one, torch.device("cpu"), 1.0), Line(other, torch.device("cpu"), 1.0)
    begun.send(Parcel.of("the last"))
    del begun
    assert line.next(60) == "the last"
    assert isinstance(line.next(60), Gone)


class TestForecast:
    @staticmethod
    def after(*epochs: list[int], now: list[int] | None = None) -> Forecast:
        forecast = Forecast()
        for epoch in epochs:
            for flops in epoch:
                forecast.note(flops)
            forecast.end_epoch()
        for flops in now or []:
            forecast.note(flops)
        return forecast

    def test_an_epoch_is_like_the_one_before(self):
        assert self.after([10, 10, 6]).of(7) == [10, 10, 6, 10, 10, 6, 10]

    def test_also_from_its_middle(self):
        assert self.after([10, 10, 6], now=[10]).of(3) == [10, 6, 10]

    def test_what_has_grown_since_makes_all_dearer(self):
        assert self.after([10, 10, 6], now=[20]).of(3) == [20, 12, 20]

    def test_also_where_it_grew_in_the_middle_of_an_epoch(self):
        assert self.after([10, 10, 20, 20, 12]).of(5) == [20, 20, 20, 20, 12]
        assert self.after([10, 10, 20, 20]).of(3) == [20, 20, 20]

    def test_in_the_first_epoch_all_steps_are_like_the_first(self):
        assert self.after(now=[10, 10]).of(3) == [10, 10, 10]

    def test_batches_of_many_sizes_foretell_nothing(self):
        assert self.after([10, 9, 8, 7]).of(3) is None
        assert self.after([10, 10], now=[10, 9, 8, 7]).of(3) is None
        assert Forecast().of(3) is None


def test_the_example():
    """As torchrun starts it."""
    command = [
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=127.0.0.1:0",
    ]
    done = warm.run([*command, str(ROOT / "examples/arms_on_other_gpus.py"), "8"], environment=place())
    assert done.returncode == 0, done.stderr
    assert "% right" in done.stdout
