"""Every error a user of Esper can meet. Messages say what was wrong, with the values, and what to do."""

import difflib
from collections.abc import Iterable


class EsperError(Exception):
    """Root of all errors raised on purpose by Esper."""


class ConfigError(EsperError, ValueError):
    """The configuration, or the model or optimizer it is applied to, cannot work as given."""


class TransitionError(EsperError):
    """A lifecycle transition that the table does not list, or that came for a stale version."""


class InvariantError(EsperError):
    """The state of seeds and grafts is one that cannot be: a bug, or something wrote into it."""


class HarmedError(EsperError):
    """A run was harmed, and is not to go on by itself. The model stands at the best state that was kept, if any was."""


class EvaluationError(EsperError):
    """``evaluate`` returned something that cannot be judged."""


class ArmError(EsperError):
    """The process of an arm died, or what it did there raised an error."""


class RankError(EsperError):
    """The ranks that train one model do not agree, or one of them does not answer."""


class DataError(EsperError, ValueError):
    """A data file that cannot be used."""


class CheckpointError(EsperError):
    """A checkpoint that is missing, damaged, or belongs to something else."""


class BusError(EsperError):
    """A message bus that cannot be used as asked."""


class BusUnavailableError(BusError):
    """The broker of a message bus does not answer, or will not serve us. Trying again later may help."""


def closest(word: object, valid: Iterable[str]) -> str:
    """A hint naming the valid word most like ``word``, and all valid words, if any; the empty one as ``""``."""
    valid = sorted(name or '""' for name in valid)
    if not valid:
        return "There are none."
    match = difflib.get_close_matches(str(word), valid, n=1)
    did_you_mean = f"Did you mean {match[0]!r}? " if match else ""
    return f"{did_you_mean}Valid: {', '.join(valid)}."
