"""A controller of your own: what it sees, what it asks for, and what it is answered.

python examples/own_controller.py [EPOCHS]
"""

import sys

import torch
import torch.nn.functional as F
from torch import nn

import esper

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 40


class MostWanted:
    """From a tenth of the run on, twice: offers the two places at which the loss gradient is largest.

    A round then decides whether either of them stays.
    """

    def __init__(self, config: esper.GrowthConfig) -> None:
        self.config = config
        self.refused: list[str] = []

    def decide(self, observation: esper.Observation) -> list[esper.Command]:
        """Called at every boundary at which nothing is on trial."""
        seen = observation
        is_time = 0.1 <= seen.step / seen.planned_steps <= 0.6
        if not is_time or seen.active or seen.rounds_done >= self.config.max_rounds:
            return []
        wanted = sorted((place for place in seen.places if place.is_dormant), key=self.gradient, reverse=True)
        return [
            esper.Command(
                place.layer_id,
                "all",
                esper.State.GERMINATED,
                f"gradient {self.gradient(place):.2g}",
                who="most_wanted",
                version=max(place.versions),  # refused if anything has happened to its seeds since
                blueprint="bottleneck_mlp",
                settings={"hidden": 32},
            )
            for place in wanted[:2]
        ]

    def answered(self, answer: esper.Answer) -> None:
        """Called once for every command; the shield and the budgets may have refused it."""
        if not answer.accepted:
            self.refused.append(answer.reason)

    @staticmethod
    def gradient(place: esper.PlaceReport) -> float:
        """The largest among its seeds; columns that were not measured are None."""
        measured = place.seeds.gradient_norm if place.seeds is not None else None
        return max(measured or (0.0,))


esper.register_policy("most_wanted", MostWanted)  # for code that builds policies by their names

generator = torch.Generator().manual_seed(0)
x = torch.rand(2000, 2, generator=generator) * 4 - 2
y = (torch.sin(4 * x[:, 0]) + torch.sin(4 * x[:, 1]) > 0).long()  # an egg box
train, held_out = slice(0, 1000), slice(1000, 2000)

torch.manual_seed(0)
config = esper.GrowthConfig(layers=["", "0", "2"], max_growth=40.0, compare="steps", round_fraction=0.2)
model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
model = esper.wrap(model, config, example=x[:8])
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
loader = esper.BatchLoader((x[train], y[train]), batch_size=32, seed=0)


def evaluate(model):
    """One loss per held-out sample, always in the same order."""
    logits = model(x[held_out])
    return esper.Evaluation(
        losses=F.cross_entropy(logits, y[held_out], reduction="none"), correct=logits.argmax(1) == y[held_out]
    )


def tell(event):
    """A listener: hears every line of the logs, where nothing is half done."""
    if event["event"] in ("veto", "refused"):
        print(f"  step {event['step']}: {event['layer_id'] or 'the model'} was refused: {event['reason']}")
    elif event["event"] == "round_ended":
        print(f"  step {event['step']}: round {event['round']} ended: {event['reason']}")


policy = MostWanted(config)
session = esper.Session(
    model,
    optimizer,
    loss=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
    evaluate=evaluate,
    planned_steps=EPOCHS * len(loader),
    loader=loader,
    policy=policy,
    on_event=tell,
)
for epoch in range(EPOCHS):
    for batch in loader:
        session.step(batch)
    session.after_epoch()
    if (epoch + 1) % max(1, EPOCHS // 5) == 0:
        print(f"epoch {epoch + 1:3}: held-out accuracy {evaluate(model).correct.float().mean():.1%}")
session.finish()

for report in session.field_reports:
    print(f"{report.blueprint} at {report.layer_id or 'the model'!r}: {report.outcome} ({report.reason})")
print(f"{len(policy.refused)} commands were refused")
print(f"\n{esper.summary(model)}")
