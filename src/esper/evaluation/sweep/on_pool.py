"""A sweep in processes of this machine, without Ray."""

from contextlib import closing

from esper.evaluation.pool import each
from esper.evaluation.sweep.course import Course, Work
from esper.evaluation.sweep.plan import Trial
from esper.evaluation.sweep.record import Outcome


def run(work: Work, trials: list[Trial], workers: int, course: Course) -> None:
    """An :class:`~esper.evaluation.sweep.course.Engine`. Where it is left early, its processes save what they have."""
    jobs = {str(trial.number): trial for trial in trials}
    with closing(each(work, jobs, workers, lambda heard: course.judged(int(heard.key), heard.value))) as hearing:
        for heard in hearing:
            if heard.kind == "done":
                course.ended(int(heard.key), heard.value)
            elif heard.kind == "failed":
                course.ended(int(heard.key), Outcome("failed", reason=heard.value))
