"""What must be equal for a checkpoint to be of a run."""

from typing import Any

from esper.checkpoint.shape import check_shape
from esper.contracts.errors import CheckpointError
from esper.kasmina.grafts.strategies import STRATEGIES
from esper.runtime.run import Run
from esper.runtime.saved import SavedIdentity


class Identity:
    """Tells the checkpoints of one run from those of others. Built before the run has changed anything.

    Args:
        run: the run.
        policy: its controller.
        loader: its loader, or None.
    """

    def __init__(self, run: Run, policy: Any, loader: Any) -> None:
        self._policy, self._loader = policy, loader
        self._facts = {"planned_steps": run.planned_steps, "held_out_samples": run.judge.num_samples}
        self._num_ranks = run.ranks.size
        self._num_seeds = {layer_id: place.state.num_seeds for layer_id, place in run.places.items()}

    def to_dict(self) -> dict[str, Any]:
        """What a checkpoint stores of it."""
        return {
            "facts": self._facts | {"ranks": self._num_ranks},
            "num_seeds": self._num_seeds,
            "strategies": list(STRATEGIES),
        }

    def check(self, state: Any) -> None:
        """Refuse a checkpoint of another run. Which places there are is compared with the model's tensors.

        Raises:
            CheckpointError: naming what differs.
        """
        if not isinstance(state, dict) or not state.keys() >= {"identity", "loader", "policy"}:
            raise CheckpointError("The checkpoint was not saved by a session.")
        saved = state["identity"]
        check_shape(saved, SavedIdentity, "identity")
        differing: list[tuple[str, Any, Any]] = [
            (name, self._facts[name], saved["facts"].get(name)) for name in self._facts
        ]
        differing += [
            (f"seeds at the start at {layer_id!r}", count, saved["num_seeds"].get(layer_id, count))
            for layer_id, count in self._num_seeds.items()
        ]
        # codes of strategies are stored in tensors; one that was registered since then has a code of its own
        known = list(STRATEGIES)[: len(saved["strategies"])]
        differing.append(("grafting strategies", known, saved["strategies"]))
        for name, here, there in differing:
            if here != there:
                raise CheckpointError(f"The checkpoint is of another run: {name} is {here!r} here and {there!r} there.")
        if self._loader is not None and state["loader"] is None:
            raise CheckpointError(
                "The checkpoint holds no position in the data: it was saved by a session without loader."
            )
        remembers = hasattr(self._policy, "load_state_dict")
        if remembers != (state["policy"] is not None):
            name = type(self._policy).__name__
            what = (
                f"no state of a policy, and {name} needs one"
                if remembers
                else f"the state of a policy, and {name} takes none"
            )
            raise CheckpointError(f"The checkpoint holds {what}. Resume with the policy that it was saved with.")
