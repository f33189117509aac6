"""What many GPUs take: the laws, the model, and a small control plane in which nothing is lost and nothing doubled."""

import math

import pytest

from benchmarks.scaling import many_runs, one_run, queueing
from benchmarks.scaling.laws import better, line
from benchmarks.scaling.model import TRAINED, Constants, Host, memory, row

OF = Constants(
    column_bytes=35,
    sensed_bytes=line({1: 56.0, 10: 272.0}),
    graft=line({1: 129.0, 10: 1290.0}),
    dormant=0.98,
    growing=0.92,
    step_ms=100.0,
    per_step=(1, 3),
    meetings=2,
    told=4,
    told_bytes=line({1: 100.0, 10: 190.0}),
    meet_us=line({2: 200.0, 4: 400.0}),
    tell_us=line({2: 500.0, 4: 1000.0}),
    sockets=line({2: 5.0, 4: 7.0}),
    gather_bytes=line({2: 2000.0, 4: 4000.0}),
    write_s=5.0,
    step_s=line({10: 1e-3, 100: 1e-2}),
    report_bytes=200.0,
    line_bytes=line({10: 1e4, 100: 1e5}),
)
SMALL = Host("small", parameters=1_000_000, places=4, channels=400, width=10)


class TestLaws:
    def test_a_line_is_found(self):
        law = line({2: 7.0, 4: 11.0, 8: 19.0})
        assert (law.a, law.b) == pytest.approx((3.0, 2.0))
        assert law.at(1000) == pytest.approx(2003.0)
        assert law.error < 1e-9

    def test_the_better_one_is_taken(self):
        assert better({2: 1.0, 4: 2.0, 8: 3.0, 16: 4.0}).kind == "log2 n"
        assert better({2: 2.0, 4: 4.0, 8: 8.0, 16: 16.0}).kind == "n"


class TestModel:
    def test_memory_of_a_gpu(self):
        told = memory(SMALL, OF, seeds=8, grafts=2)
        assert told.model == 16_000_000
        assert told.seeds == pytest.approx(35 * 8 * 4 + 24 * 400 + 32 * 4)
        assert told.grafts == pytest.approx(TRAINED * 2 * 1290)

    def test_traffic_of_a_gpu_hardly_grows_with_their_number_and_the_host_s_does(self):
        few, many = row(SMALL, OF, 8), row(SMALL, OF, 8000)
        assert few.gradients < many.gradients < 8e6
        assert few.growing < many.growing < 2 * few.growing
        assert many.meeting_ms == pytest.approx(1000 * few.meeting_ms)
        assert many.checkpoints == 1000 * few.checkpoints

    def test_one_gpu_exchanges_nothing(self):
        alone = row(SMALL, OF, 1)
        assert (alone.gradients, alone.dormant, alone.growing, alone.boundary, alone.meeting_ms) == (0, 0, 0, 0, 0)
        assert math.isnan(alone.slower_dormant)

    def test_a_step_is_slower_the_more_gpus(self):
        assert row(SMALL, OF, 2).slower_dormant == pytest.approx(1 / 0.98 - 1)
        assert row(SMALL, OF, 4).slower_growing == pytest.approx(1 / 0.92 - 1 + 3e-4)


class TestQueueing:
    def test_one_that_is_hardly_asked_answers_at_once(self):
        told = queueing.waits(10, 60.0, 1, [0.01], questions=2000)
        assert told["load"] == pytest.approx(10 / 60 * 0.01)
        assert told["p50"] == pytest.approx(0.01)

    def test_the_mean_wait_is_that_of_the_books(self):
        """M/D/1 at half load waits half a service time on average (Pollaczek and Khinchine): its median is below."""
        told = queueing.waits(30, 60.0, 1, [1.0], questions=20_000)
        assert told["load"] == pytest.approx(0.5)
        assert 1.0 <= told["p50"] < 1.5 < told["p99"] < 6.0

    def test_more_controllers_wait_less(self):
        one, four = (queueing.waits(100, 60.0, number, [0.5]) for number in (1, 4))
        assert four["p99"] < one["p99"]
        assert four["load"] == pytest.approx(one["load"] / 4)


class TestOneRun:
    def test_all_its_reports_arrive(self):
        told = one_run.reports(50)
        assert told["layers"] == 50
        assert told["bytes of its messages"] > 50 * 4 * 4 * 4

    def test_its_question_is_decided(self):
        assert one_run.question(20)["decided"]

    def test_one_that_is_too_large_is_refused(self, monkeypatch):
        monkeypatch.setattr("esper.oona.codec.LARGEST_BYTES", 1000)
        told = one_run.question(20)
        assert not told["decided"]
        assert "at most 1000 are read" in told["said"]


@pytest.fixture(scope="module")
def told():
    return many_runs.simulate(100, 10)


class TestManyRuns:
    def test_faults_came(self, told):
        happened = ("deaths of runs", "publications that failed", "messages doubled")
        assert all(told[name] > 0 for name in (*happened, "questions held by a dead controller")), told

    @pytest.mark.parametrize(
        "name", ["not answered", "not carried out", "carried out twice", "reports lost", "without a decision"]
    )
    def test_nothing_is_lost_and_nothing_is_done_twice(self, told, name):
        assert told[name] == 0
        assert told["commands"] == told["questions decided"] == 300
        assert told["answers that came again"] > 0

    def test_each_run_hears_what_is_for_others(self, told):
        """Why runs on one bus cost the square of their number."""
        assert told["decisions delivered"] > 50 * told["questions decided"]

    def test_a_bus_that_loses_is_noticed(self):
        told = many_runs.simulate(30, 10, loses=0.05, patience_s=1.0)
        assert told["messages lost"] > 0
        assert told["reports lost"] > 0
        assert told["not answered"] + told["without a decision"] > 0

    def test_one_that_does_each_command_again_is_noticed(self, monkeypatch):
        monkeypatch.setattr(many_runs.LightRun, "submit_once", _each_time)
        assert many_runs.simulate(30, 2)["carried out twice"] > 0


def _each_time(run, command):
    run._answers.pop(command.id, None)
    return _SUBMIT_ONCE(run, command)


_SUBMIT_ONCE = many_runs.LightRun.submit_once
