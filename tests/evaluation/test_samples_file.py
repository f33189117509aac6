"""Results of single test samples survive on disk."""

import torch
from safetensors.numpy import load_file

from esper.evaluation.row import PerSample
from esper.evaluation.samples_file import read_samples, write_samples


def _rows() -> dict[str, PerSample]:
    return {name: PerSample(torch.rand(7), torch.ones(7)) for name in ("grown", "host_on")}


def test_what_was_written_is_read(tmp_path):
    rows, path = _rows(), tmp_path / "samples.safetensors"
    write_samples(path, rows, torch.arange(7) // 2)
    read = read_samples(path)
    assert list(read) == ["grown", "host_on"]
    assert all(torch.equal(a, b) for name in rows for a, b in zip(rows[name], read[name], strict=True))
    assert load_file(path)["groups"].tolist() == [0, 0, 1, 1, 2, 2, 3]
    assert [one.name for one in tmp_path.iterdir()] == ["samples.safetensors"]


def test_rows_that_share_their_memory_can_be_written(tmp_path):
    """Where nothing grew, the static network is the host."""
    row = PerSample(torch.rand(7), torch.ones(7))
    write_samples(tmp_path / "samples.safetensors", {"host_on": row, "static": row}, None)
    assert torch.equal(read_samples(tmp_path / "samples.safetensors")["static"].losses, row.losses)


def test_no_file_holds_nothing(tmp_path):
    assert read_samples(tmp_path / "samples.safetensors") == {}
