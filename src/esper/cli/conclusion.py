"""The end of a run: its model exported, its controls trained, its result written and reported."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from esper.cli.console.presentation import Closing, Presentation
from esper.cli.model_files import write_card, write_model
from esper.cli.options import Options
from esper.cli.run_directory import (
    MODEL,
    PROGRESS,
    REPORT,
    RESULT,
    SAMPLES,
    note_progress,
    read_json,
    resume_command,
    write_json,
)
from esper.contracts.errors import ConfigError
from esper.evaluation.controls import Setting, host_on, static
from esper.evaluation.gains import fingerprint, gains
from esper.evaluation.growing import Growing
from esper.evaluation.row import PerSample, Row, measured
from esper.evaluation.samples_file import read_samples, write_samples
from esper.kasmina.host.export import export
from esper.observability import report, rows, story
from esper.observability.record import read_result
from esper.runtime.judging.worth import split_samples
from esper.tasks.placed import device_name
from esper.tasks.task import Task

CONTROLS = ("host_on", "static")


class Conclusion:
    """Concludes a run that was trained to its end. What was done before an interruption is not done again.

    Args:
        options: of the run.
        task: what it learned.
        weights: that its host began with; None if they were random.
        growth: the finished run.
        directory: of the run.
        seconds: that its training took.
        shown: where progress is shown.
    """

    def __init__(
        self,
        options: Options,
        task: Task,
        weights: dict[str, Tensor] | None,
        growth: Growing,
        directory: Path,
        seconds: float,
        shown: Presentation,
    ) -> None:
        self._options, self._task, self._weights, self._growth = options, task, weights, growth
        self._directory, self._seconds, self._shown = directory, seconds, shown
        self._tests: dict[str, PerSample] = read_samples(directory / SAMPLES)
        self._rows: dict[str, Any] = {"grown": None} | dict.fromkeys(CONTROLS)
        self._reasons = dict.fromkeys(CONTROLS, "not trained yet")

    def conclude(self) -> None:
        """Export, train controls, write ``result.json``, the model's card and the report."""
        options, task, session = self._options, self._task, self._growth.session
        plain = export(self._growth.model)
        grown = measured(
            plain,
            task,
            options.growth.seed,
            train_flops=session.train_flops,
            seconds=self._seconds,
            lr=options.lr,
            schedule=options.schedule,
        )
        self._note("grown", grown.to_dict(), grown.test)
        model = write_model(self._directory / MODEL, plain, task)
        write_card(model, self._result(), self._anatomy())  # what if the controls are interrupted
        if model.fault is not None:
            self._shown.say("note", f"the model is stored without a graph: {model.fault}")
        if options.controls:
            self._train_controls(grown)
        else:
            self._reasons = dict.fromkeys(CONTROLS, "left out by --no-controls")
        result = self._result()
        write_card(model, result, self._anatomy())
        write_json(self._directory / RESULT, result)
        (self._directory / PROGRESS).unlink(missing_ok=True)
        report.write(self._directory)
        show_closing(self._directory, self._shown)

    def _train_controls(self, grown: Row) -> None:
        done = read_json(self._directory / PROGRESS).get("rows", {})
        self._rows |= {name: row for name, row in done.items() if name in self._tests}
        budget = grown.train_flops
        setting = Setting(self._options.batch_size, self._options.seed, split_seed=self._options.growth.seed)
        kinds: dict[str, Callable[[Setting], Row]] = {
            "host_on": lambda setting: host_on(self._task, budget, setting, self._weights),
            "static": lambda setting: static(self._task, budget, grown.parameters, setting),
        }
        for name, train in kinds.items():
            self._reasons.pop(name)
            if self._rows[name] is not None:
                continue
            is_host = name == "static" and self._rows["host_on"]["parameters"] == grown.parameters
            if is_host and self._weights is None:  # nothing grew: the same network, from the same bytes
                self._note(name, self._rows["host_on"], self._tests["host_on"])
                continue
            if name == "static" and not self._task.is_scalable:
                self._reasons[name] = "the host's factory takes no width_factor"
                continue

            def tell(done: int, total: int, name: str = name) -> None:
                self._shown.control(name, done, total, budget)

            try:
                row = train(replace(setting, on_run=tell))
            except ConfigError as error:  # a factory whose size does not follow its width_factor
                self._reasons[name] = str(error)
                continue
            self._note(name, row.to_dict(), row.test)
            done = {name: row for name, row in self._rows.items() if name in CONTROLS and row is not None}
            note_progress(self._directory, self._seconds, done)

    def _note(self, name: str, row: dict[str, Any], test: PerSample) -> None:
        """Keep a row and its test samples."""
        self._rows[name], self._tests[name] = row, test
        write_samples(self._directory / SAMPLES, self._tests, self._task.test_groups)

    def _result(self) -> dict[str, Any]:
        options, task, session = self._options, self._task, self._growth.session
        split = split_samples(len(task.held_out.y), task.groups, options.growth.seed)
        return {
            "seed": options.seed,
            "task": task.name,
            "host": options.host,
            "host_settings": options.host_settings,
            "weights": options.weights,
            "device": device_name(task.device),
            "precision": options.precision,
            "compile": options.compile,
            "metric": task.metric,
            **({"target": task.labels[0]} if task.kind == "regression" else {}),
            "rows": self._rows,
            "reasons": self._reasons,
            "gains": {
                name: None
                if self._rows[name] is None
                else gains(self._tests["grown"], self._tests[name], task.test_groups)
                for name in CONTROLS
            },
            "test_set": fingerprint(task.test),
            "held_out": {"samples": len(task.held_out.y), "select": len(split.select)},
            "lifecycles": [one.to_dict() for one in session.field_reports],
            "probe_flops": session.probe_flops,
            "planned_steps": self._growth.epochs * len(self._growth.loader),
        }

    def _anatomy(self) -> dict[str, Any]:
        return next(event for event in self._growth.session.events if event["event"] == "model")


def show_closing(directory: Path, shown: Presentation) -> None:
    """The last words of a finished run: its table, what growth was worth, and where all of it lies.

    Raises:
        ConfigError: if the result is damaged.
    """
    result = read_result(directory)
    if result is None:
        raise ConfigError(f"{directory / RESULT} is damaged. Delete it, and go on with: {resume_command(directory)}")
    words = f"{story.verdict(result)}\n\nLook at {directory / REPORT}"
    shown.closing(Closing(result, rows.text(result), words, directory))
