"""With a directory, captured states lie on disk: nothing but memory is different, and of that there is a bound."""

import functools
import gc
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import esper
from esper.checkpoint import store
from esper.checkpoint.packed import Packed
from esper.contracts.commands import Command
from esper.contracts.errors import CheckpointError
from esper.contracts.lifecycle import State
from tests.few import few
from tests.runtime import toy
from tests.runtime.toy import Recipe, Script, Trial, growing, timeless


def noisy_host():
    return toy.host(dropout=0.3, batch_norm=True)


def rounds(**session: Any) -> Trial:
    """Two rounds, the second on top of what the first has grown."""
    config = growing(layers=["", "4"], round_fraction=0.2, keep_looks=(0.95,))
    return Recipe(config, model=noisy_host, policy=Script({1: ["", "4"], 6: ["4"]}, hidden=3)).build(**session).train()


def live(**session: Any) -> Trial:
    """A live trial whose twin is trained."""
    config = growing(round_fraction=0.2, incubation_fraction=0.05, keep_looks=(0.95,))
    return Recipe(config, model=noisy_host, policy=Script({1: [""]}, trial="live")).build(**session).train()


def rolled_back(**session: Any) -> Trial:
    """Back to the last good state, twice, with a graft that was adopted meanwhile."""
    config = growing(keep_looks=(0.95,))
    trial = Recipe(config, model=noisy_host).build(**session).train(8)
    assert trial.session.rollback().accepted
    trial.train(1)
    assert trial.session.rollback().accepted
    return trial.train(3)


def fallen_back(**session: Any) -> Trial:
    """Back to before a graft, because the run has not recovered from its removal."""
    trial = Recipe(growing(keep_looks=(0.95,), patience_after_cull=1), model=noisy_host).build(**session).train(7)
    trial.recovery.fallbacks[0] |= {"select_loss": 0.0, "select_metric": 2.0}
    assert trial.session.submit(Command("", "all", State.CULLED, "by hand")).accepted
    return trial.train(5)


def rechunked(**session: Any) -> Trial:
    """A place is dealt anew while captured states wait."""
    config = growing(layers={"": 1, "4": 3}, keep_looks=(0.95,))
    trial = Recipe(config, model=noisy_host).build(**session).train(3)
    assert trial.rounds.current is not None
    trial.session.rechunk("4", 2)
    trial.train(4)
    assert trial.session.rollback().accepted
    return trial.train(5)


RUNS: dict[str, tuple[Callable[..., Trial], str]] = {
    "two rounds": (rounds, "round_ended"),
    "a live trial": (live, "trial_ended"),
    "rollbacks": (rolled_back, "rollback"),
    "falling back": (fallen_back, "recovery"),
    "other seeds meanwhile": (rechunked, "rechunked"),
}


@pytest.mark.parametrize("name", few(RUNS, ["a live trial", "rollbacks"]))
def test_a_run_on_disk_is_the_run_in_memory_to_the_byte(name, tmp_path):
    run, event = RUNS[name]
    on_disk, in_memory = run(directory=tmp_path), run()
    for trial in (on_disk, in_memory):
        trial.session.finish()
        assert trial.events(event)
    assert on_disk.digest() == in_memory.digest()
    assert timeless(on_disk.session.events) == timeless(in_memory.session.events)


def captured(trial: Trial) -> list[Any]:
    """All captured bodies of a trial."""
    now = trial.rounds.current
    found = [entry["body"] for entry in [*trial.recovery.good, *trial.recovery.fallbacks]]
    if now is not None:
        found += [*now.marks.values(), *(one["body"] for one in (now.start, now.run, now.best) if one is not None)]
    return found


def in_the_second_arm(**session: Any) -> Trial:
    """A trial that was interrupted in the second arm of its second round, after the first has passed."""
    steps: list[str] = []

    def loss(model, batch):
        if trial.run.arm == "round2/0/bottleneck_mlp":
            steps.append(trial.run.arm)
            if len(steps) == 3:
                raise KeyboardInterrupt
        return toy.loss(model, batch)

    config = growing(layers=["", "4", "0"], round_fraction=0.2, keep_looks=(0.95,), gate_z=1e-9)
    recipe = Recipe(config, model=noisy_host, policy=Script({1: [""], 6: ["4", "0"]}, hidden=3))
    trial = recipe.build(loss=loss, **session)
    with pytest.raises(KeyboardInterrupt):
        trial.train()
    return trial


