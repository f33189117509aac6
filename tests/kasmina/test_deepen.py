"""A copy behind every block: it gives what it reads at birth, learns as a whole, and leaves no trace."""

import copy
import dataclasses
import io

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import esper
from esper.blueprints.catalogue import make_blueprint
from esper.blueprints.deepen import Deepen
from esper.contracts.errors import ConfigError
from esper.contracts.lifecycle import State
from esper.kasmina.grafts import colony, group
from esper.kasmina.grafts.graft import unflatten
from esper.kasmina.grafts.guard import FOSSIL_FAULT, LIVE_FAULT
from esper.kasmina.host.wrapping import host_state_dict, traced
from esper.kasmina.places.place import Place
from esper.kasmina.places.variation import Variation
from esper.tasks.gpt import GPT
from tests.kasmina.deepened import HOSTS, Encoder, ResNet, built, copied, deepened, padded, rooted
from tests.kasmina.growing import grow, host_grads, place_of, remove

each = pytest.mark.parametrize("name", HOSTS)


def born(place: Place, until: State = State.FINE_TUNING, **settings) -> int:
    return grow(place, until=until, blueprint="deepen", scale=None, **settings)


def named(place: Place, tensor_N: Tensor) -> dict[str, Tensor]:
    """What belongs to every tensor of a live graft, by the block's and the tensor's name."""
    (graft,) = place.arena.live
    sizes = [graft.blueprint.num_parameters(part) for part in graft.parts]
    return {
        f"{piece.module}.{name}": value
        for piece, part, flat in zip(graft.pieces, graft.parts, tensor_N.split(sizes), strict=True)
        for name, value in unflatten(graft.blueprint, part, flat).items()
    }


def drift(place: Place, scale: float = 0.1) -> None:
    """Move all parameters of the live graft."""
    (graft,) = place.arena.live
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        params = place.arena.params_of(graft)
        params.add_(torch.randn(params.shape, generator=generator) * scale)


def outputs(model: nn.Module, example: tuple[Tensor, ...]) -> list[Tensor]:
    """In train and in eval mode, and what the first leaves of the random stream."""
    seen = []
    for mode in (True, False):
        torch.manual_seed(1)
        seen += [model.train(mode)(*example).detach(), torch.rand(3)]
    return seen


class TestWhatIsCopied:
    @each
    def test_the_last_layers_of_each_branch_are_zero(self, name):
        *_, layer_id, zeroed = HOSTS[name]
        _, place, _ = deepened(name)
        pieces = [piece for piece in place.site.pieces if piece.role == "copy"]
        assert place.layer_id == layer_id
        assert len(pieces) >= 2
        assert {tuple(piece.copy.zeroed) for piece in pieces} == {zeroed}

    @pytest.mark.parametrize(
        ("build", "example"),
        [
            (lambda: Encoder(norm_first=False), padded),
            (lambda: ResNet(2, 2), lambda: (torch.randn(4, 3, 8, 8),)),
            (
                lambda: nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.ReLU()) for _ in range(3))),
                lambda: (torch.randn(4, 6),),
            ),
        ],
        ids=["norms behind the sums", "strides", "no stream"],
    )
    def test_blocks_that_do_not_pass_the_stream_on_are_not(self, build, example):
        torch.manual_seed(0)
        model = esper.wrap(build(), esper.GrowthConfig(), example())
        assert copied(model) == set()

    def test_nor_is_a_single_one(self):
        model = esper.wrap(ResNet(1), esper.GrowthConfig(), (torch.randn(4, 3, 6, 6),))
        assert copied(model) == set()

    def test_nor_are_those_of_a_model_that_decodes_with_a_cache(self):
        class Generating(GPT):
            generate, config = None, type("Config", (), {"use_cache": True})()

        tokens = torch.randint(0, 11, (3, 16))
        for use_cache in (True, False):
            Generating.config.use_cache = use_cache
            model = esper.wrap(Generating(11, 16, 8, 12, 2, 2), esper.GrowthConfig(), tokens)
            assert bool(copied(model)) is not use_cache

    def test_nor_is_one_with_hooks_or_with_weights_that_it_does_not_use(self):
        for spoil in (
            lambda block: block.mlp[0].register_forward_hook(lambda *_: None),
            lambda block: block.register_parameter("idle", nn.Parameter(torch.ones(2))),
        ):
            model, example = built("gpt")
            spoil(model.blocks[1])
            assert copied(esper.wrap(model, esper.GrowthConfig(), example)) == {"blocks.0", "blocks.2", "blocks.3"}

    def test_a_place_without_copies_refuses_in_words(self):
        model = esper.wrap(Encoder(norm_first=False), esper.GrowthConfig(), padded())
        with pytest.raises(ConfigError, match="gives what it reads once its outputs are zero"):
            born(place_of(model, "encoder.layers.*"))

    def test_one_that_skips_all_blocks_refuses_in_words(self):
        _, place, _ = deepened("gpt")
        with pytest.raises(ConfigError, match="there are 4 blocks, and none is number 5: take a smaller 'every'"):
            born(place, every=5)

    def test_multiply_adds_are_those_of_the_block(self):
        _, place, _ = deepened("gpt")
        piece = next(piece for piece in place.site.pieces if piece.role == "copy")
        dense = 8 * 24 + 8 * 8 + 2 * 8 * 12
        assert piece.copy.multiply_adds == dense + 2 * 16 * 8  # and every token with every token, twice

    def test_nothing_is_drawn_and_nothing_moves_while_they_are_found(self):
        for name in HOSTS:
            model, example = built(name)
            before = copy.deepcopy(model.state_dict()), torch.get_rng_state()
            esper.wrap(model, esper.GrowthConfig(), example)
            assert torch.equal(torch.get_rng_state(), before[1])
            assert all(torch.equal(value, before[0][key]) for key, value in host_state_dict(model).items())


