"""What the console says and draws, from events alone."""

import io
import itertools

import pytest
from rich.cells import cell_len
from rich.console import Console

from esper.cli.console.live import LiveDisplay
from esper.cli.console.plain import PlainLines
from esper.cli.console.presentation import Closing, Heading, Quiet
from esper.cli.console.scene import ControlRuns, Scene
from esper.cli.console.screen import screen, sparkline
from esper.cli.console.time_left import TimeLeft, clock
from esper.observability.told import told
from esper.runtime.growth import Position
from tests.cli.told_events import EVENTS, ROUND
from tests.few import few

START = Position(step=0, planned_steps=750, epoch=0, arm=None, arm_step=0, arm_steps=None)
IN_ARM = START._replace(step=150, epoch=6, arm="round1/encoder.0/affine", arm_step=10, arm_steps=40)
HEADING = Heading("digits", "mlp", "runs/digits-0", 0, 30, 800, 600, 397, "samples", 10, "classes", 682)


class _Session:
    def __init__(self, position: Position, events: list[dict]) -> None:
        self.position, self.events = position, events


def _scene(events) -> Scene:
    scene = Scene()
    for event in events:
        scene.add(event)
    return scene


def _lines(scene: Scene, position: Position = IN_ARM, width: int = 100, height: int = 50, **fields) -> list[str]:
    pace = fields.pop("pace", TimeLeft())
    told = screen(scene, position, pace, fields.pop("now_s", 0.0), width, height, is_over=fields.pop("is_over", False))
    return [line.plain for line in told]


@pytest.mark.parametrize("width", few([8, 20, 40, 60, 100, 250], [8, 40, 100]))
def test_the_screen_fits_whatever_has_happened(width):
    scene = Scene()
    positions = [START, IN_ARM, IN_ARM._replace(arm_steps=None), IN_ARM._replace(arm="trial1/twin")]
    for event, height in itertools.product([*EVENTS, None], [1, 5, 11, 24, 60]):
        if event is None:
            scene.controls = {"host_on": ControlRuns(6, 0.0, 6, 9.0), "static": ControlRuns(6, 9.0)}
        elif height == 1:
            scene.add(event)
        for position in positions:
            lines = _lines(scene, position, width, height)
            assert 1 <= len(lines) <= height
            assert max(map(cell_len, lines)) <= width


def test_every_event_can_be_shown_on_a_terminal():
    console = Console(file=io.StringIO(), force_terminal=True, width=60, height=30, record=True)
    display = LiveDisplay(console)
    display.begin(HEADING)
    with display:
        display.follow(_Session(IN_ARM, []))
        for event in EVENTS:
            display(event)
    text = console.export_text()
    assert "a host of 682 parameters" in text
    assert "note         360 gate samples are few." in text
    assert "rollback     to the state after step 250: emergency" in text
    assert "FOSSILIZED: gate passed" in text


def test_a_round_shows_its_arms_waiting_running_and_judged():
    begun, *_ = (index for index, event in enumerate(ROUND) if event["event"] == "round_begun")
    waiting = _lines(_scene(ROUND[: begun + 1]), START._replace(step=80))
    assert "round 1        the run is their twin until step 150" in waiting
    assert sum(line.endswith("waiting") for line in waiting) == 3
    judged, *_ = (index for index, event in enumerate(ROUND) if event.get("lifecycle") == 3 and "outcome" in event)
    running = "\n".join(_lines(_scene(ROUND[:judged])))
    assert "✓ the whole model  beats the twin  z  +9.6  loss 0.8100 against 1.0200" in running
    assert "· encoder.0:2      lost            z     -  loss 0.8100 against -" in running
    assert "▸ encoder.0" in running
    assert "10 of 40 steps" in running
    ended = "\n".join(_lines(_scene(ROUND), START._replace(step=150)))
    assert "round 1        ends; adopted a graft on the whole model: beat the twin" in ended
    assert "encoder.0        taken back" in ended


def test_a_candidate_that_was_not_tried_says_so():
    at = next(index for index, event in enumerate(ROUND) if event["event"] == "field_report")
    left_out = ROUND[at] | {"reason": "not tried: one before it beat the twin"}
    shown = "\n".join(_lines(_scene([*ROUND[:at], left_out])))
    assert "encoder.0        not tried" in shown


