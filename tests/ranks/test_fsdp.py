"""Two ranks among which ``fully_shard`` deals out the parameters do to the bit the same, and what one does with all
samples."""

import io

import numpy as np
import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import esper
from esper.kasmina.host.anchoring import is_espers
from esper.shards import is_sharded, own, whole
from esper.tasks.gpt import GPT
from tests.kasmina.growing import grow, place_of
from tests.ranks.launch import heard
from tests.runtime import toy
from tests.runtime.toy import Script, growing

pytestmark = pytest.mark.skipif(not distributed.is_available(), reason="torch was built without it")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    names = ("sharded bare", "sharded dormant", "sharded half", "sharded grown")
    return heard(tmp_path_factory.mktemp("two"), 2, *names)


def test_seeds_that_sleep_change_nothing(two):
    assert two[0]["sharded bare"] == two[0]["sharded dormant"]


def assert_same(first, second):
    assert first == second
    assert "FINE_TUNING" in [target for *_, target, arm in first["moves"] if arm is None]


def assert_as_one(told, alone):
    assert told["moves"] == alone["moves"]
    for weights, others in zip(told["weights"], alone["weights"], strict=True):
        assert np.allclose(weights, others, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["grown", "half"])
def test_ranks_decide_and_hold_the_same(two, name):
    assert_same(*(rank[f"sharded {name}"] for rank in two))


def test_two_ranks_do_what_one_does_with_all_samples(two, one):
    assert_as_one(two[0]["sharded grown"], one["grown"])


@pytest.mark.long
def test_so_do_steps_of_ones_own_in_a_live_trial(tmp_path, one):
    ends = [rank["sharded live"] for rank in heard(tmp_path, 2, "sharded live")]
    assert_same(*ends)
    assert_as_one(ends[0], one["live"])


def sharded(model: nn.Module) -> nn.Module:
    for layer in (one for one in model if isinstance(one, nn.Linear)):
        fully_shard(layer)
    return fully_shard(model)


def session(model: nn.Module, **told) -> esper.Session:
    optimizer = told.pop("optimizer", None) or torch.optim.AdamW(model.parameters(), lr=0.03)
    arguments = {"loss": toy.loss, "evaluate": toy.evaluate, "planned_steps": 80, "policy": Script({1: [""]})}
    return esper.Session(model, optimizer, **arguments | told)


def trained(model: nn.Module, **told) -> esper.Session:
    run = session(model, **told)
    for epoch in range(8):
        for batch in toy.batches(epoch):
            run.step(batch)
        run.after_epoch()
    run.finish()
    return run


@pytest.mark.usefixtures("alone")
class TestAShardedModel:
    def test_is_exported_whole_without_a_trace(self):
        model = sharded(esper.wrap(toy.host(), growing()))
        run = trained(model)
        assert any(place.is_growing for place in run._run.places.values())
        plain = esper.export(model, example=toy.DATA.held_x)
        with torch.no_grad():
            assert torch.equal(plain(toy.DATA.held_x), model(toy.DATA.held_x))
        torch.save(plain, io.BytesIO())
        assert [type(one) for one in plain[:3]] == [nn.Linear, nn.ReLU, nn.Linear]
        assert not [key for one in plain.modules() for key in vars(one) if "fsdp" in key or "composable" in key]

    def test_has_its_own_parts_after_a_pass_without_gradients(self):
        def whole_after_a_pass(model: nn.Module) -> list[str]:
            with torch.no_grad():
                model(toy.DATA.held_x)
            return [name for name, one in model.named_parameters() if not is_sharded(one) and not is_espers(name)]

        assert whole_after_a_pass(fully_shard(toy.host()))  # of torch alone
        model = fully_shard(esper.wrap(toy.host(), growing()))
        session(model)
        assert whole_after_a_pass(model) == []

    def test_is_clipped_by_the_norm_of_all(self):
        weights = nn.Linear(3, 2), nn.Linear(3, 2)
        weights[1].load_state_dict(weights[0].state_dict())
        grafts = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
        norms = []
        for layer, graft, clip in zip(weights, grafts, (nn.utils.clip_grad_norm_, esper.clip_grad_norm_), strict=True):
            if clip is esper.clip_grad_norm_:
                fully_shard(layer)
            (layer(torch.ones(5, 3)).sum() + (3 * graft).sum()).backward()
            norms.append(whole(clip([*layer.parameters(), graft], 0.5)))
        torch.testing.assert_close(*norms)
        torch.testing.assert_close(grafts[0].grad, grafts[1].grad)
        torch.testing.assert_close(weights[0].weight.grad, own(weights[1].weight.grad))

    @pytest.mark.filterwarnings("error")
    def test_may_work_in_place_on_what_a_graft_is_added_to(self):
        def host() -> nn.Module:
            model = toy.host()
            model[1] = nn.ReLU(inplace=True)
            return esper.wrap(model, growing(layers=["0"]))

        policy = Script({1: ["0"]})
        plain, model = host(), sharded(host())
        for one in (plain, model):
            run = trained(one, policy=policy)
            assert "GRAFTING" in [event["target"] for event in run.events if event["event"] == "transition"]
        for one, other in zip(plain.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(own(other), one)

    @pytest.mark.filterwarnings("error")
    def test_hands_new_channels_on_between_its_sharded_modules(self):
        """Without a session they are lost on the way."""
        tokens = torch.randint(11, (4, 8), generator=torch.Generator().manual_seed(0))

        def grown(shard: bool, *, has_session: bool = True) -> tuple[nn.Module, Tensor]:
            torch.manual_seed(0)
            model = esper.wrap(GPT(11, 8, 8, 8, 2, 2), growing(layers=None), example=tokens)
            for block in [*model.blocks, model] if shard else []:
                fully_shard(block)
            if has_session:
                session(model, loss=lambda model, batch: model(batch).sum(), evaluate=worth)
            grow(place_of(model, "*"), blueprint="widen")
            y = model(tokens)
            y.square().sum().backward()
            return model, y

        def worth(model: nn.Module) -> esper.Evaluation:
            return esper.Evaluation(losses=model(tokens.repeat(3, 1)).square().mean((1, 2)))

        (plain, wanted), (model, y) = grown(False), grown(True)
        torch.testing.assert_close(y, wanted)
        for one, other in zip(plain.parameters(), model.parameters(), strict=True):
            if one.grad is not None:
                torch.testing.assert_close(own(other.grad), one.grad)
        with pytest.warns(UserWarning, match="returned a view"):
            assert not torch.allclose(grown(True, has_session=False)[1], wanted)

    def test_is_refused_where_it_cannot_be_trained(self):
        with pytest.raises(esper.ConfigError, match="Wrap the bare model first, then fully_shard it"):
            esper.wrap(sharded(toy.host()), growing())
        model = esper.wrap(toy.host(), growing())
        optimizer = torch.optim.AdamW(model.parameters())
        sharded(model)
        with pytest.raises(esper.ConfigError, match=r"Build it after fully_shard\(model\)"):
            session(model, optimizer=optimizer)
        with pytest.raises(esper.ConfigError, match="scaler cannot be used with fully_shard"):
            session(model, scaler=torch.amp.GradScaler("cpu"))
        with pytest.raises(esper.ConfigError, match=r"Call esper\.unwrap before that"):
            esper.unwrap(model)
        over_two = esper.wrap(toy.host(), growing())
        fully_shard(over_two, mesh=init_device_mesh("cpu", (1, 1), mesh_dim_names=("copies", "parts")))
        with pytest.raises(esper.ConfigError, match="neither HSDP nor tensor parallelism"):
            session(over_two)