class TestBirth:
    @each
    @pytest.mark.parametrize("alpha", [0.7, 1.0])
    def test_it_is_the_identity_to_the_bit(self, name, alpha):
        bare, example = built(name)
        model, place, _ = deepened(name)
        born(place, alpha=alpha)
        for one, other in zip(outputs(model, example), outputs(bare, example), strict=True):
            assert torch.equal(one, other)

    @each
    def test_with_all_that_the_host_has_it_would_not_be(self, name, monkeypatch):
        everything = lambda self, piece, host: {key: host.get_parameter(key).detach() for key in self.shapes(piece)}  # noqa: E731
        monkeypatch.setattr(Deepen, "inherited", everything)
        bare, example = built(name)
        model, place, _ = deepened(name)
        born(place)
        assert not torch.equal(model.eval()(*example), bare.eval()(*example))

    @pytest.mark.parametrize("name", ["gpt", "encoder"])
    def test_without_the_fork_its_dropout_would_move_the_hosts(self, name, monkeypatch):
        monkeypatch.setattr(torch.random, "fork_rng", lambda *_: torch.no_grad())
        bare, example = built(name)
        model, place = esper.wrap(built(name)[0], esper.GrowthConfig(), example), None
        place = place_of(model, HOSTS[name][2])
        born(place)
        torch.manual_seed(1)
        got = model.train()(*example)
        torch.manual_seed(1)
        assert not torch.equal(got, bare.train()(*example))

    @each
    def test_all_else_is_the_hosts_as_it_is_then(self, name):
        model, place, _ = deepened(name)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1.0)
        born(place)
        (graft,) = place.arena.live
        for key, value in named(place, place.arena.params_of(graft)).items():
            is_zero = key.endswith(HOSTS[name][3])
            assert torch.equal(value, torch.zeros_like(value) if is_zero else model.get_parameter(key))

    @each
    def test_every_tensor_learns_within_ten_steps(self, name):
        model, place, example = deepened(name)
        born(place)
        optimizer = torch.optim.SGD([place.arena.slots], lr=0.1)
        (graft,) = place.arena.live
        first = place.arena.params_of(graft).detach().clone()
        for _ in range(10):
            optimizer.zero_grad()
            model.train()(*example).square().mean().backward()
            optimizer.step()
        moved = named(place, place.arena.params_of(graft).detach() - first)
        assert [key for key, value in moved.items() if not value.any()] == []

    def test_every_second_block(self):
        _, place, _ = deepened("gpt")
        born(place, every=2)
        assert [piece.module for piece in place.arena.live[0].pieces] == ["blocks.1", "blocks.3"]


