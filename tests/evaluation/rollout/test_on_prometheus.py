"""Rollouts over a real Prometheus, which scrapes what runs show of their lines."""

import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from esper.cli.main import main
from esper.contracts.errors import ConfigError
from esper.evaluation.rollout.health import ERRORS, LOSS, STEP_TIME, units
from esper.evaluation.rollout.on_prometheus import RunsInPrometheus
from esper.evaluation.rollout.plan import Criteria
from esper.evaluation.rollout.rollout import Rollout
from esper.flags import set_flag
from esper.flags.edit import read
from esper.observability.metrics.fold import RunState
from esper.observability.metrics.prometheus import MetricsServer
from esper.observability.metrics.series import Sample, samples
from tests.brokers import free_port
from tests.evaluation.rollout.world import FLAG, WatchedStore, logs, terms
from tests.observability import directories
from tests.prometheus import Prometheus, eventually, prometheus

STEP_S = 4.0
LASTS_S = 14 * 25 * STEP_S


def lines(name: str, begun: float, *, is_on: bool = True, ends: bool = True) -> list[dict]:
    told = logs(name, is_on=is_on, begin=begun, step_s=STEP_S, ends=ends)
    audit, metrics = told["audit.jsonl"], told["metrics.jsonl"]
    return [*audit[:2], *metrics, *audit[2:]]


def altered(begun: float, kind: str, at: int = -1, **fields) -> list[dict]:
    """The lines of a run, the last of a kind changed, or another one."""
    told = lines("altered", begun)
    which = [line for line in told if line["event"] == kind][at]
    which.update(fields)
    return told


def scraped_runs(begun: float) -> dict[str, list[dict]]:
    back = [line | {"step": line["step"] - 200} for line in lines("back", begun)[-3:-1]]
    again = [directories.model(time=back[0]["time"])]
    rollback = {"event": "rollback", "time": begun + 900, "step": 225, "to_step": 150, "who": "session"}
    rollback |= {"reason": "emergency", "lifecycles": [], "select_loss": 0.3}
    return {
        "on": lines("on", begun),
        "off": lines("off", begun, is_on=False),
        "going on": lines("going on", begun, ends=False),
        "not finite": altered(begun, "epoch", at=3, train_loss=None),
        "fallen": [*lines("fallen", begun, ends=False)[:-2], *back],
        "resumed": [*lines("resumed", begun, ends=False)[:-2], *again, *back],
        "restarted": [*lines("restarted", begun, ends=False)[:-2], *back],
        "rolled back": [*lines("rolled back", begun, ends=False)[:-2], rollback, *back],
        "of the future": altered(begun, "finished", time=time.time() + 5000),
        "without a loss": [line for line in lines("without", begun) if line["event"] not in ("epoch", "vitals")],
        "of both": [*lines("of both", begun)[:-1], lines("of both", begun, is_on=False)[1]],
        "before": lines("before", begun - 5000),
        'quoted "\\ run': lines("quoted", begun),
    }


@pytest.fixture(scope="module")
def scraped(tmp_path_factory) -> Iterator[tuple[Prometheus, float]]:
    """Three scrapes of many runs at least, and when they began; the last exporter has lost its bus."""
    begun = time.time() - LASTS_S - 60
    told = scraped_runs(begun)
    runs = {name: RunState(name) for name in told}
    gone = [RunState("hidden"), RunState("hidden end")]
    for run in gone:
        for line in lines(run.run, begun, ends=run.run != "hidden"):
            run.hear(line)
    exporter = MetricsServer(lambda: samples(list(runs.values())), 0)
    lost = MetricsServer(lambda: [*samples(gone), Sample("esper_exporter_bus_up", (), 0.0)], 0)
    folder = tmp_path_factory.mktemp("scraped")
    with prometheus(folder, {"exporter": exporter.port, "lost": lost.port}) as server:
        for part in range(3):
            if part == 2:  # a new process knows what the session keeps, and no line that tells of its begin
                runs["restarted"] = RunState("restarted")
                for line in [line for line in told["restarted"][:14] if line["event"] != "vitals"]:
                    runs["restarted"].hear(line)
            for name, run in runs.items():
                first = -2 if (name, part) == ("restarted", 2) else 10 * part
                for line in told[name][first : 10 * part + 10 if part < 2 else None]:
                    run.hear(line)
            done = runs["on"].step
            assert eventually(lambda done=done: server.value('esper_step{run="on"}') == done, 20)
        assert eventually(lambda: server.value('esper_run_finished{run="hidden end"}') == 1, 20)
        yield server, begun
    exporter.close()
    lost.close()


@pytest.fixture(scope="module")
def found(scraped):
    server, begun = scraped
    return {run.run: run for run in RunsInPrometheus(server.url).runs(FLAG, begun - 1, {"off"})}


def test_a_run_is_known_as_its_lines_tell_it(found):
    run = found["on"]
    assert (run.is_on, run.is_finished, run.trouble, run.damage) == (True, True, None, None)
    model = directories.model()
    assert run.kind == f"{model['type']} of {model['parameters']} parameters, {model['planned_steps']} steps"
    known = {unit.measure: unit.value for unit in units(run, time.time(), Criteria())}
    last = lines("on", 0.0)[-3]
    assert known[LOSS] == last["val_loss"]
    assert known[ERRORS] == 0
    assert known[STEP_TIME] == pytest.approx(STEP_S, rel=0.01)
    assert run.points[-1].memory_bytes == 10**9 + 10**6


