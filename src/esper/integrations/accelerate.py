"""Sessions beside an ``accelerate.Accelerator``: gradients that it gathers, and what it saves and loads."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from esper.contracts.errors import CheckpointError, ConfigError
from esper.runtime.session import Session

FOLDER = "esper"
"""Of a session, in a folder that ``save_state`` writes."""


class Accumulation:
    """How far ``accelerator.accumulate`` has come: goes into ``Session(extra={"accumulation": ...})``.

    Steps that are taken once more in arms then gather gradients where the run did, and a resumed run goes on with the
    batch it stood at. Without it, arms of a run that accumulates are not compared.

    Args:
        accelerator: by which the training step accumulates.

    Raises:
        ConfigError: if it is no ``Accelerator``.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        _refuse_other(accelerator)
        self._accelerator = accelerator

    @property
    def gathers(self) -> bool:
        """Whether the step before only gathered gradients."""
        return not self._accelerator.sync_gradients

    @contextmanager
    def repeating(self, gathers: bool) -> Iterator[None]:
        """Around a step that is taken once more, which is to do the same, wherever the loader stands.

        An epoch that ends within an accumulation ends it, by default.
        """
        accelerator, plugin = self._accelerator, self._accelerator.gradient_state.plugin_kwargs
        count = accelerator.gradient_accumulation_steps
        if not gathers:
            accelerator.step = count - 1
        elif (accelerator.step + 1) % count == 0:
            accelerator.step = 0
        before = dict(plugin)
        plugin["sync_with_dataloader"] = False
        try:
            yield
        finally:
            plugin.clear()
            plugin.update(before)

    def state_dict(self) -> dict[str, Any]:
        """Batches that the accelerator has counted, and whether the last one ended an accumulation."""
        return {"step": self._accelerator.step, "sync_gradients": self._accelerator.sync_gradients}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self._accelerator.step = state["step"]
        self._accelerator.sync_gradients = state["sync_gradients"]


def register_session(accelerator: Accelerator, session: Session) -> None:
    """Let ``accelerator.save_state`` keep a session too, and ``accelerator.load_state`` go on from it.

    The session lies in the folder ``esper`` beside what Accelerate writes. It holds the model, so that Accelerate
    neither writes nor loads its weights: ``load_state`` regrows what had grown. The session is loaded last.

    Args:
        accelerator: that has prepared the session's model.
        session: of the model.

    ``load_state`` raises CheckpointError where the folder has no session, before it has loaded anything, and what
    :meth:`Session.load` raises.

    Raises:
        ConfigError: if either is something else, or the accelerator has prepared another model.
    """
    _refuse_other(accelerator)
    if not isinstance(session, Session):
        raise ConfigError(f"register_session takes a session, not {session!r:.80}.")
    if not any(_is_of(session, accelerator, model) for model in accelerator._models):
        raise ConfigError(
            "The accelerator has not prepared the session's model: call accelerator.prepare(model, optimizer, ...) "
            "before register_session."
        )
    accelerator.register_for_checkpointing(_Registered(accelerator, session))


class _Registered:
    """A session among the objects that an accelerator saves; they are loaded after all else."""

    def __init__(self, accelerator: Accelerator, session: Session) -> None:
        self._accelerator, self._session = accelerator, session
        self._loaded_from: Path | None = None
        accelerator.register_save_state_pre_hook(self._before_saving)
        accelerator.register_load_state_pre_hook(self._before_loading)

    def _before_saving(self, models: list[nn.Module], weights: list[Any], folder: str | Path) -> None:
        self._session.save(Path(folder) / FOLDER)
        weights[:] = [
            one
            for model, one in zip(models, weights, strict=True)
            if not _is_of(self._session, self._accelerator, model)
        ]

    def _before_loading(self, models: list[nn.Module], folder: str | Path) -> None:
        self._loaded_from = Path(folder) / FOLDER
        if not self._loaded_from.is_dir():
            raise CheckpointError(
                f"{folder} holds no session: it was saved before register_session(accelerator, session)."
            )
        last = Path(folder) / f"custom_checkpoint_{len(self._accelerator._custom_objects) - 1}.pkl"
        if not last.is_file():
            raise CheckpointError(
                f"{folder} was not written to its end: {last.name} is missing. Load the one before; and save into a "
                "new folder, which takes its name once it is whole."
            )
        models[:] = [model for model in models if not _is_of(self._session, self._accelerator, model)]

    def state_dict(self) -> dict[str, Any]:
        return {"session": FOLDER}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert self._loaded_from is not None
        self._session.load(self._loaded_from)


def _is_of(session: Session, accelerator: Accelerator, model: nn.Module) -> bool:
    """Whether it is the session's model, as the accelerator has prepared it."""
    return session.trains(accelerator.unwrap_model(model))


def _refuse_other(accelerator: Any) -> None:
    if not isinstance(accelerator, Accelerator):
        raise ConfigError(f"An accelerate.Accelerator is needed, not {accelerator!r:.80}.")