class TestRunning:
    @each
    def test_it_computes_what_the_block_does_with_what_it_got(self, name):
        """With all of its arguments: a model with real further blocks gives the same."""
        model, place, example = deepened(name)
        born(place)
        drift(place)
        (graft,) = place.arena.live
        twice, _ = built(name)
        container = twice.get_submodule(place.layer_id.removesuffix(".*"))
        steps = []
        for index, step in enumerate(list(container)):
            behind = copy.deepcopy(step)
            values = named(place, place.arena.params_of(graft))
            for key, parameter in behind.named_parameters():
                full = f"{place.layer_id.removesuffix('*')}{index}.{key}"
                parameter.data.copy_(values.get(full, parameter))
            is_copied = any(full.startswith(f"{place.layer_id.removesuffix('*')}{index}.") for full in values)
            steps += [step, behind] if is_copied else [step]
        holder = type(container)(steps) if isinstance(container, nn.ModuleList) else nn.Sequential(*steps)
        parent, _, leaf = place.layer_id.removesuffix(".*").rpartition(".")
        setattr(twice.get_submodule(parent), leaf, holder)
        torch.testing.assert_close(model.eval()(*example), twice.eval()(*example))
        assert not torch.equal(model(*example), built(name)[0].eval()(*example))

    def test_running_statistics_are_its_own(self):
        bare, example = built("resnet")
        model, place, _ = deepened("resnet")
        born(place)
        for one in (model, bare):
            one.train()(*example)
        host = host_state_dict(model)
        assert all(torch.equal(value, host[key]) for key, value in bare.state_dict().items())
        kept = dict(place.arena.statistics.named_buffers())
        assert len(kept) == 2 * 3 * 3
        assert all(int(value) == 1 for key, value in kept.items() if key.endswith("num_batches_tracked"))
        remove(place)
        assert not place.arena.statistics

    def test_running_statistics_are_the_hosts_at_birth(self):
        model, place, example = deepened("resnet")
        model.train()(*example)
        born(place)
        assert torch.equal(place.arena.statistics["1_0_2"].running_var, model.stage[0].norm3.running_var)

    def test_hooks_of_the_block_run_once(self):
        model, place, example = deepened("gpt")
        born(place)
        calls = []
        for module in (model.blocks[0], model.blocks[0].mlp[0]):
            module.register_forward_hook(lambda *_: calls.append(1))
        model(*example)
        assert len(calls) == 2

    @each
    def test_what_it_adds_varies(self, name):
        """By channels, wherever they lie."""
        model, place, example = deepened(name)
        lifecycle = born(place)
        drift(place)
        with Variation(place, lifecycle) as variation:
            model.eval()(*example)
        assert 0 < variation.share < 1

    def test_rows_are_counted(self):
        model, place, example = deepened("gpt")
        with traced(model) as trace:
            model.train()(*example).sum().backward()
        assert trace.calls["blocks.*"] == 1
        assert {piece.rows for piece in place.site.pieces if piece.role == "copy"} == {3 * 16}

    def test_a_copy_of_the_model_has_copies_of_its_own(self):
        model, _, example = deepened("gpt")
        twin = copy.deepcopy(model)
        born(place_of(twin, "blocks.*"))
        drift(place_of(twin, "blocks.*"))
        assert place_of(twin, "blocks.*").hosts["blocks.0"] is twin.blocks[0]
        assert not torch.equal(twin.eval()(*example), model.eval()(*example))

    @each
    def test_a_checkpoint_has_all_of_it(self, name):
        model, place, example = deepened(name)
        born(place, State.FOSSILIZED)
        model.train()(*example)
        saved = io.BytesIO()
        torch.save(model.state_dict(), saved)
        saved.seek(0)
        again, _, _ = deepened(name)
        again.load_state_dict(torch.load(saved))
        assert torch.equal(again.eval()(*example), model.eval()(*example))

    @pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")  # where it is measured
    @pytest.mark.parametrize("use_reentrant", [True, False])
    def test_it_is_made_again_where_a_block_is_checkpointed(self, use_reentrant):
        class Checkpointed(GPT):
            def forward(self, tokens: Tensor) -> Tensor:
                x = self.embedding(tokens)
                for block in self.blocks:
                    x = checkpoint(block, x, use_reentrant=use_reentrant)
                return self.head(self.norm(x))

        results = []
        for kind in (GPT, Checkpointed):
            torch.manual_seed(0)
            model, tokens = kind(11, 16, 8, 12, 2, 2, dropout=0.1), torch.randint(0, 11, (3, 16))
            place = place_of(esper.wrap(model, esper.GrowthConfig(), tokens), "blocks.*")
            born(place)
            drift(place)
            torch.manual_seed(1)
            model.train()(tokens).square().mean().backward()
            results.append([place.arena.slots.grad, *host_grads(model).values()])
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other)

    @pytest.mark.filterwarnings(  # about dynamo's own doings while it traces
        r"ignore:.* should not be instantiated\. Methods on autograd functions are all static:DeprecationWarning"
    )
    def test_it_compiles(self):
        torch.manual_seed(0)
        x = torch.randn(5, 6)
        model = esper.wrap(rooted(), esper.GrowthConfig(layers=["blocks.*"]), x)
        place = place_of(model, "blocks.*")
        born(place)
        drift(place)
        compiled = torch.compile(model.eval(), backend="eager")
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), model(x))
        torch._dynamo.reset()

    def test_gradients_of_single_samples(self):
        torch.manual_seed(0)
        x = torch.randn(5, 6)
        model = esper.wrap(rooted(), esper.GrowthConfig(), x)
        place = place_of(model, "blocks.*")
        born(place)
        drift(place)
        weights = {key: value.detach() for key, value in model.eval().named_parameters()}

        def loss(weights, one):
            return torch.func.functional_call(model, weights, (one[None],)).square().mean()

        found = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, x)
        for key in weights:
            expected = torch.stack([torch.func.grad(loss)(weights, one)[key] for one in x])
            torch.testing.assert_close(found[key], expected)


