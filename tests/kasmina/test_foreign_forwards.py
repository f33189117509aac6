"""What libraries do to a wrapped model: forwards on the instance, adapters, state dicts."""

import copy
import io

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from torch import nn

import esper
from esper import ConfigError
from esper.contracts.lifecycle import State
from esper.kasmina.host.layer import KasminaLayer
from tests.kasmina.growing import grow, mlp, place_of, wrapped

X = torch.linspace(-1, 1, 5 * 6).view(5, 6)


def in_bf16(model: nn.Module) -> nn.Module:
    """As Accelerate prepares a model for mixed precision: it sets a forward on the instance."""
    assert accelerator().prepare(model) is model
    assert "forward" in vars(model)
    return model


def accelerator() -> Accelerator:
    return Accelerator(mixed_precision="bf16", cpu=True)


def grown(model: nn.Module) -> nn.Module:
    for layer_id in ("", "2"):
        grow(place_of(model, layer_id), "all", State.FOSSILIZED, hidden=3)
    return model


@pytest.mark.parametrize("keeps", [True, False])
def test_the_export_of_a_model_in_mixed_precision_is_the_plain_one(keeps):
    model, same = (grown(wrapped(mlp(6, 6, 3), {"": 1, "2": 1})) for _ in range(2))
    in_bf16(model)
    inner = accelerator().unwrap_model(model, keep_fp32_wrapper=keeps)
    plain = esper.export(inner, example=X)
    assert torch.equal(plain(X), same(X))
    assert "forward" not in vars(plain)
    assert torch.equal(model(X), same(X)) != keeps
    assert "forward" in vars(model)


@pytest.mark.parametrize("keeps", [True, False])
def test_a_dormant_model_in_mixed_precision_is_unwrapped(keeps):
    model = in_bf16(wrapped(mlp(6, 6, 3), {"": 1, "2": 1}))
    wanted = model(X)
    esper.unwrap(model)
    assert torch.equal(model(X), wanted)
    inner = accelerator().unwrap_model(model, keep_fp32_wrapper=keeps)
    assert torch.equal(inner(X), wanted if keeps else mlp(6, 6, 3)(X))


def test_a_model_that_was_prepared_first_is_refused_with_the_remedy():
    with pytest.raises(ConfigError, match=r"The model \(Sequential\) has a forward of its own.*call esper.wrap before"):
        esper.wrap(in_bf16(mlp(6, 6, 3)))


def test_a_forward_that_goes_past_the_seeds_is_refused_when_a_session_is_built_and_by_the_export():
    model = wrapped(mlp(6, 6, 3), {"2": 1})
    model[2].forward = lambda x: x
    settings = {"loss": lambda model, x: model(x).sum(), "evaluate": lambda model: None, "planned_steps": 2}
    with pytest.raises(ConfigError, match=r"'2' was given a forward on the instance after esper\.wrap"):
        esper.Session(model, torch.optim.SGD(model.parameters(), 0.1), **settings)
    with pytest.raises(ConfigError, match=r"'2' was given a forward on the instance after esper\.wrap"):
        esper.export(model)


def lora() -> nn.Module:
    torch.manual_seed(0)
    return get_peft_model(mlp(6, 5, 2), LoraConfig(r=2, target_modules=["0"], init_lora_weights=False)).eval()


ADAPTED = "base_model.model.0"


def test_a_layer_with_adapters_is_one_place():
    model = esper.wrap(lora(), example=X)
    places = [line.split()[0] for line in esper.summary(model).splitlines()[1:-1]]
    assert places == [ADAPTED, "base_model.model.2", "base_model.model"]


@pytest.mark.parametrize("name", [f"{ADAPTED}.lora_A.default", f"{ADAPTED}.base_layer"])
def test_a_part_of_a_layer_with_adapters_is_refused(name):
    with pytest.raises(ConfigError, match=f"a part of '{ADAPTED}', a layer with adapters.*Name '{ADAPTED}'"):
        esper.wrap(lora(), esper.GrowthConfig(layers=[name]), example=X)


