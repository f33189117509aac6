"""``esper rollout``: what it does, and what it prints."""

import math
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from esper.contracts.errors import ConfigError, EsperError
from esper.evaluation.rollout.audit import State
from esper.evaluation.rollout.compare import Comparison
from esper.evaluation.rollout.directories import RunDirectories
from esper.evaluation.rollout.engine import COHORTS, Decision
from esper.evaluation.rollout.health import Source
from esper.evaluation.rollout.on_bus import RunsOnBus
from esper.evaluation.rollout.on_prometheus import RunsInPrometheus
from esper.evaluation.rollout.plan import Criteria, Terms, parse_plan
from esper.evaluation.rollout.rollout import Rollout, begun
from esper.evaluation.rollout.stores import FlagFile
from esper.oona.url import open_bus, shown

_CRITERIA = {
    "min_runs": ("min_runs", 1),
    "min_seconds": ("min_seconds", 1),
    "worse_by": ("worse_by", 100),
    "more_errors": ("more_errors", 100),
    "patience": ("patience_s", 1),
    "stale": ("stale_s", 1),
}
"""By option: the criterion, and by what the option is larger."""

Values = Mapping[str, Any]


def start(values: Values) -> None:
    """Begin a rollout, or say what that would do."""
    flags = str(Path(values["flags"]).absolute())
    source = _named_source(values)
    terms = Terms(values["flag"], parse_plan(values["plan"]), flags, source, _criteria(values))
    rollout = Rollout(Path(values["state"]), FlagFile(flags))
    now = rollout.check_start(terms)
    if values["bus"] is not None:
        open_bus(source).close()  # one that is none, or does not answer, is told now
    elif values["prometheus"] is not None:
        RunsInPrometheus(source).check()
    if values["dry_run"]:
        print(f"Would set {terms.flag} from {now:g} % to {terms.plan[0]:g} %. Nothing was changed.")
    else:
        _print_state(rollout.start(terms))


def status(values: Values) -> bool:
    """Print where a rollout stands; gives whether it has not been taken back."""
    state = _of(values)
    _print_state(state)
    if state.last_look is not None:
        for one in state.last_look["measures"]:
            print(f"  {Comparison(**one)}")
    return state.outcome != "rolled back"


def advance(values: Values) -> bool:
    """Look at runs, once or until the rollout is over; gives whether it has not been taken back."""
    every_s = None if values["watch"] is None else _number("watch", values["watch"])
    if every_s == 0:
        raise ConfigError(f"--watch must be a number of seconds above 0, not {values['watch']!r}.")
    state = _of(values)
    rollout = Rollout(Path(values["state"]), FlagFile(state.terms.flags))
    with closing(_source(state.terms)) as source:
        if values["dry_run"]:
            _, decision = rollout.look(source, dry_run=True)
            print(_would(state, decision))
            return state.outcome != "rolled back"
        with rollout.operating():
            state = rollout.look(source)[0] if every_s is None else _watched(rollout, source, every_s)
    _print_state(state)
    return state.outcome != "rolled back"


def take_back(values: Values) -> None:
    """End a rollout by hand."""
    state = _of(values)
    why = values["why"] or "by hand"
    _print_state(Rollout(Path(values["state"]), FlagFile(state.terms.flags)).take_back(why))


def _watched(rollout: Rollout, source: Source, every_s: float) -> State:
    """What goes wrong in a look is told once, and tried again: a store may be away for a while."""
    told = ""
    while True:
        try:
            state, _ = rollout.look(source)
        except (EsperError, OSError) as error:
            if str(error) != told:
                told = str(error)
                print(f"esper: {told}", file=sys.stderr, flush=True)
        else:
            if state.outcome != "running":
                return state
            if (now := f"{state.percent:g} %: {state.why}") != told:
                told = now
                print(told, flush=True)
        time.sleep(every_s)


def _of(values: Values) -> State:
    state = begun(Path(values["state"]))
    if values["flag"] not in (None, state.terms.flag):
        raise ConfigError(
            f"{values['state']} holds a rollout of {state.terms.flag}, not of {values['flag']}. Name its directory by "
            "--state, or leave --flag out."
        )
    return state


def _source(terms: Terms) -> Source:
    if Path(terms.source).is_absolute():
        return RunDirectories(terms.source)
    is_prometheus = terms.source.startswith(("http://", "https://"))
    return RunsInPrometheus(terms.source) if is_prometheus else RunsOnBus(terms.source)


def _named_source(values: Values) -> str:
    if values["prometheus"] is not None:
        return str(values["prometheus"])
    return str(Path(values["runs"]).absolute()) if values["bus"] is None else _located(values["bus"])


def _located(url: str) -> str:
    """A bus as it is found from any folder: who looks next may stand elsewhere."""
    scheme, _, rest = url.partition(":")
    if scheme == "memory":
        raise ConfigError("memory: is a bus within one process, where no run is heard. Name another, or --runs DIR.")
    path, mark, options = rest.removeprefix("//").partition("?")
    if scheme != "sqlite" or not path:
        return url
    return f"sqlite:{Path(path).absolute()}{mark}{options}"


def _where(terms: Terms) -> str:
    return terms.source if Path(terms.source).is_absolute() else shown(terms.source)


def _criteria(values: Values) -> Criteria:
    given: dict[str, Any] = {
        criterion: _number(option, values[option]) / larger
        for option, (criterion, larger) in _CRITERIA.items()
        if values[option] is not None
    }
    if "min_runs" in given:
        if given["min_runs"] != int(given["min_runs"]):
            raise ConfigError(f"--min-runs must be a whole number, not {values['min_runs']}.")
        given["min_runs"] = int(given["min_runs"])
    return Criteria(**given)


def _number(option: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not number >= 0 or math.isinf(number):
        raise ConfigError(f"--{option.replace('_', '-')} must be a number of at least 0, not {text!r}.")
    return number


def _print_state(state: State) -> None:
    terms = state.terms
    plan = ",".join(f"{percent:g}" for percent in terms.plan)
    told = f"{terms.flag}: {state.outcome}, at {state.percent:g} % of the plan {plan} ({terms.flags}; {_where(terms)})"
    print(told if state.is_set else f"{told}; the flag is still to be set, which 'esper rollout advance' does")
    if state.why:
        print(f"  {state.why}")
    if silence := (state.last_look or {}).get("silence"):
        print(f"  {_where(terms)} does not answer: {silence}")


def _would(state: State, decision: Decision | None) -> str:
    if decision is None:
        return f"The rollout is {state.outcome}: nothing would change."
    what = {
        "hold": f"Would stay at {state.percent:g} %",
        "promote": f"Would go on from {state.percent:g} %",
        "complete": f"Would be complete at {state.percent:g} %",
        "rollback": f"Would take the flag back from {state.percent:g} % to off",
    }[decision.verdict]
    good = ", ".join(f"{count} {COHORTS[is_on]}" for is_on, count in decision.good.items())
    return f"{what}: {decision.why} (runs: {good}). Nothing was changed."
