"""Finding and registering blueprints."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from esper.blueprints.blueprint import Blueprint
from esper.blueprints.bottleneck_mlp import BottleneckMLP
from esper.blueprints.catalogue import (
    CATALOGUE,
    COLONIES,
    CONTROLS,
    known_blueprints,
    make_blueprint,
    register_blueprint,
)
from esper.contracts.config import GrowthConfig
from esper.contracts.errors import ConfigError

DOCUMENT = Path(__file__).parents[2] / "docs" / "blueprints.md"


def own(name: str, base: type = BottleneckMLP, *, frozen: bool = True, **body) -> type:
    """A class as a user would write it, undecorated by ``register_blueprint``."""
    return dataclass(frozen=frozen)(type("Own", (base,), {"id": name, "__module__": "a.users", **body}))


def test_defaults_offer_no_control():
    assert set(GrowthConfig().blueprints) <= CATALOGUE.keys() | COLONIES.keys()
    assert set(GrowthConfig().blueprints).isdisjoint(CONTROLS)


def test_an_unknown_blueprint_is_answered_with_the_closest_and_all_valid_ones():
    with pytest.raises(
        ConfigError, match=r"no blueprint 'plazebo'\. Did you mean 'placebo'.*Valid: affine, bottleneck"
    ):
        make_blueprint("plazebo", {})


def test_a_registered_blueprint_is_found_but_not_in_the_catalogue():
    kind = own("own_found")
    assert register_blueprint(kind) is kind
    assert make_blueprint("own_found", {"hidden": 3}) == kind(hidden=3)
    assert "own_found" not in CATALOGUE
    with pytest.raises(ConfigError, match="Did you mean 'own_found'"):
        make_blueprint("own_fond", {})


def test_the_same_class_may_be_defined_again():
    """As a notebook does."""
    register_blueprint(own("own_again"))
    again = register_blueprint(own("own_again"))
    assert known_blueprints()["own_again"] is again


@dataclass(frozen=True)
class NeedsSetting(BottleneckMLP):
    id: ClassVar[str] = "own_needs"
    depth: int = dataclasses.field(kw_only=True)


@dataclass(frozen=True)
class Unfinished(Blueprint):
    id: ClassVar[str] = "own_unfinished"
    family: ClassVar[str] = "mlp"


@dataclass(frozen=True)
class Changes(BottleneckMLP):
    id: ClassVar[str] = "own_changes"
    taps: list[int] = dataclasses.field(default_factory=lambda: [1])


@dataclass(frozen=True)
class Alive(BottleneckMLP):
    id: ClassVar[str] = "own_alive"

    def init(self, ports, generator):
        return {name: value + 1 for name, value in super().init(ports, generator).items()}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (int, "int cannot be registered: it is not a class that derives from"),
        (BottleneckMLP(), "it is not a class that derives from"),
        (type("Own", (BottleneckMLP,), {"id": "own_bare"}), "it is not a frozen dataclass: put @dataclass"),
        (Unfinished, "Unfinished cannot be registered: it does not define delta, init, shapes"),
        (own(""), "its id is not a name: write id: ClassVar"),
        (own("own_family", family=7), "its family is not a name"),
        (NeedsSetting, "its settings need defaults: depth"),
        (Changes, "its setting 'taps' can change: take a number, a string or a tuple"),
        (
            own("own_layouts", layouts=frozenset({"video"})),
            r"its layouts are \{'video'\}: take some of features, image",
        ),
        (own("own_nowhere", layouts=frozenset()), "its layouts are empty"),
        (own("own_size", size="width"), "its size names 'width', which is no setting whose default is a whole number"),
        (own("glu"), "the id 'glu' is that of GLU: choose one that is none of affine, bottleneck_mlp"),
        (own("placebo"), "the id 'placebo' is that of Placebo"),
        (Alive, "on features, delta is not 0 at birth: let init draw the last factor as zeros"),
    ],
)
def test_what_is_no_blueprint_is_not_registered(kind, message):
    before = known_blueprints()
    with pytest.raises(ConfigError, match=message):
        register_blueprint(kind)
    assert known_blueprints() == before


@pytest.mark.parametrize("blueprint_id", CATALOGUE)
def test_the_document_says_what_a_blueprint_is(blueprint_id):
    (row,) = [line for line in DOCUMENT.read_text().splitlines() if line.startswith(f"| `{blueprint_id}` |")]
    blueprint = make_blueprint(blueprint_id, {})
    size = f"`{blueprint.size}`" if blueprint.size else "-"
    layouts = ", ".join(sorted(blueprint.layouts))
    assert row.endswith(f" | {layouts} | {blueprint.reads} | {size} | {blueprint.confidence} |")


@pytest.mark.parametrize("blueprint_id", sorted(CATALOGUE | CONTROLS))
def test_a_wrong_setting_is_refused_by_name(blueprint_id):
    with pytest.raises(ConfigError, match="reads must be 'input' or 'chunk', not 'output'"):
        make_blueprint(blueprint_id, {"reads": "output"})
    with pytest.raises(ConfigError, match=r"no setting 'raeds'\. Did you mean 'reads'"):
        make_blueprint(blueprint_id, {"raeds": "input"})
    with pytest.raises(ConfigError, match=r"no setting 'id'\. .*Valid: .*reads"):
        make_blueprint(blueprint_id, {"id": "other"})
    size = (CATALOGUE | CONTROLS)[blueprint_id].size
    for value in (0, 2.5, "8", True) if size else ():
        with pytest.raises(ConfigError, match=f"{size} must be a whole number of at least 1, not {value!r}"):
            make_blueprint(blueprint_id, {size: value})


@pytest.mark.parametrize(
    ("blueprint_id", "settings", "message"),
    [
        ("conv_bottleneck", {"kernel": 4}, "conv_bottleneck: kernel must be odd, .* not 4"),
        ("depthwise_conv", {"kernel": 2}, "depthwise_conv: kernel must be odd, .* not 2"),
        ("sliding_conv", {"kernel": 0}, "kernel must be a whole number of at least 1, not 0"),
        ("mini_attention", {"heads": -1}, "heads must be a whole number"),
        ("mini_attention", {"causal": 1}, "causal must be True or False, not 1"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(blueprint_id, settings, message):
    with pytest.raises(ConfigError, match=message):
        make_blueprint(blueprint_id, settings)
