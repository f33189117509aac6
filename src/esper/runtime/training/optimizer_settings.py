"""What schedules move in an optimizer's parameter groups, noted without waiting for the device."""

from typing import Any

from torch import Tensor

from esper.runtime.training.late import Late

Settings = list[dict[str, Any]]
"""Numbers that schedules move (learning rate, momentum, weight decay ...), one dict per parameter group."""


class SettingsNotes:
    """Copies of the settings, step by step; settings that have not changed are one object, however often noted."""

    def __init__(self) -> None:
        self._last: Settings = []
        self._tensors: dict[tuple[int | str, ...], tuple[Tensor, int, Tensor]] = {}

    def take(self, groups: list[dict[str, Any]]) -> Settings:
        """The settings as they are now. Tensors are copied where they are."""
        settings = [
            {
                name: self._copy((index, name), value)
                for name, value in group.items()
                if isinstance(value, int | float | tuple | Tensor)
            }
            for index, group in enumerate(groups)
        ]
        if not _are_same(settings, self._last):
            self._last = settings
        return self._last

    def _copy(self, key: tuple[int | str, ...], value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(self._copy((*key, index), item) for index, item in enumerate(value))
        if not isinstance(value, Tensor):
            return value
        known, version, copy = self._tensors.get(key, (None, -1, value))
        if known is not value or version != value._version:
            copy = value.detach().clone()
            self._tensors[key] = (value, value._version, copy)
        return copy


class Rates:
    """Learning rates of the groups. Those on a device are read one step late, so that no step waits for them.

    Attributes:
        in_step: rates that grafts go by in the step that is taken: of this step where they are on the host, else of
            the one before.
    """

    def __init__(self) -> None:
        self._of_last_step: list[float | Late] | None = None
        self.in_step: list[float] = []

    def note(self, groups: list[dict[str, Any]]) -> None:
        """The optimizer is about to step with these groups. The very first step waits for rates on a device."""
        rates = [group["lr"] for group in groups]
        if any(isinstance(rate, Tensor) and rate.device.type != "cpu" for rate in rates):
            before = self.of_last_step
            is_known = before is not None and len(before) == len(rates)
            self.in_step = before if is_known and before is not None else [float(rate) for rate in rates]
            self._of_last_step = [Late(rate) if isinstance(rate, Tensor) else float(rate) for rate in rates]
        else:
            self.in_step = [float(rate) for rate in rates]
            self._of_last_step = [*self.in_step]

    @property
    def of_last_step(self) -> list[float] | None:
        """Rates of the last step; None before the first. Waits for a step that is under way on a device."""
        if self._of_last_step is None:
            return None
        return [float(rate.read()) if isinstance(rate, Late) else rate for rate in self._of_last_step]

    @of_last_step.setter
    def of_last_step(self, rates: list[float] | None) -> None:
        self._of_last_step = None if rates is None else [*rates]


def _are_same(one: Settings, other: Settings) -> bool:
    """Whether numbers are equal and tensors the same objects."""
    if [group.keys() for group in one] != [group.keys() for group in other]:
        return False
    pairs = ((value, before[name]) for group, before in zip(one, other, strict=True) for name, value in group.items())
    return all(value is before or (not _has_tensor(value) and value == before) for value, before in pairs)


def _has_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, tuple) and any(isinstance(item, Tensor) for item in value))