def test_an_arm_that_is_a_mere_offset_says_so():
    beats = next(event for event in ROUND if event["event"] == "arm_ended" and event["passed"])
    offset = beats | {"passed": False, "verdict": "variation is 0.01, below 0.05"}
    assert str(told(offset)).strip() == (
        "model/bottleneck_mlp is only as good as a bias, though it beats the run itself: held-out loss 0.8100 against "
        "1.0200 (z = +9.6)"
    )


def test_seeds_that_wait_for_their_round_stand_there_and_nowhere_else():
    begun = _lines(_scene([*EVENTS[:5], *ROUND[:4]]))
    assert "seeds          all others sleep; largest gradients: the whole model (0.5)" in begun
    assert ["seeds", "the", "whole", "model", "FINE_TUNING", "alpha", "1.00"] in [
        line.split() for line in _lines(_scene(ROUND))
    ]


def test_seeds_that_sleep_again_are_not_shown():
    assert not any("FINE_TUNING" in line or "CULLED  " in line for line in _lines(_scene(EVENTS), START)[:10])
    assert ("", "all") not in _scene(EVENTS).awake


def test_one_decision_on_several_places_is_one_line():
    lines = _lines(_scene(ROUND))
    assert "step 75        germinated the whole model, encoder.0:2, encoder.0: the growth window is open" in lines


def test_the_last_decisions_are_shown_with_their_reasons():
    lines = [line for line in _lines(_scene(EVENTS)) if line.startswith("step ")]
    assert lines[-1] == "step 150       ended the whole model FOSSILIZED: gate passed"
    assert len(lines) == 6
    assert "step 300       emergency not finite; the run goes back" in lines


def test_a_long_decision_keeps_its_reason_on_a_narrow_terminal():
    text = "\n".join(_lines(_scene(ROUND), width=60))
    assert "the growth window is open" in " ".join(text.split())


def test_how_the_run_stands_is_told():
    pace = TimeLeft()
    pace.note(0.0, 0)
    pace.note(10.0, 100)
    position = START._replace(step=650)
    assert "0:10 left" in _lines(Scene(), position, pace=pace)[0]
    assert "stopped" in _lines(Scene(), position, is_over=True)[0]
    assert "stopping after this step" in _lines(Scene(is_stopping=True), position)[0]
    assert "100%  trained" in _lines(_scene(EVENTS[-1:]), START._replace(step=750))[0]
    assert "epoch 0   step 650 of 750" in _lines(Scene(), position)


def test_work_counts_an_arm_as_the_window_that_it_replays():
    begun = next(index for index, event in enumerate(ROUND) if event["event"] == "round_begun")
    scene = _scene(ROUND[: begun + 1])
    assert scene.work(START._replace(step=80)) == (80, 670 + 3 * 75)
    for event in ROUND[begun + 1 : begun + 4]:  # two of its three arms end
        scene.add(event)
    assert scene.work(IN_ARM) == (150 + 2 * 75 + 75 / 4, 600 + 75 * 3 / 4)
    for event in ROUND[begun + 4 :]:
        scene.add(event)
    assert scene.work(START._replace(step=150)) == (150 + 2 * 75, 600)


def test_time_left_follows_the_speed_of_the_last_while():
    pace = TimeLeft(window_s=10.0)
    assert pace.seconds(50) is None
    pace.note(0.0, 0)
    pace.note(0.5, 40)
    assert pace.seconds(50) is None, "too early to tell"
    pace.note(2.0, 100)
    assert pace.seconds(50) == pytest.approx(1.0)
    for second in range(3, 40):  # ten times slower from here on
        pace.note(float(second), 100 + 5.0 * (second - 2))
    assert pace.seconds(50) == pytest.approx(10.0)
    assert pace.seconds(0) == 0.0


def test_time_left_is_unknown_while_nothing_moves_and_begins_anew_after_a_step_back():
    pace = TimeLeft(window_s=10.0)
    for second in range(30):
        pace.note(float(second), 7)
    assert pace.seconds(5) is None
    pace.note(30.0, 3)
    assert pace.seconds(5) is None
    pace.note(32.0, 5)
    assert pace.seconds(5) == pytest.approx(5.0)


