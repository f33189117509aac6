import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import esper
from esper.contracts.errors import ConfigError, TransitionError
from esper.contracts.lifecycle import State
from esper.flags import resolve
from esper.kasmina.host.anchoring import places
from esper.legacy.files import load, save
from esper.legacy.layer import LegacyConfig, LegacyKasminaLayer
from esper.migration.hybrid import HybridKasminaLayer, attach, wrap_model
from tests.legacy.models import bare, batch, chain, grown
from tests.migration.flags import NEW, flags

BOTH = {"CHUNKED_ARCHITECTURE": "1", "EXTENDED_LIFECYCLE": "100%"}
OLD_CALLS = ("request_germination", "begin_grafting", "advance", "cancel_germination", "get_layer_stats")


def hybrid(values, **config):
    return lambda layer: HybridKasminaLayer(layer, LegacyConfig(**config), values)


def session_of(model: nn.Module, planned_steps: int = 60) -> esper.Session:
    x, y = torch.randn(600, 6), torch.randint(3, (600,))
    return esper.Session(
        model,
        torch.optim.AdamW(model.parameters(), lr=1e-2),
        loss=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
        evaluate=lambda model: esper.Evaluation(losses=F.cross_entropy(model(x), y, reduction="none")),
        planned_steps=planned_steps,
    )


def joined(**config):
    model = wrap_model(chain(hybrid(NEW, **config)), esper.GrowthConfig(seeds_per_layer=1, max_growth=50.0))
    session = session_of(model)
    attach(model, session)
    return model, session


@pytest.mark.parametrize(
    ("values", "is_old"),
    [
        (NEW, False),
        (None, True),
        (flags(), True),
        (flags(chunked_architecture=True), True),
        (flags(extended_lifecycle=True), True),
    ],
)
def test_the_flags_build_one_or_the_other_and_the_reason_stays(values, is_old):
    layer = HybridKasminaLayer(nn.Linear(6, 8), None, values)
    assert isinstance(layer, HybridKasminaLayer)
    assert isinstance(layer, LegacyKasminaLayer) is is_old
    reasons = [flag.reason for flag in layer.decided_by]
    assert reasons == ([] if values is None else ["set for chunked_architecture", "set for extended_lifecycle"])
    with pytest.warns(DeprecationWarning, match="get_layer_stats"):
        assert layer.get_layer_stats()["architecture"] == ("legacy" if is_old else "chunked")


@pytest.mark.parametrize(("environment", "is_old"), [({}, True), ({"CHUNKED_ARCHITECTURE": "1"}, True), (BOTH, False)])
def test_what_nobody_switched_on_leaves_the_old_layer(environment, is_old):
    resolved = resolve("some-model", environment={f"ESPER_FLAG_{name}": value for name, value in environment.items()})
    assert isinstance(HybridKasminaLayer(nn.Linear(6, 8), None, resolved), LegacyKasminaLayer) is is_old


@pytest.mark.parametrize("values", [NEW, None])
def test_dormant_it_computes_what_the_base_layer_does_to_the_bit(values):
    model = chain(hybrid(values))
    assert torch.equal(model(batch()), chain(bare)(batch()))
    assert torch.equal(copy.deepcopy(model)(batch()), chain(bare)(batch()))


@pytest.mark.parametrize("values", [NEW, None])
def test_every_old_call_works_on_both_and_says_what_to_write_instead(values):
    if values is None:
        model = chain(hybrid(None))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    else:
        model, _ = joined()
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    layer = model[0]
    arguments = {"request_germination": (0, "bottleneck_mlp", "fixed_ramp"), "begin_grafting": (optimizer,)}
    for name in OLD_CALLS:
        given = (0,) if name == "cancel_germination" else arguments.get(name, ())
        with pytest.warns(
            DeprecationWarning, match=rf"{name} is of the old layer\. Write instead: .*docs/migrating\.md"
        ):
            getattr(layer, name)(*given)
    with pytest.warns(DeprecationWarning, match="get_health_report is of the old layer"):
        report = layer.get_health_report()[0]
    assert report == {
        "state": "CULLED" if values is None else "CANCELLED",
        "alpha": 0.0,
        "blueprint": None,
        "is_finite": True,
    }


@pytest.mark.filterwarnings("ignore:request_germination:DeprecationWarning")
def test_a_new_layer_asks_its_session_with_the_settings_of_the_blueprint():
    model, session = joined(blueprints={"bottleneck_mlp": {"hidden": 3}})
    model[2].request_germination(0, "bottleneck_mlp")
    (graft,) = next(place for place in places(model) if place.layer_id == "2.base_layer").arena.grafts.values()
    assert graft.blueprint.hidden == 3
    session.finish()
    assert [report.layer_id for report in session.field_reports] == ["2.base_layer"]


@pytest.mark.filterwarnings("ignore:.* is of the old layer:DeprecationWarning")
def test_a_new_layer_without_a_session_refuses_and_changes_nothing():
    model = wrap_model(chain(hybrid(NEW)))
    for ask in (lambda: model[0].request_germination(0, "low_rank"), lambda: model[0].cancel_germination(0)):
        with pytest.raises(TransitionError, match=r"has no session.*attach\(session\) first"):
            ask()
    assert not any(place.state.lifecycle.any() for place in places(model))


@pytest.mark.filterwarnings("ignore:request_germination:DeprecationWarning")
def test_what_the_session_refuses_is_raised():
    model, _ = joined()
    with pytest.raises(ConfigError, match="Did you mean 'low_rank'"):
        model[0].request_germination(0, "low_rang")
    model[0].request_germination(0, "low_rank")
    with pytest.raises(TransitionError, match="cannot go from GERMINATED"):
        model[0].request_germination(0, "low_rank")


def test_a_session_of_another_model_is_refused():
    _, session = joined()
    other = wrap_model(chain(hybrid(NEW)))
    with pytest.raises(ConfigError, match="does not train this layer"):
        attach(other, session)


def test_a_layer_alone_grows_in_a_session_of_its_own():
    layer = HybridKasminaLayer(nn.Linear(6, 3), None, NEW)
    session = session_of(layer.base_layer)
    layer.attach(session)
    with pytest.warns(DeprecationWarning, match="request_germination"):
        layer.request_germination(0, "low_rank")
    assert State(int(layer.place.state.lifecycle[0])) is State.GERMINATED


def test_old_layers_in_a_model_for_a_session_are_refused():
    with pytest.raises(ConfigError, match="'0' is an old layer"):
        wrap_model(chain(hybrid(flags(chunked_architecture=True))))
    with pytest.raises(ConfigError, match="no HybridKasminaLayer"):
        wrap_model(chain(bare))


def test_a_model_that_cannot_be_wrapped_keeps_its_layers_as_they_were():
    model = chain(hybrid(NEW))
    with pytest.raises(ConfigError):
        wrap_model(model, esper.GrowthConfig(exclude=["nothing"]))
    assert [place.layer_id for place in places(model)] == ["", ""]
    wrap_model(model)
    assert [place.layer_id for place in places(model)] == ["0.base_layer", "2.base_layer"]


def test_files_of_the_old_layer_load_into_hybrid_ones_and_back(tmp_path):
    old, other, again = chain(), chain(hybrid(None)), chain()
    grown(old[0])
    save(old, tmp_path / "old")
    load(other, tmp_path / "old")
    save(other, tmp_path / "hybrid")
    load(again, tmp_path / "hybrid")
    assert torch.equal(other(batch()), old(batch()))
    assert torch.equal(again(batch()), old(batch()))
