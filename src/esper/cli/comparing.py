"""``esper ab``: makes of what was typed two subjects, compares them and tells what came of it."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import esper
from esper.cli.commands.ab import ABCommand
from esper.cli.configuration_file import read_file
from esper.cli.options import request
from esper.contracts.errors import ConfigError
from esper.evaluation.ab import words
from esper.evaluation.ab.commits import Commit, commit
from esper.evaluation.ab.configuration import PER_UNIT, Configuration, configuration
from esper.evaluation.ab.implementation import Implementation, Place, implementations
from esper.evaluation.ab.metrics import Wishes
from esper.evaluation.ab.page import PAGE, page
from esper.evaluation.ab.record import SIDES, STATE, Comparison, Plan
from esper.evaluation.ab.runner import ABTestRunner
from esper.evaluation.ab.subject import Subject
from esper.evaluation.git_trees import checked_out
from esper.flags.lock import held
from esper.observability.cited import words as told
from esper.observability.report import write_page
from esper.observability.rows import TableRow, aligned
from esper.runtime.interrupt import Interrupt

_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_OWN_FILES = re.compile(r"[AB](/seed-\d+|$)|\.ab\.")
_OWN = Path(esper.__file__).parents[1]


def compare(asked: ABCommand) -> bool:
    """Compare, and write ``ab.json`` and ``ab.html``; gives whether it came to something that can be trusted.

    Raises:
        ConfigError: if what was typed is wrong; nothing is left behind.
    """
    plan = Plan(**asked.plan | {"wishes": Wishes(**asked.plan["wishes"])})
    directory = asked.output or Path("ab") / re.sub(r"[^\w.-]+", "_", f"{Path(asked.a).stem}-{Path(asked.b).stem}")
    _check_free(directory)

    def on_pair(comparison: Comparison) -> None:
        print(words.progress(comparison), flush=True)
        write_page(directory / PAGE, page(comparison))

    with Interrupt(), _alone(directory), _subjects(asked, directory) as (a, b):
        comparison = ABTestRunner(a, b, plan, directory, on_pair).run()
        write_page(directory / PAGE, page(comparison))
    _tell(comparison, directory)
    return comparison.is_well


def _tell(comparison: Comparison, directory: Path) -> None:
    rows = [words.row(metric, comparison.findings[metric.name]) for metric in comparison.metrics if comparison.findings]
    table = aligned(words.COLUMNS, [(TableRow(name, ()), [told(cell) for cell in cells]) for name, *cells in rows])
    suspect = [f"Do not trust this: {comparison.suspicion}"] if comparison.suspicion else []
    said = [*words.story(comparison), words.outputs(comparison), *suspect]
    print("\n".join(["", *([table, ""] if rows else []), *said, words.headline(comparison)]))
    print(f"\nLook at {directory / PAGE}; all numbers are in {directory / STATE}")


@contextmanager
def _subjects(asked: ABCommand, directory: Path) -> Iterator[tuple[Subject, Subject]]:
    kinds = [_kind(one) for one in (asked.a, asked.b)]
    if kinds[0] != kinds[1]:
        raise ConfigError(f"A and B must be of one kind, but {asked.a} is a {kinds[0]} and {asked.b} a {kinds[1]}.")
    if kinds[0] == "commit":
        with _commits(asked, directory) as found:
            yield found
        return
    if asked.measure is not None:
        raise ConfigError(
            f"--measure says what to measure in two commits, but {asked.a} is a {kinds[0]}. Leave it out."
        )
    place = Place(Path.cwd(), (Path.cwd(), _OWN), asked.timeout_s)
    if kinds[0] == "function":
        yield implementations((asked.a, asked.b), place)
    else:
        yield (
            _configuration(asked.a, asked.a, place, directory / "A"),
            _configuration(asked.b, asked.b, place, directory / "B"),
        )


@contextmanager
def _commits(asked: ABCommand, directory: Path) -> Iterator[tuple[Subject, Subject]]:
    if asked.measure is None or _kind(asked.measure) == "commit":
        raise ConfigError(
            f"{asked.a} and {asked.b} are taken for commits. Say what to measure in each: --measure FILE.yaml or "
            "--measure module:function."
        )
    a, b = (commit(asked.repository, revision) for revision in (asked.a, asked.b))
    with checked_out(asked.repository, a.hash) as tree_a, checked_out(asked.repository, b.hash) as tree_b:
        yield _in_commit(asked, a, tree_a, directory / "A"), _in_commit(asked, b, tree_b, directory / "B")


def _in_commit(asked: ABCommand, wanted: Commit, tree: Path, runs: Path) -> Subject:
    assert asked.measure is not None
    place = Place(tree, (tree / "src", tree, Path.cwd(), _OWN), asked.timeout_s)
    if _kind(asked.measure) == "function":
        return Implementation(wanted.name, asked.measure, place, f"{asked.measure} {wanted.tree}")
    return _configuration(wanted.name, asked.measure, place, runs, wanted.tree)


def _configuration(name: str, path: str, place: Place, runs: Path, code: str = "") -> Configuration:
    values = {key: value for key, value in read_file(Path(path)).items() if key not in PER_UNIT}
    options = request(values).options  # refuses what no run would take, and finds the data from here
    located = {key: getattr(options, key) for key in ("data", "weights", "flags") if key in values}
    return configuration(name, values | located, place, runs, told=f"{options} {code}")


def _kind(word: str) -> str:
    if word.endswith((".yaml", ".yml")):
        return "configuration"
    return "function" if _FUNCTION.fullmatch(word) else "commit"


def _check_free(directory: Path) -> None:
    """Refuse a directory with what is of no comparison. One that was killed in its first pair has left units alone."""
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"--output {directory} is a file. Name a directory.")
    names = (path.relative_to(directory).as_posix() for path in directory.rglob("*"))
    if not (directory / STATE).is_file() and not all(map(_OWN_FILES.match, names)):
        raise ConfigError(f"--output {directory} holds something else. Name another directory.")


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Keep others out of a comparison while it runs. One that could not begin leaves nothing behind."""
    new = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with held(directory / ".ab.lock", f"the comparison in {directory}"):
            try:
                yield
            except ConfigError:
                for side in SIDES if not (directory / STATE).is_file() else ():
                    shutil.rmtree(directory / side, ignore_errors=True)
                raise
    except ConfigError:
        with suppress(OSError):  # what is not empty stays
            for path in new:
                path.rmdir()
        raise
