"""Arms side by side, each in a process of its own, do what they do in turn; whatever happens to one is told."""

import contextlib
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import esper
from esper.contracts.errors import ArmError
from esper.kasmina.host.wrapping import host_state_dict
from esper.runtime.trying.side_by_side import STOPS, check_can_fork
from tests.few import few
from tests.runtime import toy
from tests.runtime.toy import Recipe, Script, Trial, growing, timeless

ROOT = Path(__file__).parents[2]
LAYERS = ["", "4", "0:4"]


def left_in(folder: Path) -> list[str]:
    """Names of all files but torch's own."""
    return [path.name for path in folder.iterdir() if not path.name.startswith("torchinductor")]


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path_factory, monkeypatch) -> Iterator[None]:
    """No process, no zombie, no file; and one thread, as the arms have."""
    before, threads = tmp_path_factory.mktemp("temporary"), torch.get_num_threads()
    monkeypatch.setattr(tempfile, "tempdir", str(before))
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    assert multiprocessing.active_children() == []
    with contextlib.suppress(ChildProcessError):  # raised where there is no child at all; other tests may have some
        assert os.waitpid(-1, os.WNOHANG)[0] == 0, "a process that has ended was left behind"
    assert left_in(before) == []


def noisy_host():
    return toy.host(dropout=0.3, batch_norm=True)


def recipe(arms: str = "side_by_side", **settings: Any) -> Recipe:
    """Three candidates at the end of the first epoch."""
    layers = settings.pop("layers", LAYERS)
    config = growing(layers=layers, arms=arms, **settings)
    return Recipe(config, model=noisy_host, policy=Script({1: layers}))


RECIPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "as many steps": ({}, {}),
    "as many FLOPs": ({"compare": "flops"}, {}),
    "accumulated gradients": ({}, {"accumulate": 3, "clip_grad_norm": 1.0}),
    "training in isolation": ({"objective": "pseudo_residual", "incubation_fraction": 0.1}, {}),
    "all refused": ({"gate_z": 1e8}, {}),
}


