import json
import random

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from benchmarks.rollout_kit.legacy_models import make_future
from esper.contracts.errors import CheckpointError, ConfigError
from esper.legacy.files import load, read, save
from tests.legacy.models import bare, batch, chain, grown, old_layer


@pytest.fixture
def saved(tmp_path):
    model = chain()
    grown(model[0])
    grown(model[2], steps=2)
    save(model, tmp_path / "model.safetensors")
    return model, tmp_path / "model.safetensors"


def test_a_model_comes_back_from_its_file_to_the_bit(saved):
    model, path = saved
    other = chain()
    load(other, path)
    assert torch.equal(other(batch()), model(batch()))
    assert [layer.to_dict() for layer in (other[0], other[2])] == [layer.to_dict() for layer in (model[0], model[2])]


def test_one_layer_alone_has_a_file_too(tmp_path):
    layer, other = grown(old_layer(nn.Linear(6, 8))), old_layer(nn.Linear(6, 8))
    save(layer, tmp_path / "layer")
    load(other, tmp_path / "layer")
    assert torch.equal(other(batch()), layer(batch()))


def test_tied_weights_are_no_obstacle(tmp_path):
    model, other = chain(), chain()
    for one in (model, other):
        one[4].weight = nn.Parameter(torch.zeros(3, 8))
        one.append(nn.Linear(3, 3))
        one.append(one[5])
    save(model, tmp_path / "model")
    load(other, tmp_path / "model")
    assert torch.equal(other(batch()), model(batch()))


@pytest.mark.parametrize("change", ["weights", "widths", "layers"])
def test_a_file_of_another_model_is_refused_and_nothing_changes(saved, change):
    other = chain()
    if change == "weights":
        other[4] = nn.Linear(8, 4)
    elif change == "widths":
        other[2], other[4] = old_layer(nn.Linear(8, 9)), nn.Linear(9, 3)
    else:
        other[2] = nn.Linear(8, 8)
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(CheckpointError, match="is of another model"):
        load(other, saved[1])
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())


def test_a_model_without_old_layers_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="has no LegacyKasminaLayer"):
        save(chain(bare), tmp_path / "model")


def test_a_file_that_is_there_stays_where_a_new_one_cannot_be_written(saved, monkeypatch):
    model, path = saved
    before = path.read_bytes()

    def full(*arguments):
        raise OSError("No space left on device")

    monkeypatch.setattr("esper.legacy.files.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save(model, path)
    assert path.read_bytes() == before
    assert [*path.parent.iterdir()] == [path]


@pytest.mark.parametrize("kind", ["missing", "a folder", "no safetensors", "other safetensors"])
def test_what_is_no_such_file_is_refused_by_what_to_name(tmp_path, kind):
    path = tmp_path / "file"
    if kind == "a folder":
        path.mkdir()
    elif kind == "no safetensors":
        path.write_bytes(b"nothing of the kind")
    elif kind == "other safetensors":
        save_file({"w": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match=r"Name a file of esper\.legacy\.files\.save"):
        read(path)


def test_one_byte_that_differs_is_told(saved):
    path = saved[1]
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match="is damaged"):
        read(path)


def test_a_later_version_is_told_from_damage(saved):
    make_future(saved[1], random.Random(0))
    with pytest.raises(CheckpointError, match=r"has version .*Update Esper"):
        read(saved[1])


def test_the_header_is_plain_json(saved):
    raw = saved[1].read_bytes()
    metadata = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]
    header = json.loads(metadata["header"])
    assert (header["version"], sorted(header["layers"])) == (1, ["0", "2"])
    assert header["layers"]["2"]["alpha"] == 0.5
