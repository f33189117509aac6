"""A sweep by Ray Tune: on the cluster that ``RAY_ADDRESS`` names, or on a Ray of its own on this machine, which is
started for it and ended with it."""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from esper.contracts.errors import ConfigError
from esper.evaluation.pool import ATTEMPTS
from esper.evaluation.sweep.course import Course, Work, stopped
from esper.evaluation.sweep.plan import Plan, Trial, comparable
from esper.evaluation.sweep.record import Outcome, Report

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # hosts of one's own are imported from where the sweep was started
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a trial on a GPU says so itself
    "RAY_AIR_NEW_OUTPUT": "0",  # which prints although it is told to be silent
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}
_OBJECT_STORE_BYTES = 80 * 2**20
"""About the least that Ray takes: nothing large goes through it."""

VALUE, EPOCHS, OUTCOME = "value", "epochs", "outcome"


def run(work: Work, trials: list[Trial], workers: int, course: Course) -> None:
    """An :class:`~esper.evaluation.sweep.course.Engine`.

    Raises:
        ConfigError: if Ray is not installed.
    """
    with _ray(workers, course.directory) as storage:
        from ray import tune

        plan = course.sweep.plan

        def trainable(config: dict[str, Any]) -> None:
            trial = trials[config["at"]]

            def tell(measures: Mapping[str, Any]) -> bool:
                tune.report({**measures, VALUE: comparable(measures[plan.metric], plan.mode), OUTCOME: None})
                return True  # where Ray decides otherwise, it ends this process

            try:
                outcome = work(trial, tell)
            except Exception as error:  # whatever it is, it is the trial's, and trying again does not help
                outcome = Outcome("failed", reason=f"{type(error).__name__}: {error}")
            tune.report({OUTCOME: outcome, VALUE: 0.0, EPOCHS: 0})  # of no rung

        tune.Tuner(
            tune.with_resources(trainable, {"cpu": 1}),
            param_space={"at": tune.grid_search(list(range(len(trials))))},
            tune_config=tune.TuneConfig(
                scheduler=_scheduler(plan, course.sweep.reports),
                max_concurrent_trials=workers,
                reuse_actors=True,  # to load torch takes longer than a small run
            ),
            run_config=tune.RunConfig(
                storage_path=storage,
                callbacks=[_hearing(trials, course)],
                failure_config=tune.FailureConfig(max_failures=ATTEMPTS - 1),
                verbose=0,
            ),
        ).fit()


def _hearing(trials: list[Trial], course: Course) -> Any:
    from ray.tune import Callback

    class Hearing(Callback):
        """Ray's driver tells it of every trial."""

        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **_: Any) -> None:
            if result.get(OUTCOME) is None:
                course.noted(number(trial), _measures(result))

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
            result = trial.last_result
            course.ended(number(trial), result.get(OUTCOME) or stopped(_measures(result)))

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
            course.ended(number(trial), Outcome("failed", reason=f"its process ended in each of {ATTEMPTS} attempts"))

    def number(trial: Any) -> int:
        return trials[trial.config["at"]].number

    return Hearing()


def _measures(result: Mapping[str, Any]) -> dict[str, Any]:
    return {name: result[name] for name in ("held_out_loss", "held_out_metric", "train_flops", EPOCHS, "seconds")}


def _scheduler(plan: Plan, reports: tuple[Report, ...]) -> Any:
    """What decides which trials end early; it knows what earlier calls have heard."""
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    if plan.asha is None:
        return FIFOScheduler()
    scheduler: Any = ASHAScheduler(
        time_attr=EPOCHS,
        metric=VALUE,
        mode=plan.mode,
        max_t=max(trial.values["epochs"] for trial in plan.trials) + 1,
        grace_period=plan.asha.grace_epochs,
        reduction_factor=plan.asha.reduction_factor,
    )
    for report in reports:
        past = _Past(f"past {report.number}")
        scheduler.on_trial_add(None, past)
        scheduler.on_trial_result(None, past, {EPOCHS: report.epoch, VALUE: report.value})
    return scheduler


class _Past:
    """A trial of an earlier call, as far as a scheduler looks at it."""

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id


@contextmanager
def _ray(workers: int, directory: Path) -> Iterator[str]:
    """Ray: of the cluster that is named, or on the loopback, with nothing that reports or listens beyond it.

    Gives a folder that all its processes can reach; it is gone afterwards.
    """
    cluster = os.environ.get("RAY_ADDRESS")
    short = "/tmp" if os.path.isdir("/tmp") else None  # the names of Ray's sockets must fit into 107 characters
    folder = tempfile.mkdtemp(prefix="esper-ray-", dir=directory if cluster else short)
    set_ = _ENVIRONMENT if cluster else {**_ENVIRONMENT, "RAY_TMPDIR": folder}
    before = {name: os.environ.get(name) for name in set_}
    os.environ.update(set_)
    try:
        try:
            import ray
        except ImportError as error:
            raise ConfigError(
                "Ray is not installed: pip install 'esper-morphogenetic[ray]', or leave out --engine ray."
            ) from error
        try:
            quiet: dict[str, Any] = {
                "log_to_driver": False,
                "logging_level": logging.CRITICAL,
            }  # a killed worker's trial goes on
            if cluster:
                ray.init(address=cluster, **quiet)
            else:
                ray.init(
                    address="local",
                    num_cpus=workers,
                    include_dashboard=False,
                    object_store_memory=_OBJECT_STORE_BYTES,
                    _node_ip_address="127.0.0.1",
                    _temp_dir=folder,
                    **quiet,
                )
            yield folder
        finally:
            ray.shutdown()
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        shutil.rmtree(folder, ignore_errors=True)