def test_all_captured_states_are_on_disk(tmp_path):
    kinds = {type(body) for body in captured(in_the_second_arm(directory=tmp_path))}
    assert kinds == {Packed}


def test_without_a_directory_they_are_in_memory():
    kinds = {type(body) for body in captured(in_the_second_arm())}
    assert kinds == {dict}


@pytest.mark.parametrize(
    "on_disk",
    [(True, False), *(pytest.param(one, marks=pytest.mark.long) for one in ((False, True), (True, True)))],
    ids=str,
)
def test_a_run_resumes_to_the_byte_from_disk_and_from_memory(on_disk, tmp_path):
    """Wherever the states lay when it was saved, and lie afterwards."""
    before, after = ({"directory": tmp_path / name} if on_disk[part] else {} for part, name in enumerate("ab"))
    whole = in_the_second_arm()
    whole.session.step(next(toy.batches(9)))
    cut = in_the_second_arm(**before)
    cut.session.save(tmp_path / "saved")
    assert any((tmp_path / "saved").glob("*/apart-*")) == on_disk[0]
    recipe = Recipe(cut.run.config, model=noisy_host, policy=Script({}))
    resumed = recipe.build(**after)
    resumed.session.load(tmp_path / "saved")
    resumed.session.step(next(toy.batches(9)))
    assert resumed.digest() == whole.digest()
    assert [event["adopted"] for event in resumed.events("round_ended")] == [
        event["adopted"] for event in whole.events("round_ended")
    ]


def open_files() -> set[str]:
    """Files without a name that this process holds."""
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return {os.readlink(link) for link in links if os.path.islink(link) and "(deleted)" in os.readlink(link)}


def test_states_that_are_not_needed_any_more_are_gone_from_disk(tmp_path):
    gc.collect()
    before = open_files()
    trial = Recipe(growing(), model=noisy_host).build(directory=tmp_path)
    held = []
    for _ in range(trial.epochs):
        trial.train(1)
        held.append(len(open_files() - before))
        assert held[-1] == len({id(body) for body in captured(trial)})
    assert max(held) >= 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audit.jsonl", "checkpoints", "metrics.jsonl"]
    del trial
    gc.collect()
    assert open_files() == before


def spoil(body: Packed) -> None:
    body._file.seek(0)
    byte = body._file.read(1)
    body._file.seek(0)
    body._file.write(bytes([byte[0] ^ 1]))
    body._file.flush()


def test_a_damaged_state_is_not_gone_back_to(tmp_path):
    trial = Recipe(growing(), model=noisy_host).build(directory=tmp_path).train(8)
    before = trial.digest()
    spoil(trial.recovery.newest["body"])
    with pytest.raises(CheckpointError, match=r"put on disk is damaged: .* Go on from the last checkpoint"):
        trial.session.rollback()
    assert trial.digest() == before


def test_an_arm_does_not_begin_at_a_damaged_state(tmp_path):
    trial = Recipe(growing(), model=noisy_host).build(directory=tmp_path)
    trial.train_until(lambda trial: trial.rounds.current is not None)
    spoil(trial.rounds.current.start["body"])
    with (
        pytest.warns(RuntimeWarning, match="No checkpoint was written at step 20: .*does not match its digest"),
        pytest.raises(CheckpointError, match="is damaged"),
    ):
        trial.train()
    assert store.read(tmp_path / "checkpoints")["clock"]["step"] == 10  # the one before is not written over
    (end,) = trial.events("round_ended")
    assert end["reason"].startswith("an arm failed: CheckpointError(")
    trial.train(2)


def test_a_damaged_part_of_a_checkpoint_is_refused(tmp_path):
    in_the_second_arm(directory=tmp_path)
    part = max((tmp_path / "checkpoints").glob("*/apart-1"))
    raw = part.read_bytes()
    part.write_bytes(raw[:-1])
    with pytest.raises(CheckpointError, match=re.escape(f"{part.parent} is damaged")):
        store.read(part.parent)


