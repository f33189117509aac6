"""Trainers of two processes, as torchrun starts them: each trains on its own share, and both grow the same."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from fsspec.implementations.local import LocalFileOpener
from torch import distributed

from tests.integrations import hugging_face_runs, lightning_runs
from tests.integrations.processes import Moment, lived_by
from tests.ranks.launch import ROOT, place

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="forks the processes"),
    pytest.mark.skipif(not distributed.is_available(), reason="torch was built without it"),
]

RUNS: dict[str, Any] = {
    "Hugging Face": (hugging_face_runs.beside_plain, hugging_face_runs.run, Moment(torch, "save", 3, rank=1)),
    "Lightning": (lightning_runs.beside_plain, lightning_runs.two, Moment(LocalFileOpener, "commit", 8, rank=1)),
}
"""With the middle of a checkpoint, when the second rank is killed."""

ALONE = {"Hugging Face": hugging_face_runs.run, "Lightning": lightning_runs.run}
"""Other numbers of processes have other numbers of steps."""

HELD_OUT = {"Hugging Face": 16, "Lightning": 299}
"""Samples that cannot be dealt out evenly in whole batches."""


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_grow_the_same_and_go_on_after_one_was_killed(name, tmp_path):
    beside_plain, run, saving = RUNS[name]
    first, second = lived_by(2, beside_plain, tmp_path / "whole")
    for one in (first, second):
        assert one["dormant"] == one["plain"]
    for what in ("bytes", "events", "flops", "samples"):
        assert first["grown"][what] == second["grown"][what], what
    assert first["grown"]["outcomes"] == ["FOSSILIZED"]
    assert first["grown"]["samples"] == HELD_OUT[name]
    assert first["grown"]["clock"] != second["grown"]["clock"]  # random streams of their own
    error, nothing = lived_by(2, run, tmp_path / "killed", saving)
    assert nothing is None
    assert error.startswith("RankError: Rank 0 of 2 does not hear from the others any more")
    assert lived_by(2, run, tmp_path / "killed") == [first["grown"], second["grown"]]
    (alone,) = lived_by(1, ALONE[name], tmp_path / "killed")
    assert alone.startswith("CheckpointError: ")


TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
LAUNCHED = {
    "torchrun, Hugging Face": (TORCHRUN, "hugging_face_runs.run"),
    "torchrun, Lightning": (TORCHRUN, "lightning_runs.two"),
    "Lightning itself": ([], "lightning_runs.two"),
}


@pytest.mark.long
def test_a_file_of_a_rank_that_is_missing_is_told(tmp_path):
    assert lived_by(2, lightning_runs.two, tmp_path / "run", Moment(torch.optim.AdamW, "step", 8))[0] is None
    (file,) = (tmp_path / "run" / "saved").glob("last.ckpt.rank1-*")
    file.unlink()
    _, second = lived_by(2, lightning_runs.two, tmp_path / "run")
    assert second.startswith("CheckpointError: ")
    assert f"{file} is missing" in second


@pytest.mark.long
@pytest.mark.parametrize("how", LAUNCHED)
def test_processes_that_a_launcher_starts_do_the_same(how, tmp_path):
    launcher, function = LAUNCHED[how]
    command = [sys.executable, "-m", *launcher, "tests.integrations.launched", function, str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, env=place(), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    first, second = (json.loads((tmp_path / f"launched-{rank}").read_text()) for rank in range(2))
    for what in ("bytes", "events", "flops", "outcomes"):
        assert first[what] == second[what], what
    assert first["outcomes"] == ["FOSSILIZED"]