class TestGuard:
    @staticmethod
    def case(until: State, fault: str) -> tuple[nn.Module, nn.Module, Place, Tensor]:
        torch.manual_seed(0)
        bare, x = rooted(), torch.randn(5, 6)
        model = esper.wrap(copy.deepcopy(bare), esper.GrowthConfig(), x)
        place = place_of(model, "blocks.*")
        born(place)
        drift(place)
        (graft,) = place.arena.live
        with torch.no_grad():
            for key, value in named(place, place.arena.params_of(graft)).items():
                if fault == "nan weight" and key == "blocks.1.fc1.weight":
                    value[0, 0] = torch.nan
                if fault == "nan gradient" and key.endswith("scale"):
                    value.zero_()
        if until is State.FOSSILIZED:
            place.arena.fossilize(graft.lifecycle)
        return bare, model, place, x

    @pytest.mark.parametrize("until", [State.FINE_TUNING, State.FOSSILIZED])
    def test_a_copy_that_is_not_finite_is_the_identity_in_the_very_step(self, until):
        _, model, place, x = self.case(until, "nan weight")
        y = model.train()(x)
        y.square().sum().backward()
        assert torch.isfinite(y).all()
        assert all(torch.isfinite(grad).all() for grad in host_grads(model).values())
        assert place.state.fault.tolist() == [FOSSIL_FAULT if until is State.FOSSILIZED else LIVE_FAULT]

    def test_without_the_selection_it_would_be_nan(self, monkeypatch):
        monkeypatch.setattr(group, "select_G", lambda keep, values, otherwise=0.0: values)
        _, model, _, x = self.case(State.FINE_TUNING, "nan weight")
        assert model.train()(x).isnan().any()

    def test_a_gradient_that_is_not_finite_reaches_nobody(self):
        _, model, place, x = self.case(State.FINE_TUNING, "nan gradient")
        model.train()(x).square().sum().backward()
        assert all(torch.isfinite(grad).all() and grad.any() for grad in host_grads(model).values())
        assert torch.isfinite(place.arena.slots.grad).all()
        assert place.state.fault.tolist() == [LIVE_FAULT]

    def test_without_the_entry_it_would(self, monkeypatch):
        through = type(
            "Through", (), {"apply": staticmethod(lambda x, params, mark, *_: (x.unsqueeze(0), params, mark))}
        )
        monkeypatch.setattr(colony, "Entry", through)
        _, model, _, x = self.case(State.FINE_TUNING, "nan gradient")
        model.train()(x).square().sum().backward()
        assert not all(torch.isfinite(grad).all() for grad in host_grads(model).values())

    def test_input_that_is_not_finite_blames_nobody(self):
        _, model, place, x = self.case(State.FINE_TUNING, "none")
        x[0, 0] = torch.inf
        model.train()(x)
        assert place.state.fault.tolist() == [0]


