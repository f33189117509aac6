from dataclasses import replace

import msgspec
import pytest
import torch

from esper.contracts.config import GrowthConfig
from esper.contracts.errors import ConfigError, DataError
from esper.learning import collect as collecting
from esper.learning.collect import collect, collected
from esper.learning.examples import examples
from esper.learning.records import headroom, path_of, read, write
from esper.tamiyo.learned.actions import legal_actions
from esper.tamiyo.learned.network import Shape, TamiyoNetwork
from esper.tamiyo.learned.tokens import names
from tests.learning.practising import idle, small

CONFIG = GrowthConfig()


def short(seed):
    return replace(small(seed), steps=96)


@pytest.fixture(scope="module")
def record():
    """Of a task on which two grafts follow each other in the fourth run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collecting, "draw", short)
        return collected(10, CONFIG, 4)


def test_a_record_says_what_became_of_every_try(record):
    assert [one.without is None for one in record.tried] == [True, True, True, False]
    for one in record.tried:
        seen = record.seen[one.seen]
        assert one.action < len(legal_actions(seen.observation, record.config))
        assert one.flops > 1
    assert any(one.is_adopted for one in record.tried)
    assert record.heuristic is not None


def test_nothing_is_tried_twice(record):
    assert len({(one.seen, one.action) for one in record.tried}) == len(record.tried)


def test_every_other_graft_is_one_that_the_guide_holds_likely(tmp_path, monkeypatch):
    """It holds those likely that are as large as they may be."""
    monkeypatch.setattr(collecting, "draw", short)
    network = TamiyoNetwork(Shape(width=16, heads=2, layers=1)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.action.linear.weight[0, names().action.index("share")] = 40.0
        network.action.linear.bias[0] = -30.0
        network.meet[0].weight[0, 0] = network.meet[2].weight[0, 0] = network.heads.weight[0, 0] = 1.0
        network.heads.bias[0] = -5.0
    found = collected(10, CONFIG, 4, network)
    (guided,) = found.tried[1:2]
    observation = found.seen[guided.seen].observation
    assert legal_actions(observation, found.config)[guided.action].share == 1.0
    with pytest.raises(ConfigError, match="There are no weights"):
        collect(tmp_path, range(1), CONFIG, episodes=1, workers=1, guide=tmp_path / "missing.safetensors")


def test_a_second_graft_is_told_beside_the_run_with_the_first_alone(record):
    last = record.tried[-1]
    first = record.tried[last.without]
    assert record.seen[last.seen].observation.rounds_done == 1
    assert record.saved_without(last) == first.saved
    assert record.saved_without(first) == 0


def test_collecting_again_gives_the_same(record, monkeypatch):
    monkeypatch.setattr(collecting, "draw", short)
    assert timeless(collected(10, CONFIG, 4)) == timeless(record)


def timeless(record):
    return msgspec.structs.replace(record, seconds=0.0)


def test_records_come_back_as_they_were(record, tmp_path):
    """But that tuples may come back as lists; what is learned from them is the same."""
    write(record, tmp_path)
    (again,) = read([tmp_path])
    assert msgspec.msgpack.encode(again) == msgspec.msgpack.encode(record)
    for one, other in zip(examples([again])[1:], examples([record])[1:], strict=True):
        assert torch.equal(one, other)
    for one, other in zip(examples([again]).seen, examples([record]).seen, strict=True):
        assert torch.equal(one, other)


def test_examples_are_made_of_records(record, tmp_path):
    write(record, tmp_path)
    found = examples(read([tmp_path]))
    assert len(found.saved) == len(record.tried)
    assert len(found.task) == len(record.seen)
    assert found.action.tolist() == [one.action for one in record.tried]


def test_where_nothing_can_be_tried_the_record_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(collecting, "draw", idle)
    record = collected(7, CONFIG, 4)
    assert (record.seen, record.tried, record.heuristic) == ([], [], None)
    with pytest.raises(DataError, match="Collect more"):
        headroom([record])
    with pytest.raises(DataError, match="Collect more"):
        examples([record])


def test_what_is_there_is_left_alone(tmp_path):
    path_of(tmp_path, 7).write_bytes(b"as it was")
    told = []
    assert collect(tmp_path, [7], CONFIG, episodes=1, workers=1, tell=told.append) == 0
    assert path_of(tmp_path, 7).read_bytes() == b"as it was"
    assert told == []


def test_records_are_collected_in_processes(tmp_path):
    """Seed 8 draws a task in which nothing can be tried, which takes no time."""
    told = []
    assert collect(tmp_path, [8], CONFIG, episodes=1, workers=2, tell=told.append) == 1
    (record,) = read([tmp_path])
    assert (record.seed, record.tried) == (8, [])
    assert "nothing to try" in told[0]


@pytest.mark.parametrize("damage", [lambda data: data[:-5], lambda data: b"no record", lambda data: b""])
def test_a_damaged_record_is_one_error_that_names_its_file(record, tmp_path, damage):
    write(record, tmp_path)
    path = path_of(tmp_path, 10)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=f"{path.name} is no record.*collect it once more"):
        read([tmp_path])


def test_an_action_that_is_none_now_is_an_error(record):
    wrong = msgspec.structs.replace(record.tried[0], action=10_000)
    with pytest.raises(DataError, match=r"seed 10.*Collect anew"):
        examples([msgspec.structs.replace(record, tried=[wrong])])


def test_without_records_the_error_says_how_to_get_some(tmp_path):
    with pytest.raises(DataError, match="esper tamiyo collect"):
        read([tmp_path])


@pytest.mark.parametrize(("episodes", "workers"), [(0, 1), (1, 0)])
def test_there_is_something_to_collect(tmp_path, episodes, workers):
    with pytest.raises(ConfigError, match="At least one"):
        collect(tmp_path, [1], CONFIG, episodes=episodes, workers=workers)


def test_what_could_be_won_is_told(record):
    told = headroom([record])
    assert told["tasks"] == 1
    assert told["best"] == max(0.0, *(one.saved for one in record.tried))
    assert told["heuristic"] == record.heuristic[0]