def test_the_flag_tells_the_cohort_and_what_is_known_is_not_asked_again(scraped, found):
    server, begun = scraped
    assert "off" not in found
    of_both = {run.run: run.is_on for run in RunsInPrometheus(server.url).runs(FLAG, begun - 1, ())}
    assert (of_both["on"], of_both["off"]) == (True, False)
    assert RunsInPrometheus(server.url).runs("no_such_flag", begun - 1, ()) == []


def test_a_run_that_goes_on_has_no_loss_yet(found):
    run = found["going on"]
    assert (run.is_finished, run.loss, run.trouble, run.damage) == (False, None, None, None)


def test_runs_that_began_before_are_left_out_and_names_may_hold_anything(found):
    assert "before" not in found
    assert 'quoted "\\ run' in found


@pytest.mark.parametrize(("run", "what"), [("not finite", "loss is not finite"), ("rolled back", "was rolled back")])
def test_what_went_wrong_in_a_run_is_trouble_and_no_damage(found, run, what):
    assert what in found[run].trouble
    assert found[run].damage is None


@pytest.mark.parametrize(
    ("run", "what"),
    [
        ("fallen", "its step fell from 225 to 150"),
        ("of the future", "from the future"),
        ("without a loss", "no number"),
        ("of both", "both on and off"),
    ],
)
def test_numbers_that_cannot_be_are_damage(found, run, what):
    assert what in found[run].damage


@pytest.mark.parametrize("run", ["resumed", "restarted"])
def test_a_run_that_was_resumed_is_not_damaged(found, run):
    assert found[run].damage is None


def test_of_an_exporter_without_its_bus_only_ends_are_believed(found):
    assert "hidden" not in found
    assert found["hidden end"].is_finished


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *told):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


ANSWERS = {
    "an error": (503, b"{}"),
    "a page": (200, b"<html>"),
    "a refusal": (200, b'{"status": "error", "error": "too many samples"}'),
    "another shape": (200, b'{"status": "success", "data": {"result": [{"metric": {}}]}}'),
    "no list": (200, b'{"status": "success", "data": []}'),
    "a redirect in circles": (302, b""),
}


@pytest.mark.parametrize("what", ANSWERS)
def test_an_answer_that_is_none_is_no_data(what, tmp_path):
    with answering(*ANSWERS[what]) as url:
        check_no_data(url, tmp_path)


def test_a_server_that_is_away_is_no_data_and_takes_no_step(tmp_path):
    check_no_data(f"http://127.0.0.1:{free_port()}", tmp_path)


def check_no_data(url: str, folder) -> None:
    source, store = RunsInPrometheus(url), WatchedStore()
    with pytest.raises(OSError, match="answer"):
        source.runs(FLAG, time.time(), ())
    rollout = Rollout(folder / "state", store)
    rollout.start(terms())
    state, decision = rollout.look(source)
    assert (decision.verdict, store.history) == ("hold", [0.0, 10.0])
    assert "answer" in state.last_look["silence"]


@pytest.mark.parametrize("url", ["", "ftp://host", "127.0.0.1:9090", "http://", "http://host:port", "http://[::1"])
def test_what_is_no_url_is_refused(url):
    with pytest.raises(ConfigError, match=r"no URL of a Prometheus"):
        RunsInPrometheus(url)


@pytest.mark.parametrize("url", ["http://me:hush@host:9090", "https://host/prom?token=hush"])
def test_secrets_in_the_url_are_refused_and_not_told(url):
    with pytest.raises(ConfigError, match=r"must hold no user, password") as caught:
        RunsInPrometheus(url)
    assert "hush" not in str(caught.value)


def test_a_rollout_goes_on_by_what_a_prometheus_tells(tmp_path, capsys, monkeypatch):
    flags, state = tmp_path / "flags.json", tmp_path / "state"
    set_flag(flags, FLAG, "0%")
    runs: list[RunState] = []
    shown = MetricsServer(lambda: samples(runs), 0)
    line = ["rollout", "start", "--flag", FLAG, "--plan", "10,100", "--flags", str(flags), "--state", str(state)]
    with prometheus(tmp_path, {"runs": shown.port}) as server:
        assert main([*line, "--min-runs", "1", "--prometheus", server.url]) == 0
        assert (state / "audit.jsonl").stat().st_mode & 0o777 == 0o600
        assert main(["rollout", "advance", "--state", str(state)]) == 0
        assert read(flags).rules[FLAG].share == 10_000  # no data
        for name in ("on", "off"):
            run = RunState(name)
            for told in lines(name, time.time(), is_on=name == "on"):
                run.hear(told | {"time": time.time()})
            runs.append(run)
        assert eventually(lambda: server.value("sum(esper_run_finished)") == 2, 20)
        assert main(["rollout", "advance", "--state", str(state)]) == 0
        assert read(flags).rules[FLAG].share == 100_000
    shown.close()
    assert main(["rollout", "advance", "--state", str(state)]) == 0
    assert f"{server.url} does not answer: Prometheus at {server.url} does not answer" in capsys.readouterr().out
    assert "running, at 100 %" in (main(["rollout", "status", "--state", str(state)]), capsys.readouterr().out)[1]


def test_a_rollout_does_not_begin_where_no_prometheus_answers(tmp_path, capsys):
    flags, state = tmp_path / "flags.json", tmp_path / "state"
    set_flag(flags, FLAG, "0%")
    before = flags.read_bytes()
    line = ["rollout", "start", "--flag", FLAG, "--plan", "10,100", "--flags", str(flags), "--state", str(state)]
    for url in (f"http://127.0.0.1:{free_port()}", "http://me:hush@host", ""):
        assert main([*line, "--prometheus", url]) == 2
    told = capsys.readouterr().err
    assert "does not answer" in told
    assert "hush" not in told
    assert flags.read_bytes() == before
    assert not state.exists()
