"""Of many cases that are alike, those that every change is tested with. All are tested with ``make test-long``."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def few(cases: Iterable[Any], always: Collection[Any]) -> list[Any]:
    """The cases, marked long but for those that are, or whose first value is, among ``always``.

    Args:
        cases: each a value or a tuple of them.
        always: what to keep.
    """
    given = list(cases)
    firsts = {one[0] if isinstance(one, tuple) else one for one in given} | set(given)
    assert set(always) <= firsts, f"There is no {set(always) - firsts}."
    return [one if _is_among(one, always) else _long(one) for one in given]


def _is_among(case: Any, always: Collection[Any]) -> bool:
    return case in always or (isinstance(case, tuple) and case[0] in always)


def _long(case: Any) -> Any:
    return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.long)
