"""What checkpoints take is measured on a disk of one's own."""

import json

from benchmarks.checkpoints import __main__ as checkpoints

WAYS = {"plain_write", "write", "stall_in_background", "verification", "verified_read"}


def test_all_ways_are_measured(tmp_path, monkeypatch):
    line = ["checkpoints", "--gigabytes", "0.001", "--repeats", "2", "--folder", str(tmp_path)]
    monkeypatch.setattr("sys.argv", [*line, "--output", str(tmp_path / "found.json")])
    checkpoints.main()
    (size,) = json.loads((tmp_path / "found.json").read_text())["sizes"]
    assert size["seconds_per_gigabyte"].keys() == WAYS
    for name, (least, most) in size["least_and_most"].items():
        assert 0 < least <= size["seconds_per_gigabyte"][name] <= most