def test_the_model_around_adapters_is_refused():
    with pytest.raises(ConfigError, match=r"Name the model in it, 'base_model\.model'"):
        esper.wrap(lora(), esper.GrowthConfig(layers=[""]), example=X)


@pytest.mark.parametrize("is_exported", [False, True])
def test_adapters_of_a_grown_layer_are_not_merged_away(is_exported, tmp_path):
    model = esper.wrap(lora(), esper.GrowthConfig(layers=[ADAPTED], seeds_per_layer=1), example=X)
    grow(place_of(model, ADAPTED), "all", State.FOSSILIZED, hidden=3)
    one = reloaded(esper.export(model)) if is_exported else model
    assert torch.equal(one(X), model(X))
    with pytest.raises((ConfigError, AssertionError), match="would lose what grew"):
        one.merge_and_unload()
    with pytest.raises((ConfigError, AssertionError), match="would lose what grew"):
        one.save_pretrained(tmp_path)


@pytest.mark.parametrize("grows_at", [None, "base_model.model.2", "base_model.model"])
def test_other_adapters_are_merged_and_grafts_stay(grows_at):
    model = esper.wrap(lora(), esper.GrowthConfig(layers=[ADAPTED, grows_at or "base_model.model.2"]), example=X)
    if grows_at:
        grow(place_of(model, grows_at), "all", State.FOSSILIZED, hidden=3)
    wanted = model(X)
    merged = esper.export(model).merge_and_unload()
    torch.testing.assert_close(merged(X), wanted)
    assert type(merged) is nn.Sequential


def reloaded(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_a_dormant_model_writes_the_keys_of_the_bare_host_and_loads_them():
    bare, model = mlp(6, 6, 3), wrapped(mlp(6, 6, 3), {"": 1, "2": 3})
    assert list(model.state_dict()) == list(bare.state_dict())
    bare.load_state_dict(model.state_dict(), strict=True)
    model.load_state_dict(bare.state_dict(), strict=True)
    assert isinstance(model, KasminaLayer)


@pytest.mark.parametrize("state", [State.GERMINATED, State.TRAINING, State.GRAFTING, State.FOSSILIZED])
def test_a_model_writes_all_of_its_own_once_a_seed_is_awake(state):
    model, other = (wrapped(mlp(6, 6, 3), {"": 1, "2": 3}) for _ in range(2))
    grow(place_of(model, "2"), 1, state, hidden=3)
    assert {key.partition("._esper.")[0] for key in model.state_dict() if "_esper" in key} >= {"2"}
    assert any(key.startswith("_esper.") for key in model.state_dict())
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(other(X), model(X))
    assert other.state_dict().keys() == model.state_dict().keys()


def test_what_a_dormant_model_wrote_takes_away_what_grew_since_and_a_bare_state_does_not():
    model = wrapped(mlp(6, 6, 3), {"": 1, "2": 3})
    dormant, before = copy.deepcopy(model.state_dict()), model(X)
    grow(place_of(model, "2"), 1, State.FOSSILIZED, hidden=3)
    after = model(X)
    for assign in (False, True):
        model.load_state_dict(dict(dormant), strict=True, assign=assign)
        assert torch.equal(model(X), after)
    file = io.BytesIO()
    torch.save(dormant, file)
    file.seek(0)
    model.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert torch.equal(model(X), before)
    assert list(model.state_dict()) == list(mlp(6, 6, 3).state_dict())


def test_adapters_that_are_added_around_a_wrapped_model_are_refused():
    model = get_peft_model(esper.wrap(mlp(6, 5, 2), example=X), LoraConfig(r=2, target_modules=["2"]))
    with pytest.raises(esper.ConfigError, match=r"PeftModel around a wrapped model\. Add adapters"):
        esper.Session(model, torch.optim.SGD(model.parameters()), loss=None, evaluate=None, planned_steps=1)