def test_the_time_left_of_a_control_follows_from_its_runs():
    control = ControlRuns(total=6, began_s=100.0)
    assert control.seconds_left(105.0) is None
    control.note(110.0, 1)
    assert control.seconds_left(110.0) == pytest.approx(50.0)
    assert control.seconds_left(130.0) == pytest.approx(30.0)
    assert control.seconds_left(900.0) == 0.0


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.4, "0:00"), (59.6, "1:00"), (3723, "1:02:03"), (2 * 86400 + 3723, "2 d 1:02:03")]
)
def test_seconds_are_shown_as_on_a_clock(seconds, shown):
    assert clock(seconds) == shown


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([], ""),
        ([None], " "),
        ([2.0], "▁"),
        ([0.0, 7.0], "▁█"),
        ([0, 1, 2, 3, 4, 5, 6, 7], "▁▂▃▄▅▆▇█"),
        ([0, None, 7], "▁ █"),
    ],
)
def test_a_curve_is_drawn_as_blocks(values, shown):
    assert sparkline(values, 10) == shown


def test_a_long_curve_is_averaged_and_a_logarithm_shows_late_progress():
    assert sparkline([0, 0, 7, 7], 2) == "▁█"
    assert sparkline([1.0, 10.0, 100.0], 3, is_log=True) == "▁▅█"
    assert sparkline([0.0, 10.0], 2, is_log=True) == "▁█"


def test_what_plain_lines_say(capsys):
    lines = PlainLines()
    lines.begin(HEADING)
    assert capsys.readouterr().out == "", "a run that cannot begin shows nothing"
    for event in EVENTS:
        lines(event)
    lines.control("host_on", 0, 6, 147831744)
    lines.control("host_on", 1, 6, 147831744)
    lines.closing(Closing({}, "a table", "All is told.", "runs/digits-0"))
    assert capsys.readouterr().out.splitlines() == PLAIN.splitlines()


PLAIN = """\
digits: 800 training, 600 held-out, 397 test samples, 10 classes; a host of 682 parameters
run directory runs/digits-0

note         360 gate samples are few.
epoch   1/30 train loss 2.3000   held-out loss 2.1000   accuracy 21.0%
round 1      candidates: the whole model, encoder.0:2, encoder.0
  arm        model/bottleneck_mlp beats the run itself: held-out loss 0.8100 against 1.0200 (z = +9.6)
  arm        encoder.0:2/glu does not beat the run itself: held-out loss 0.8100 against - (z = -)
  ended      encoder.0 CANCELLED: asked for
  ended      encoder.0:2 CULLED: it lost its round
round 1      ends; adopted a graft on the whole model: beat the twin
veto         encoder.0:2: no parameters left
trial 1      grows in the run itself: encoder.0:2
trial 1      ends; nothing stays: lost
fault        non-finite values in a graft on encoder.0
recovery     the run has recovered after a graft was removed
recovery     the run has not recovered: it goes back to before the graft that was removed
emergency    losses spike; the graft on encoder.0 is taken out
emergency    not finite; the run goes back
rollback     to the state after step 250: emergency
  look       the whole model has not proved its worth yet (against the run without it: z = -)
  look       the whole model stays (against the run without it: z = +17.7)
  ended      the whole model FOSSILIZED: gate passed
control      host_on: 147.8 M training FLOPs, learning rate searched

a table

All is told.
"""


def test_the_quiet_one_says_nothing(capsys):
    with Quiet() as quiet:
        quiet.begin(HEADING)
        quiet.follow(_Session(START, []))
        for event in EVENTS:
            quiet(event)
        quiet.say("note", "something")
        quiet.control("host_on", 0, 6, 1)
        quiet.closing(Closing({}, "a table", "All is told.", "runs/digits-0"))
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("metric", "shown"), [("R2", "R2"), ("labels right", "labels right"), (None, "accuracy")])
def test_a_metric_is_shown_by_its_name(capsys, metric, shown):
    model = {"event": "model", "step": 0, "metric": metric}
    epoch = {"event": "epoch", "epoch": 1, "step": 25, "train_loss": 1.0, "val_loss": 0.9, "val_metric": 0.1, "lr": 0.1}
    assert any(line.startswith(shown) and "10.0%" in line for line in _lines(_scene([model, epoch])))
    lines = PlainLines()
    lines(model)
    lines(epoch)
    assert f"{shown} 10.0%" in capsys.readouterr().out