class TestSizeOfCheckpoints:
    """Of a run that keeps two good states, in units of what training has made: parameters, and AdamW's two numbers."""

    @staticmethod
    def written(directory: Path, *, links: bool = True) -> list[tuple[float, float]]:
        """For every boundary: what its checkpoint has written, and what lies on the disk then."""
        config = growing(layers=["2"], gate_z=1e9, telemetry_rows=0)
        trial = Recipe(config, model=wide_host, policy=Script({6: ["2"]}, hidden=1)).build(directory=directory)
        unit = 3 * sum(parameter.numel() * parameter.element_size() for parameter in trial.model.parameters())
        sizes, linked, link = [], set(), store.link

        def watched(existing: Path, path: Path) -> bool:
            if is_done := links and link(existing, path):
                linked.add(path.name)
            return is_done

        for _ in range(10):
            linked.clear()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(store, "link", watched)
                trial.train(1)
            newest = max((directory / "checkpoints").iterdir())
            new = sum(path.stat().st_size for path in newest.iterdir() if path.name not in linked)
            files = {path.stat().st_ino: path.stat().st_size for path in newest.parent.rglob("*") if path.is_file()}
            sizes.append((new / unit, sum(files.values()) / unit))
        assert len(trial.recovery.good) == 2
        return sizes

    def test_each_writes_the_training_state_the_good_one_before_and_the_start_of_a_round_twice(self, tmp_path):
        """Two generations share no byte: what stays is written for both, and linked from then on."""
        sizes = self.written(tmp_path)
        assert max(new for new, _ in sizes[:5]) < 2.1
        assert sum(new > 2.1 for new, _ in sizes) == 2
        assert max(new for new, _ in sizes) < 3.1
        assert max(whole for _, whole in sizes[:5]) < 4.1

    def test_without_links_each_writes_the_start_of_a_round_again(self, tmp_path):
        """The control."""
        assert sum(new > 2.1 for new, _ in self.written(tmp_path, links=False)) == 4


def wide_host() -> nn.Sequential:
    """Its parameters take far more memory than what passes through it."""
    torch.manual_seed(0)
    host = nn.Sequential(nn.Linear(toy.FEATURES, 512), nn.ReLU(), nn.Linear(512, 1024), nn.Linear(1024, toy.CLASSES))
    torch.manual_seed(1)
    return host


def few_held_out(model: nn.Module) -> esper.Evaluation:
    whole = toy.DATA.held_x[:60], toy.DATA.held_y[:60]
    return esper.Evaluation(losses=nn.functional.cross_entropy(model(whole[0]), whole[1], reduction="none"))


def peak(directory: Path | None, *, grows: bool = True, **settings: Any) -> float:
    """Most memory that torch held at once, in training states, in a run with two rounds of arms in turn."""
    layers = ["", "2", "0:1"]
    config = growing(layers=layers, round_fraction=0.2, gate_z=1e-9, keep_looks=(0.95,), telemetry_rows=0, **settings)
    policy = Script({1: layers, 5: ["0:1"]} if grows else {}, hidden=1)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        recipe = Recipe(config if grows else growing(max_rounds=0), model=wide_host, policy=policy)
        trial = recipe.build(directory=directory, evaluate=few_held_out).train(9)
    assert len(trial.events("round_ended")) == 2 * grows
    assert any(event["passed"] for event in trial.events("arm_ended")) == grows
    parameters = sum(parameter.numel() * parameter.element_size() for parameter in trial.model.parameters())
    held, most = 0, 0
    changes = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    for change in sorted(changes, key=lambda event: event.start_ns()):
        held += change.nbytes()
        most = max(most, held)
    return most / (3 * parameters)  # AdamW has two numbers per parameter


@functools.cache
def bare_peak() -> float:
    """Of a run that never grows."""
    return peak(None, grows=False)


@pytest.mark.usefixtures("offsets_pass")
@pytest.mark.filterwarnings("ignore:.*Profiler clears events at the end of each cycle")  # there is but one
class TestBound:
    """Beside what a run needs that never grows. The profiler sees every allocation, however short."""

    @pytest.mark.parametrize("compare", few(["steps", "flops"], ["flops"]))
    def test_on_disk_there_is_at_most_one_more_copy_of_the_training_state(self, compare, tmp_path):
        """With ``"flops"`` means of the run's weights are kept at the marks of its window."""
        assert peak(tmp_path, compare=compare) < bare_peak() + 1.1

    def test_in_memory_there_are_many(self):
        """The control."""
        assert peak(None) > bare_peak() + 4