class TestTheSameAsInTurn:
    """To the byte, and line by line, but for the time of day."""

    @staticmethod
    def grown(recipe: Recipe, **session: Any) -> tuple[Trial, list[dict[str, Any]]]:
        told: list[dict[str, Any]] = []
        trial = recipe.build(on_event=told.append, **session).train()
        trial.session.finish()
        return trial, timeless(told)

    @staticmethod
    def assert_equal(one: Trial, other: Trial) -> None:
        theirs = dict(other.model.named_parameters())
        assert theirs.keys() == dict(one.model.named_parameters()).keys()
        assert all(parameter.equal(theirs[name]) for name, parameter in one.model.named_parameters())
        assert timeless(one.session.events) == timeless(other.session.events)
        assert one.run.books.to_dict() == other.run.books.to_dict()

    @pytest.mark.parametrize("name", few(RECIPES, ["as many FLOPs", "accumulated gradients"]))
    def test_bytes_logs_and_books(self, name):
        settings, session = RECIPES[name]
        (one, told), (other, told_in_turn) = (
            self.grown(recipe(arms, **settings), **session) for arms in ("side_by_side", "in_turn")
        )
        self.assert_equal(one, other)
        assert told == told_in_turn
        assert len(one.events("arm_ended")) == 3

    def test_a_second_round_on_top_of_what_the_first_one_grew(self):
        def twice(arms: str) -> Recipe:
            config = growing(layers=["", "4"], round_fraction=0.2, keep_looks=(0.95,), arms=arms)
            return Recipe(config, model=noisy_host, policy=Script({1: ["", "4"], 6: ["4"]}, hidden=3))

        (one, _), (other, _) = (self.grown(twice(arms)) for arms in ("side_by_side", "in_turn"))
        assert len(one.events("round_begun")) == 2
        self.assert_equal(one, other)

    def test_with_all_on_disk(self, tmp_path):
        one, _ = self.grown(recipe(), directory=tmp_path / "one")
        other, _ = self.grown(recipe("in_turn"))
        self.assert_equal(one, other)

    def test_the_same_one_is_the_first(self):
        """All are trained, and what is adopted is what would be in turn."""
        (one, _), (other, _) = (self.grown(recipe(arms, choice="first")) for arms in ("side_by_side", "in_turn"))
        assert [len(trial.events("arm_ended")) for trial in (one, other)] == [3, 1]
        theirs = dict(other.model.named_parameters())
        assert theirs.keys() == dict(one.model.named_parameters()).keys()
        assert all(parameter.equal(theirs[name]) for name, parameter in one.model.named_parameters())

    def test_places_that_evaluate_does_not_call_are_told_once(self):
        class Twofold(nn.Module):
            """Has a part that only training calls."""

            def __init__(self) -> None:
                super().__init__()
                self.body, self.aside = toy.host(), nn.Linear(toy.FEATURES, toy.CLASSES)

            def forward(self, x):
                return self.body(x) + (self.aside(x) if self.training else 0.0)

        def twofold(arms: str) -> Recipe:
            layers = ["aside", "body", "body.2"]
            config = growing(layers=layers, arms=arms)
            return Recipe(config, model=Twofold, policy=Script({1: layers}))

        (one, _), (other, _) = (self.grown(twofold(arms)) for arms in ("side_by_side", "in_turn"))
        assert "Never called in evaluate" in one.events("note")[-1]["text"]
        self.assert_equal(one, other)

    def test_the_bytes_would_differ_if_arms_were_taken_in_by_chance(self, monkeypatch):
        """The control: what an arm had spent before others is not what it has spent after them."""
        monkeypatch.setattr("esper.runtime.trying.accounts.after_those_before", lambda event, *_: event)
        (one, _), (other, _) = (self.grown(recipe(arms)) for arms in ("side_by_side", "in_turn"))
        theirs = dict(other.model.named_parameters())
        assert theirs.keys() == dict(one.model.named_parameters()).keys()
        assert all(parameter.equal(theirs[name]) for name, parameter in one.model.named_parameters())
        assert timeless(one.session.events) != timeless(other.session.events)


def ended(trial: Trial) -> bool:
    return bool(trial.events("round_ended"))


class TestProcesses:
    """As many at once as there are cores."""

    @staticmethod
    def order(monkeypatch, tmp_path, cores: set[int], *, meet: bool) -> list[str]:
        """Process ids of the arms, step by step; where they ``meet``, no arm goes on before there is another."""
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: cores)
        run, file = os.getpid(), tmp_path / "steps"

        def loss(model, batch):
            if os.getpid() != run:
                with file.open("a") as steps:
                    steps.write(f"{os.getpid()}\n")
                while meet and len(set(file.read_text().split())) < 2:
                    time.sleep(0.001)
            return toy.loss(model, batch)

        recipe(layers=["", "4"]).build(loss=loss).train_until(ended)
        return file.read_text().split()

    @staticmethod
    def changes(steps: list[str]) -> int:
        return sum(one != other for one, other in itertools.pairwise(steps))

    def test_one_after_the_other_on_one_core(self, monkeypatch, tmp_path):
        steps = self.order(monkeypatch, tmp_path, {0}, meet=False)
        assert len(set(steps)) == 2
        assert self.changes(steps) == 1

    def test_at_the_same_time_on_two(self, monkeypatch, tmp_path):
        """Each waits for the other at its first step, which on one core would last for ever."""
        steps = self.order(monkeypatch, tmp_path, {0, 1}, meet=True)
        assert len(set(steps)) == 2
        assert self.changes(steps) > 1

    def test_the_position_tells_how_far_the_arm_is_that_is_waited_for(self, tmp_path):
        """Seen from another process: the run itself waits."""
        seen, run = tmp_path / "seen", os.getpid()
        trial: list[Trial] = []

        def listen(event):
            if event["event"] == "arm_ended":
                with seen.open("a") as file:
                    position = trial[0].session.position
                    file.write(f"{position.arm} {position.arm_step} {position.arm_steps} {os.getpid() == run}\n")

        trial.append(recipe().build(on_event=listen))
        trial[0].train_until(ended)
        names = ["model", "4", "0:4"]
        assert seen.read_text().splitlines() == [f"round1/{name}/bottleneck_mlp 40 40 True" for name in names]
        assert trial[0].session.position.arm is None


