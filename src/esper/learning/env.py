"""Growing as a Gymnasium environment: an episode is a small real run, a step a boundary at which something may be done.

The reward comes at the end: the share of the final test loss that growing has saved at equal total FLOPs.
"""

from collections.abc import Callable, Generator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from esper.contracts.config import GrowthConfig
from esper.contracts.errors import ConfigError, EsperError
from esper.contracts.reports import Observation
from esper.learning.arrays import MOST, PLACES, Arrays, Offer, nothing, offer, shapes
from esper.learning.generated import Practice, draw
from esper.learning.paused import paused
from esper.learning.playing import Frontiers, Played, play
from esper.tamiyo.learned.actions import Action
from esper.tamiyo.learned.network import STOP, WAIT
from esper.tamiyo.learned.tokens import WIDEST

try:
    import gymnasium
    from gymnasium import spaces
except ModuleNotFoundError as error:
    raise ConfigError(f"The environment needs {error.name}: pip install 'esper-morphogenetic[learn]'.") from error

FIRST = 2
"""Choice that takes the first action; those before it wait and stop."""

Shown = tuple[Arrays, float, bool, bool, dict[str, Any]]
_Run = Generator[Offer, int, Played]


class GrowthEnv(gymnasium.Env[Arrays, np.int64]):
    """Lets an agent decide where, when and what small networks grow.

    An action waits (0), stops for the rest of the run (1), or is 2 and the index of an action that is shown. One that
    is not there waits. An observation is a dict of float32 arrays of fixed shape, those of
    :func:`esper.learning.arrays.shapes`; 0 where there is nothing. ``info["action_mask"]``, int8 ``[2 + MOST]``, tells
    which actions there are, as ``action_space.sample`` takes it.

    The reward is 0 but at the end of an episode: there it is the share of the final test loss that was saved, beside
    the host alone trained for as many FLOPs; all that was tried is paid for. ``info`` of the last step tells ``flops``,
    relative to the run that never grew, and how many grafts were ``tried`` and ``adopted``. A run that cannot go on is
    truncated, with reward 0 and the reason in ``info["fault"]``.

    An episode follows from its seed and its actions. In a task in which nothing can be done the first observation shows
    no action, and the first step ends the episode.

    Args:
        config: how runs may grow; its seed is not used.
        make_practice: the task of a seed.
        folder: where losses of hosts alone are kept from one process to the next; None keeps them in memory.
    """

    def __init__(
        self,
        config: GrowthConfig | None = None,
        make_practice: Callable[[int], Practice] = draw,
        folder: Path | None = None,
    ) -> None:
        self._config, self._make_practice = config or GrowthConfig(), make_practice
        self._frontiers = Frontiers(self._config, folder)
        self._run: _Run | None = None
        self._told: dict[str, Any] = {}
        self._now: Offer | Played | EsperError = Offer(nothing(), [])
        self.action_space = spaces.Discrete(FIRST + MOST)
        features = {"run": WIDEST, "places": WIDEST, "actions": WIDEST}
        self.observation_space: spaces.Space[Any] = spaces.Dict(
            {
                name: spaces.Box(-features[name], features[name], shape, np.float32)
                if name in features
                else spaces.Box(0, PLACES - 1 if name == "place_of" else 1, shape, np.float32)
                for name, shape in shapes().items()
            }
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Arrays, dict[str, Any]]:
        """Begin an episode.

        Args:
            seed: of its task, and of the tasks of later episodes; None draws the next of these.
            options: are not used.
        """
        super().reset(seed=seed)
        self.close()
        number = int(self.np_random.integers(2**31)) if seed is None else seed
        practice, config = self._make_practice(number), self._config

        def work(ask: Callable[[Offer], int]) -> Played:
            def choose(seen: Observation, actions: Sequence[Action]) -> int:
                shown = offer(seen, config, actions)
                chosen = ask(shown)
                return chosen if chosen in (WAIT, STOP) else FIRST + shown.kept[chosen - FIRST]

            return play(practice, config, choose, self._frontiers)

        self._told = {"seed": number, "family": practice.family}
        self._run = paused(work)
        self._now = _next(self._run.__next__)
        return self._seen, self._info

    def step(self, action: np.int64 | int) -> Shown:
        """Do something at a boundary, and train on to the next one at which something may be done.

        Raises:
            ConfigError: if no episode has begun, or it has ended.
        """
        run = self._run
        if run is None:
            raise ConfigError("There is no episode to step in. Call reset first.")
        if isinstance(self._now, Offer):
            chosen = int(action) if 0 <= action < FIRST + len(self._now.kept) else WAIT
            self._now = _next(partial(run.send, chosen))
        end = self._now
        if isinstance(end, Offer):
            return self._seen, 0.0, False, False, self._info
        self.close()
        if isinstance(end, EsperError):
            return self._seen, 0.0, False, True, {**self._info, "fault": str(end)}
        told = {"flops": end.flops, "tried": end.tried, "adopted": end.adopted}
        return self._seen, end.saved, True, False, {**self._info, **told}

    def close(self) -> None:
        """End the run that is under way."""
        if self._run is not None:
            self._run.close()
            self._run = None

    @property
    def _seen(self) -> Arrays:
        return self._now.arrays if isinstance(self._now, Offer) else nothing()

    @property
    def _info(self) -> dict[str, Any]:
        mask = np.zeros(FIRST + MOST, dtype=np.int8)
        mask[: FIRST + (len(self._now.kept) if isinstance(self._now, Offer) else 0)] = 1
        return {**self._told, "action_mask": mask}


def _next(go_on: Callable[[], Offer]) -> Offer | Played | EsperError:
    """Another boundary, or how the episode has ended."""
    try:
        return go_on()
    except StopIteration as end:
        played: Played = end.value
        return played
    except EsperError as error:
        return error
