"""Records in which what becomes of an action follows a rule: one blueprint saves, the others cost."""

import random
from dataclasses import replace

from esper.contracts.config import GrowthConfig
from esper.learning.records import Record, Seen, Tried
from esper.tamiyo.learned.actions import legal_actions
from tests.tamiyo.seen import NOW

CONFIG = GrowthConfig(blueprints=("bottleneck_mlp", "glu", "low_rank"))
GOOD = "bottleneck_mlp"
SAVES, COSTS = 0.1, -0.02
ACTIONS = legal_actions(NOW, CONFIG)


def record(seed: int, boundaries: int = 4, tries: int = 8, *, is_good: bool = True) -> Record:
    """A task whose losses and tries are drawn; ``is_good=False`` turns the rule around."""
    chance = random.Random(seed)
    losses = [1.0 + chance.random() for _ in range(3)]
    seen = [
        Seen(
            number,
            replace(
                NOW,
                step=60 + 20 * number,
                epoch=number,
                select_losses=(*losses, *(0.8 - 0.05 * x for x in range(number + 1))),
            ),
            0 if number == 2 else None,
        )
        for number in range(boundaries)
    ]
    tried = []
    for _ in range(tries):
        action = chance.randrange(len(ACTIONS))
        is_adopted = (ACTIONS[action].option.blueprint.id == GOOD) is is_good
        noise = 0.002 * chance.gauss(0, 1)
        tried.append(
            Tried(
                chance.randrange(boundaries),
                action,
                None,
                is_adopted,
                (SAVES if is_adopted else COSTS) + noise,
                1.1,
            )
        )
    return Record("planted", seed, CONFIG, seen, tried, (-0.01, 1.2), 1.0)


RECORDS = [record(seed) for seed in range(20)]
