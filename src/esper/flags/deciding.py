"""What decides on a flag, in this order:

1. the environment switches it off (``ESPER_FLAG_<NAME>=0``);
2. the store switches it off for all (``esper flags set <NAME> off``);
3. the store's block list;
4. the environment switches it on, or names a share of models;
5. the store's allow list;
6. the store's share of models;
7. off, where there is a store that does not tell; on and not in play, where there is none.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from esper.contracts.flags import NOT_IN_PLAY, Flag
from esper.flags.document import Document
from esper.flags.environment import variable_of
from esper.flags.rule import ALLOWED, BLOCKED, DISABLED, OFF, ON, Rule
from esper.flags.shares import ALL, shown

if TYPE_CHECKING:
    from esper.flags.flagd import Evaluator


class Deciding:
    """Decides flags by environment and store.

    Args:
        shares: that the environment names, in thousandths of a percent.
        store: name of the store for reasons; None if there is none.

    Raises:
        ConfigError: if flagd is needed, and the extra ``flags`` is not installed.
    """

    def __init__(self, shares: Mapping[str, int], store: str | None) -> None:
        self._shares, self._store = shares, store
        self._by_share, self._by_store = self._evaluators()
        self.document: Document | None = None
        self.doubt = ""

    def _evaluators(self) -> "tuple[Evaluator | None, Evaluator | None]":
        partial = {name: Rule(share).to_flagd() for name, share in self._shares.items() if 0 < share < ALL}
        if not partial and self._store is None:
            return None, None
        from esper.flags.flagd import Evaluator

        by_share = Evaluator("esper.flags/environment")
        by_share.load({"flags": partial}, partial)
        return by_share, None if self._store is None else Evaluator(f"esper.flags/{self._store}")

    def load(self, document: Document) -> None:
        """Decide by this store from now on.

        Raises:
            ConfigError: if flagd cannot use it; the one before stays.
        """
        assert self._by_store is not None
        self._by_store.load(document.value, document.rules)
        self.document = document

    def flag(self, name: str, model_id: str) -> Flag:
        """One flag, for one model."""
        share = self._shares.get(name)
        if share == 0:
            return Flag(name, False, f"{variable_of(name)} switches it off", is_by_name=True)
        told = self._told(name, model_id)
        if told is not None and self.doubt:
            told = replace(told, is_in_doubt=True)
        if told is not None and told.is_by_name and not told.is_on:
            return told
        if share == ALL:
            return Flag(name, True, f"{variable_of(name)} switches it on", is_by_name=True)
        if share is not None:
            assert self._by_share is not None
            is_on = self._by_share.evaluate(name, model_id).is_on
            return Flag(name, is_on, f"{_side(is_on)} the {shown(share)} of {variable_of(name)}")
        return told or Flag(name, True, NOT_IN_PLAY)

    def _told(self, name: str, model_id: str) -> Flag | None:
        """What the store says; None if there is none."""
        if self._store is None:
            return None
        store = self._store + self.doubt
        if self.document is None or name not in self.document.rules:
            return Flag(name, False, f"{store} does not tell, and off is the default")
        assert self._by_store is not None
        rule, flag = self.document.rules[name], self.document.value["flags"][name]
        if flag["state"] == DISABLED:
            return Flag(name, False, f"switched off for all in {store}", is_by_name=True)
        is_on, variant, error = self._by_store.evaluate(name, model_id)
        if error is not None:
            return Flag(name, False, f"its rule in {store} failed: {error}", is_in_doubt=True)
        if variant in (ALLOWED, BLOCKED):
            return Flag(name, is_on, f"{model_id} is {variant} in {store}", is_by_name=True)
        if rule is not None and rule.share == ALL:
            return Flag(name, True, f"on for all in {store}", is_by_name=True)
        if rule is not None and variant in (ON, OFF):
            return Flag(name, is_on, f"{_side(is_on)} the {shown(rule.share)} of {store}")
        return Flag(name, is_on, f"its own rule in {store} gives {variant or 'no variant'}")


def _side(is_on: bool) -> str:
    return "inside" if is_on else "outside"
