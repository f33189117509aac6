"""The birth check finds what it is there for: negative controls."""

import itertools
import re
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from esper.blueprints.birth import birth_fault
from esper.blueprints.blueprint import Blueprint, Ports, drawn
from esper.blueprints.bottleneck_mlp import BottleneckMLP

PORTS = Ports(5, 7)


@dataclass(frozen=True)
class AllZero(BottleneckMLP):
    """Nothing can move but the last bias."""

    def init(self, ports, generator):
        return drawn(self.shapes(ports), generator)


@dataclass(frozen=True)
class Alive(BottleneckMLP):
    def init(self, ports, generator):
        return drawn(self.shapes(ports), generator, "w1", "b1", "b2")


@dataclass(frozen=True)
class WrongShapes(BottleneckMLP):
    def shapes(self, ports):
        return super().shapes(ports) | {"b1": (1,)}

    def init(self, ports, generator):
        return drawn(super().shapes(ports), generator, "w1", "b1")


@dataclass(frozen=True)
class WrongWidth(BottleneckMLP):
    def delta(self, params, x):
        return super().delta(params, x)[..., 1:]


@dataclass(frozen=True)
class Branching(BottleneckMLP):
    def delta(self, params, x):
        return super().delta(params, x if x.dim() < 3 else x.relu())


@dataclass(frozen=True)
class Frozen(AllZero):
    is_trainable: ClassVar[bool] = False


@dataclass(frozen=True)
class OtherModule(BottleneckMLP):
    def to_module(self, ports, params):
        return torch.nn.Linear(ports.inputs, ports.outputs)


@dataclass(frozen=True)
class CountsItsCalls(BottleneckMLP):
    """Not pure: vmap calls it once for all grafts."""

    def delta(self, params, x):
        return super().delta(params, x) * next(CALLS)


CALLS = itertools.count(1)


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        (AllZero, "b1, w1, w2 received no gradient in 10 steps"),
        (Alive, "delta is not 0 at birth"),
        (WrongShapes, "shapes says .*: they must agree"),
        (WrongWidth, r"delta of x \[4, 5\] is \[4, 6\] and must be \[4, 7\]"),
        (Branching, "delta cannot be traced for export"),
        (OtherModule, "its module for export does not give what delta gives"),
        (CountsItsCalls, "torch.vmap over grafts changes what delta gives"),
    ],
)
def test_what_a_birth_must_not_do_is_found(kind, fault):
    assert re.search(fault, birth_fault(kind(), PORTS))


def test_what_is_not_trainable_need_not_move():
    assert birth_fault(Frozen(), PORTS) is None


def test_the_birth_check_leaves_the_global_random_state_alone_and_works_under_no_grad():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with torch.no_grad():
        assert birth_fault(BottleneckMLP(), PORTS) is None
    assert torch.equal(torch.get_rng_state(), before)


def test_errors_of_the_blueprint_itself_come_through():
    @dataclass(frozen=True)
    class Broken(BottleneckMLP):
        def delta(self, params, x):
            return params["w3"]

    assert issubclass(Broken, Blueprint)
    with pytest.raises(KeyError, match="w3"):
        birth_fault(Broken(), PORTS)