class TestExport:
    @each
    @pytest.mark.parametrize("every", [1, 2])
    def test_copies_are_plain_modules_behind_the_blocks(self, name, every):
        model, place, example = deepened(name)
        keys = set(host_state_dict(model))
        born(place, State.EVALUATING, every=every)
        drift(place)
        grown = copy.deepcopy(place.arena.live[0].pieces)
        place.arena.fossilize(1)
        model.train()(*example)
        plain = esper.export(model)
        assert keys < set(plain.state_dict())
        assert not any("esper.kasmina" in type(module).__module__ for module in plain.modules())
        kinds = [type(module).__name__ for key, module in plain.named_modules() if key.endswith("grown.copy")]
        assert kinds == [type(plain.get_submodule(piece.module)).__name__ for piece in grown]
        torch.testing.assert_close(plain.eval()(*example), model.eval()(*example))
        again = torch.export.export(plain, example).module()
        torch.testing.assert_close(again(*example), plain(*example))

    def test_a_copy_does_not_have_what_grew_within_its_block(self):
        model, place, example = deepened("gpt")
        grow(place_of(model, "blocks.0.mlp"), until=State.FOSSILIZED)
        grow(place_of(model, "blocks.0"), until=State.FOSSILIZED)
        born(place, State.FOSSILIZED)
        plain = esper.export(model)
        names = [key for key, _ in plain.blocks[0].named_modules()]
        assert any(key.startswith("mlp.2.grown") or key.startswith("mlp.grown") for key in names)
        assert not any(".copy." in key and "grown" in key.rpartition("copy.")[2] for key in names)
        torch.testing.assert_close(plain.eval()(*example), model.eval()(*example))

    @pytest.mark.parametrize("first", ["deepen", "widen"])
    def test_the_stream_may_be_wider_than_a_copy_knows(self, first):
        model, place, example = deepened("gpt")
        for blueprint in (first, *({"deepen", "widen"} - {first})):
            if blueprint == "widen":
                grow(place_of(model, "*"), until=State.FOSSILIZED, blueprint="widen", percent=25)
            else:
                born(place)
                drift(place)
                place.arena.fossilize(1)
        plain = esper.export(model)
        assert plain.head.in_features == 10
        assert plain.blocks[0].grown.copy.norm1.normalized_shape == (8,)
        torch.testing.assert_close(plain.eval()(*example), model.eval()(*example))

    def test_it_trains_on(self):
        model, place, example = deepened("cnn")
        born(place, State.FOSSILIZED)
        plain = esper.export(model).train()
        plain(*example).square().mean().backward()
        assert all(parameter.grad is not None for parameter in plain.parameters())


class TestSizing:
    def test_every_is_doubled_until_it_fits(self):
        _, place, _ = deepened("gpt")
        ports = place.ports_of(Deepen())
        ports = ports._replace(pieces=tuple(dataclasses.replace(one, rows=1) for one in ports.pieces))
        whole = Deepen().parameters_of(ports)
        assert [Deepen().sized(ports, parameters=whole * share).every for share in (1, 0.9, 0.5, 0.3)] == [1, 2, 2, 4]
        assert Deepen().sized(ports, parameters=whole * 0.2) is None
        work = Deepen().work_of(ports)
        assert Deepen().sized(ports, multiply_adds=work / 2).every == 2

    def test_it_is_at_least_1(self):
        with pytest.raises(ConfigError, match="every must be a whole number of at least 1"):
            make_blueprint("deepen", {"every": 0})
