"""What is sent, put into the old value, gives the new one; and it is only what has changed."""

import copy

from hypothesis import given
from hypothesis import strategies as st

from esper.observability.live.changes import MOST, changes

values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc", max_size=1), inner, max_size=3),
    max_leaves=12,
)


def applied(old, found):
    """As ``page/live/live.js`` does it."""
    whole = {"value": copy.deepcopy(old)}
    for path, how, value in found:
        *way, last = ("value", *path)
        parent = whole
        for key in way:
            parent = parent[key]
        if how == "set":
            parent[last] = value
        else:
            parent[last].extend(value)
    return whole["value"]


def same(one, other) -> bool:
    return repr(one) == repr(other)  # True is no 1


@given(values, values)
def test_changes_lead_from_the_old_value_to_the_new_one(old, new):
    assert same(applied({"a": old}, changes({"a": old}, {"a": new})), {"a": new})


def test_only_what_has_changed_is_told():
    old = {"curves": {"steps": [1, 2], "losses": [0.5, 0.4]}, "lanes": [{"to": 2, "label": "a"}], "lattice": None}
    new = {
        "curves": {"steps": [1, 2, 3], "losses": [0.5, 0.4, 0.3]},
        "lanes": [{"to": 3, "label": "a"}, {"to": 3, "label": "b"}],
        "lattice": None,
    }
    assert changes(old, new) == [
        (("curves", "steps"), "add", [3]),
        (("curves", "losses"), "add", [0.3]),
        (("lanes", 0, "to"), "set", 3),
        (("lanes",), "add", [{"to": 3, "label": "b"}]),
    ]
    assert changes(new, new) == []


def test_a_list_that_is_quite_another_is_told_as_a_whole():
    old, new = list(range(MOST + 5)), list(range(1, MOST + 6))
    assert changes({"a": old}, {"a": new}) == [(("a",), "set", new)]
