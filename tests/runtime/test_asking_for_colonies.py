"""A colony is asked for, refused, taken back and told like any other place."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import esper
from esper.contracts.errors import ConfigError, TransitionError
from esper.contracts.lifecycle import State
from esper.kasmina.host.summary import anatomy
from esper.runtime.commands.seeds import VetoError
from esper.tasks.gpt import GPT

WORDS = torch.randint(12, (64, 9), generator=torch.Generator().manual_seed(0))


def host() -> GPT:
    torch.manual_seed(0)
    return GPT(12, context=8, width=8, hidden=8, heads=2, blocks=2)


def session(**settings) -> esper.Session:
    model = esper.wrap(host(), esper.GrowthConfig(max_rounds=0, **settings), example=WORDS[:2, :-1])

    def evaluate(model: nn.Module) -> esper.Evaluation:
        logits = model(WORDS[:, :-1]).transpose(1, 2)
        return esper.Evaluation(losses=F.cross_entropy(logits, WORDS[:, 1:], reduction="none").mean(1))

    return esper.Session(
        model,
        torch.optim.AdamW(model.parameters()),
        loss=lambda model, batch: F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten()),
        evaluate=evaluate,
        planned_steps=100,
    )


def outcomes(run: esper.Session) -> list[tuple[str, str, str]]:
    return [(one.layer_id, one.blueprint, one.outcome) for one in run.field_reports]


def train(run: esper.Session, epochs: int) -> None:
    for _ in range(epochs):
        for batch in WORDS.split(16):
            run.step(batch)
        run.after_epoch()


@pytest.mark.parametrize(("layer_id", "blueprint"), [("blocks.*.mlp", "widen"), ("blocks.*", "bottleneck_mlp")])
def test_a_colony_that_is_asked_for_grows_in_the_run_and_is_taken_back(layer_id, blueprint):
    run = session(max_growth=9.0)
    assert run.germinate(layer_id, blueprint=blueprint).accepted
    train(run, 1)
    assert run.cancel(layer_id, "all").accepted
    train(run, 8)
    assert outcomes(run) == [(layer_id, blueprint, "CANCELLED")]


REFUSALS = {
    "a pattern of no place": (("blocks.*.mpl", "all", "widen"), ConfigError, "Did you mean 'blocks.*.mlp'?"),
    "widen at a single place": (("blocks.0", "all", "widen"), ConfigError, "take a colony"),
    "widen beside blocks": (("blocks.*", "all", "widen"), ConfigError, "take 'bottleneck_mlp'"),
    "a path beside shared layers": (("*", "all", "glu"), ConfigError, "take 'widen'"),
    "a seed that it lacks": (("*", 1, "widen"), TransitionError, "has no seed 1"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_is_refused_with_the_remedy_and_nothing_is_changed(case):
    arguments, error, remedy = REFUSALS[case]
    run = session()
    with pytest.raises(error) as refusal:
        run.germinate(*arguments)
    assert remedy in str(refusal.value)
    train(run, 1)
    assert outcomes(run) == []


def test_a_budget_that_is_too_small_for_every_piece_is_a_veto_that_says_so():
    with pytest.raises(VetoError, match="raise max_growth"):
        session(max_growth=0.001).germinate("blocks.*.mlp", blueprint="widen")


@pytest.mark.parametrize(
    ("colonies", "has_example", "remedy"),
    [
        (["blocks.*.mpl"], True, "Did you mean 'blocks.*.mlp'?"),
        (["blocks.*"], False, "give esper.wrap an example"),
    ],
)
def test_colonies_that_cannot_be_are_refused_when_the_model_is_wrapped(colonies, has_example, remedy):
    model = host()
    with pytest.raises(ConfigError) as refusal:
        esper.wrap(model, esper.GrowthConfig(colonies=colonies), example=WORDS[:2, :-1] if has_example else None)
    assert remedy in str(refusal.value)
    assert type(model) is GPT


def test_the_summary_counts_pieces_and_the_log_names_them():
    model = esper.wrap(host(), esper.GrowthConfig(colonies=["blocks.*.mlp"]), example=WORDS[:2, :-1])
    (colony,) = [one for one in anatomy(model)["places"] if one["kind"] == "colony"]
    layers = [f"blocks.{block}.mlp.{layer}" for block in range(2) for layer in (0, 2)]
    assert [one["module"] for one in colony["pieces"] if one["role"] == "linear"] == layers
    assert f"colony of {len(colony['pieces'])}" in esper.summary(model)
    assert State.DORMANT.name in esper.summary(model)
