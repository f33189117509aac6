"""The network: padding changes nothing, what may not be chosen is not, and weights are read back or refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from esper.contracts.config import GrowthConfig
from esper.contracts.errors import ConfigError
from esper.tamiyo.learned import weights
from esper.tamiyo.learned.actions import legal_actions
from esper.tamiyo.learned.network import Padded, Shape, TamiyoNetwork
from esper.tamiyo.learned.policy import SHIPPED, LearnedPolicy
from esper.tamiyo.learned.tokens import tokens
from tests.tamiyo.seen import NOW

CONFIG = GrowthConfig()
READ = tokens(NOW, CONFIG, legal_actions(NOW, CONFIG))
FEW = READ._replace(actions=READ.actions[:2], place_of=READ.place_of[:2])
NONE = tokens(NOW, CONFIG, [])


@pytest.fixture
def network() -> TamiyoNetwork:
    """With heads that say something."""
    torch.manual_seed(0)
    made = TamiyoNetwork(Shape(width=16, heads=2, layers=1))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made.eval()


def test_what_a_boundary_is_worth_does_not_depend_on_what_it_is_judged_beside(network):
    alone, beside = network(Padded.of([FEW])), network(Padded.of([READ, FEW, NONE]))
    assert torch.allclose(beside.gain[1, :2], alone.gain[0], atol=1e-5)
    assert torch.allclose(beside.value[1], alone.value[0], atol=1e-5)
    assert torch.allclose(beside.choice[1, :4], alone.choice[0], atol=1e-5)


def test_an_action_that_is_none_is_never_chosen(network):
    choice = network(Padded.of([READ, FEW, NONE])).choice
    assert torch.isneginf(choice[1, 4:]).all()
    assert torch.isneginf(choice[2, 2:]).all()
    assert torch.allclose(choice.exp().sum(1), torch.ones(3))


def test_one_action_is_judged_alone_as_among_all(network):
    seen = Padded.of([READ, READ])
    index = torch.tensor([3, 7])
    alone = network(seen.with_one_action(index)).gain[:, 0]
    assert torch.allclose(alone, network(seen).gain[torch.arange(2), index], atol=1e-6)


def test_places_are_seen(network):
    """Of one more place every action hears."""
    less = READ._replace(places=READ.places[:4], actions=READ.actions[:1], place_of=[0])
    more = less._replace(places=READ.places)
    assert not torch.allclose(network(Padded.of([less])).gain, network(Padded.of([more])).gain)


def test_features_are_standardised_by_what_is_learned_from_and_strange_is_what_lies_outside(network):
    seen = Padded.of([READ, NONE])
    network.standardise(seen)
    assert network.strangeness(seen).tolist() == [0.0, 0.0]
    far = READ._replace(run=[*READ.run[:-1], READ.run[-1] + 3.0])
    assert float(network.strangeness(Padded.of([far]))) >= 3.0


def test_weights_come_back_with_their_card(network, tmp_path):
    path = tmp_path / "weights.safetensors"
    weights.save(network, path, {"tasks": 3})
    loaded, card = weights.load(path)
    assert card == {"tasks": 3}
    assert loaded.shape == network.shape
    seen = Padded.of([READ])
    assert torch.equal(loaded(seen).gain, network(seen).gain)


def spoil(path, tensors=None, **told):
    known = {
        "kind": weights.KIND,
        "shape": json.dumps(Shape(width=16, heads=2, layers=1).to_dict()),
        "card": "{}",
        "names": json.dumps(weights.asdict(weights.names())),
    }
    save_file(tensors or load_file(path), path, metadata={**known, **told})


@pytest.mark.parametrize(
    ("told", "wrong"),
    [
        ({"kind": "esper.tamiyo/9"}, r"is 'esper.tamiyo/9', and this Esper reads 'esper.tamiyo/1'"),
        ({"shape": json.dumps({"width": 32, "heads": 2, "layers": 1})}, "does not fit the shape that it names"),
        ({"shape": json.dumps({"depth": 3})}, "does not say what network it holds"),
        ({"shape": json.dumps({"width": 15, "heads": 2})}, "does not say what network it holds"),
        ({"shape": "{"}, "does not say what network it holds"),
        ({"names": json.dumps({"run": ["done"], "place": [], "action": []})}, "for other features: it does not know"),
        ({"names": "[]"}, "it names none"),
    ],
)
def test_weights_of_another_version_or_shape_or_for_other_features_are_refused(network, tmp_path, told, wrong):
    path = tmp_path / "weights.safetensors"
    weights.save(network, path, {})
    spoil(path, **told)
    with pytest.raises(ConfigError, match=wrong):
        weights.load(path)


def test_what_is_no_file_of_weights_is_refused(network, tmp_path):
    path = tmp_path / "weights.safetensors"
    with pytest.raises(ConfigError, match="There are no weights of a controller"):
        weights.load(path)
    path.write_bytes(b"not weights at all")
    with pytest.raises(ConfigError, match="holds no weights that can be read"):
        weights.load(path)
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(ConfigError, match="no file of a controller"):
        weights.load(path)
    weights.save(network, path, {})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ConfigError, match="holds no weights that can be read"):
        weights.load(path)
    path.write_bytes(bytes(weights.LARGEST + 1))
    with pytest.raises(ConfigError, match="have at most"):
        weights.load(path)


def test_weights_that_are_not_finite_are_refused(network, tmp_path):
    path = tmp_path / "weights.safetensors"
    network.run.linear.bias.data[0] = torch.nan
    weights.save(network, path, {})
    with pytest.raises(ConfigError, match=r"not finite, in 'run\.linear\.bias'"):
        weights.load(path)


def test_the_weights_that_come_with_esper_can_be_read_and_say_what_they_were_made_from():
    loaded, card = weights.load(SHIPPED)
    assert {"tasks", "headroom", "foreseen", "limits", "core_seconds"} <= card.keys()
    assert loaded(Padded.of([READ])).gain.shape == (1, len(READ.actions))
    assert LearnedPolicy(CONFIG).remarks() == []