def run_of(mode: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """A run in a process of its own."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "TMPDIR": str(directory)}
    environment.pop("OMP_NUM_THREADS", None)
    command = [sys.executable, "-m", "tests.runtime.forking_run", mode]
    return subprocess.run(command, cwd=directory, env=environment, stdout=subprocess.PIPE, text=True, check=False)


class TestThreads:
    """A process that was forked off has none of torch's threads."""

    def test_arms_of_a_run_that_has_used_several_threads_train(self, tmp_path):
        run = run_of("threads", tmp_path)
        assert (run.returncode, run.stdout) == (0, "2\n")

    def test_untold_they_would_wait_for_ever(self, tmp_path):
        """The control."""
        assert "was ended by SIGALRM" in run_of("untold", tmp_path).stdout


def in_arm(act: Any, at: int = 5) -> Any:
    """A loss that does something at the ``at``-th step of every arm."""
    run, steps = os.getpid(), []

    def loss(model, batch):
        if os.getpid() != run:
            steps.append(1)
            if len(steps) == at:
                act()
        return toy.loss(model, batch)

    return loss


def fail() -> None:
    raise ArithmeticError("no such number")


class TestFailures:
    """End the round as an error of an arm in turn does, and leave the run as it was."""

    @staticmethod
    def assert_left_as_it_was(trial: Trial, what: str) -> None:
        (end,) = trial.events("round_ended")
        assert end["adopted"] is None
        assert end["reason"].startswith("an arm failed: ArmError(")
        assert what in end["reason"]
        assert trial.rounds.current is None
        assert {report.outcome for report in trial.session.field_reports} == {"CANCELLED"}
        never = Recipe(growing(), model=noisy_host, policy=Script({})).build()
        never.train_until(lambda other: other.session.step_count == trial.session.step_count)
        for name, value in host_state_dict(never.model).items():
            assert torch.equal(host_state_dict(trial.model)[name], value), name
        trial.session.after_epoch()
        assert trial.train(1).session.epoch == 6

    def test_an_arm_that_raises_is_named_with_its_error(self):
        trial = recipe().build(loss=in_arm(fail))
        with pytest.raises(ArmError, match=r"raised ArithmeticError\('no such number'\)") as raised:
            trial.train()
        assert "in fail" in raised.value.__notes__[0]
        self.assert_left_as_it_was(trial, "no such number")

    def test_an_arm_that_is_killed_is_named(self):
        trial = recipe().build(loss=in_arm(lambda: os.kill(os.getpid(), signal.SIGKILL)))
        with pytest.raises(ArmError, match=r"arm round1/.* was ended by SIGKILL.* use arms='in_turn'"):
            trial.train()
        self.assert_left_as_it_was(trial, "SIGKILL")

    def test_an_arm_that_leaves_is_named(self):
        trial = recipe().build(loss=in_arm(lambda: os._exit(3)))
        with pytest.raises(ArmError, match="ended by itself with exit code 3"):
            trial.train()
        self.assert_left_as_it_was(trial, "exit code 3")

    def test_arms_of_a_run_that_is_killed_end_too(self, tmp_path):
        run = run_of("killed", tmp_path)
        assert run.returncode == -signal.SIGKILL
        arms = {int(number) for number in (tmp_path / "arms").read_text().split()}
        assert len(arms) == 2
        while any(is_alive(number) for number in arms):
            time.sleep(0.01)
        assert left_in(tmp_path) == ["arms"]


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{process}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


class TestInterruptions:
    """Leave the round to be taken up again."""

    @pytest.fixture(autouse=True)
    def ctrl_c_as_in_a_terminal(self) -> Iterator[None]:
        """What is started in the background ignores it from the beginning."""
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
        signal.signal(signal.SIGINT, before)

    def test_ctrl_c_ends_the_arms_and_the_next_step_begins_them_again(self, tmp_path):
        expected = recipe("in_turn").build().train()
        run, asked = os.getpid(), tmp_path / "asked"

        def ask_once() -> None:
            if not asked.exists():
                asked.touch()
                os.kill(run, signal.SIGINT)
                signal.pause()

        trial = recipe().build(loss=in_arm(ask_once))
        interrupted = 0
        for epoch in range(trial.epochs):
            for batch in toy.batches(epoch):
                try:
                    trial.session.step(batch)
                except KeyboardInterrupt:
                    interrupted += 1
                    assert trial.rounds.current is not None
                    assert multiprocessing.active_children() == []
            trial.session.after_epoch()
        assert interrupted == 1
        assert trial.digest() == expected.digest()
        assert trial.run.books.arm_flops > expected.run.books.arm_flops  # what was cut was paid for nevertheless

    def test_ctrl_c_within_a_fork_is_not_lost(self):
        """Another thread takes it, so that its handler runs in a hook of the fork, where nothing can be raised."""
        run, armed, forked = os.getpid(), [True], threading.Event()

        def ask() -> None:
            forked.wait()
            os.kill(run, signal.SIGINT)

        other = threading.Thread(target=ask)
        other.start()  # before the fork, so that it blocks no signal

        def after_fork() -> None:
            if armed and os.getpid() == run:
                armed.clear()
                forked.set()
                other.join()

        os.register_at_fork(after_in_parent=after_fork)  # stays, and does nothing any more
        trial = recipe().build()
        with pytest.raises(KeyboardInterrupt):
            trial.train()
        assert not armed
        assert trial.rounds.current is not None
        assert multiprocessing.active_children() == []
        assert {signal.getsignal(number) for number in STOPS} == {signal.default_int_handler, signal.SIG_DFL}

    def test_a_run_that_was_cut_after_its_first_arm_resumes_to_the_byte(self, tmp_path):
        class CutError(BaseException):
            pass

        def cut(event: dict[str, Any]) -> None:
            if event["event"] == "arm_ended" and event["lifecycle"] == 2:
                raise CutError

        whole = toy.train_from(recipe("in_turn").build(), toy.loader())
        source = toy.loader()
        trial = recipe().build(loader=source, directory=tmp_path, on_event=cut)
        with pytest.raises(CutError):
            toy.train_from(trial, source)
        source = toy.loader()
        resumed = recipe().build(loader=source)
        resumed.session.load(tmp_path / "checkpoints")
        toy.train_from(resumed, source)
        TestTheSameAsInTurn.assert_equal(resumed, whole)


class TestWhereItCannotWork:
    """It is said at once, with what to do."""

    def refusal(self) -> str:
        model = esper.wrap(toy.host(), growing(arms="side_by_side"))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with pytest.raises(esper.ConfigError, match="use arms='in_turn'") as refused:
            esper.Session(model, optimizer, loss=toy.loss, evaluate=toy.evaluate, planned_steps=10)
        assert not optimizer._optimizer_step_pre_hooks
        return str(refused.value)

    def test_where_a_gpu_is_visible(self, monkeypatch):
        """Torch then has threads of its own for backward passes, and refuses them in a process that was forked off."""
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
        assert "CUDA_VISIBLE_DEVICES=''" in self.refusal()

    def test_where_the_system_has_no_fork(self, monkeypatch):
        monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
        assert "cannot fork" in self.refusal()

    def test_in_a_daemon(self, monkeypatch):
        monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)
        assert "daemon" in self.refusal()

    def test_with_a_model_elsewhere(self):
        with pytest.raises(esper.ConfigError, match="the model is on meta"):
            check_can_fork(nn.Linear(2, 2, device="meta"))

    def test_on_the_cpu_it_works(self):
        check_can_fork(nn.Linear(2, 2))
