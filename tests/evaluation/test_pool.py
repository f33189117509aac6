"""Many jobs in a few processes."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from esper.evaluation.pool import ATTEMPTS, Heard, each


def work(job, tell):
    """Does what its name says, with one argument."""
    name, argument = job
    if name == "double":
        return 2 * argument
    if name == "raise":
        raise ValueError(argument)
    if name == "ask":
        return [tell(one) for one in argument]
    if name == "killed once" and not os.path.exists(argument):
        Path(argument).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "killed":
        with open(argument, "a") as file:
            file.write("x")
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "sleep":
        Path(argument).write_text(str(os.getpid()))
        time.sleep(600)
    return os.getpid()


def heard_of(jobs, workers=2, answer=lambda heard: None):
    with closing(each(work, jobs, workers, answer)) as hearing:
        return {heard.key: heard for heard in hearing if heard.kind != "told"}


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"


def until(holds, seconds=120.0):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_job_that_fails_or_is_killed_loses_no_other(tmp_path):
    jobs = {
        "bad": ("raise", "it is bad"),
        "killed once": ("killed once", str(tmp_path / "once")),
        "killed": ("killed", str(tmp_path / "always")),
        "good": ("double", 4),
    }
    found = heard_of(jobs)
    assert found.keys() == jobs.keys()
    assert found["good"] == Heard("good", "done", 8)
    assert found["bad"] == Heard("bad", "failed", "ValueError: it is bad")
    assert found["killed once"].kind == "done"
    assert found["killed"].value == f"its process was killed by SIGKILL in each of {ATTEMPTS} attempts"
    assert (tmp_path / "always").read_text() == "x" * ATTEMPTS
    assert multiprocessing.active_children() == []


def test_what_a_job_tells_is_answered_and_a_process_lives_on():
    found = heard_of({"a": ("ask", [1, 2]), "b": ("pid", 0), "c": ("pid", 0)}, 1, lambda heard: 10 * heard.value)
    assert found["a"].value == [10, 20]
    assert found["b"].value == found["c"].value != os.getpid()


def test_who_leaves_ends_the_processes(tmp_path):
    hearing = each(work, {"first": ("double", 1), "long": ("sleep", str(tmp_path / "pid"))}, 2)
    assert next(hearing).key == "first"
    hearing.close()
    assert multiprocessing.active_children() == []


@pytest.mark.long
def test_processes_end_where_those_who_began_them_are_killed(tmp_path):
    pid = tmp_path / "pid"
    script = f"""
from esper.evaluation.pool import each
from tests.evaluation.test_pool import work
if __name__ == "__main__":
    list(each(work, {{"long": ("sleep", {str(pid)!r})}}, 1))
"""
    (tmp_path / "script.py").write_text(script)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    parent = subprocess.Popen([sys.executable, str(tmp_path / "script.py")], env=environment)
    until(lambda: pid.exists() and pid.read_text())
    parent.kill()
    parent.wait()
    until(lambda: gone(int(pid.read_text())))
