"""Esper: neural networks that grow while they train.

The public names are loaded when they are first used, so that ``import esper`` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esper.blueprints.blueprint import Blueprint as Blueprint
    from esper.blueprints.blueprint import Ports as Ports
    from esper.blueprints.catalogue import register_blueprint as register_blueprint
    from esper.contracts.commands import Answer as Answer
    from esper.contracts.commands import Command as Command
    from esper.contracts.config import GrowthConfig as GrowthConfig
    from esper.contracts.errors import ArmError as ArmError
    from esper.contracts.errors import CheckpointError as CheckpointError
    from esper.contracts.errors import ConfigError as ConfigError
    from esper.contracts.errors import DataError as DataError
    from esper.contracts.errors import EsperError as EsperError
    from esper.contracts.errors import EvaluationError as EvaluationError
    from esper.contracts.errors import HarmedError as HarmedError
    from esper.contracts.errors import RankError as RankError
    from esper.contracts.errors import TransitionError as TransitionError
    from esper.contracts.lifecycle import State as State
    from esper.contracts.reports import Evaluation as Evaluation
    from esper.contracts.reports import FieldReport as FieldReport
    from esper.contracts.reports import Observation as Observation
    from esper.contracts.reports import PlaceReport as PlaceReport
    from esper.contracts.reports import SeedReport as SeedReport
    from esper.kasmina.grafts.strategies import GraftSignals as GraftSignals
    from esper.kasmina.grafts.strategies import GraftStrategy as GraftStrategy
    from esper.kasmina.grafts.strategies import register_strategy as register_strategy
    from esper.kasmina.host.export import export as export
    from esper.kasmina.host.param_groups import param_groups as param_groups
    from esper.kasmina.host.summary import summary as summary
    from esper.kasmina.host.wrapping import host_state_dict as host_state_dict
    from esper.kasmina.host.wrapping import unwrap as unwrap
    from esper.kasmina.host.wrapping import wrap as wrap
    from esper.runtime.interrupt import Interrupt as Interrupt
    from esper.runtime.session import Session as Session
    from esper.runtime.training.loader import BatchLoader as BatchLoader
    from esper.runtime.training.sharding import clip_grad_norm_ as clip_grad_norm_
    from esper.tamiyo.heuristic import Policy as Policy
    from esper.tamiyo.policies import register_policy as register_policy
    from esper.tamiyo.selection import register_selection as register_selection

_HOMES = {
    "Answer": "esper.contracts.commands",
    "ArmError": "esper.contracts.errors",
    "BatchLoader": "esper.runtime.training.loader",
    "Blueprint": "esper.blueprints.blueprint",
    "CheckpointError": "esper.contracts.errors",
    "Command": "esper.contracts.commands",
    "ConfigError": "esper.contracts.errors",
    "DataError": "esper.contracts.errors",
    "EsperError": "esper.contracts.errors",
    "Evaluation": "esper.contracts.reports",
    "EvaluationError": "esper.contracts.errors",
    "FieldReport": "esper.contracts.reports",
    "GraftSignals": "esper.kasmina.grafts.strategies",
    "GraftStrategy": "esper.kasmina.grafts.strategies",
    "GrowthConfig": "esper.contracts.config",
    "HarmedError": "esper.contracts.errors",
    "Interrupt": "esper.runtime.interrupt",
    "Observation": "esper.contracts.reports",
    "PlaceReport": "esper.contracts.reports",
    "Policy": "esper.tamiyo.heuristic",
    "Ports": "esper.blueprints.blueprint",
    "RankError": "esper.contracts.errors",
    "SeedReport": "esper.contracts.reports",
    "Session": "esper.runtime.session",
    "State": "esper.contracts.lifecycle",
    "TransitionError": "esper.contracts.errors",
    "clip_grad_norm_": "esper.runtime.training.sharding",
    "export": "esper.kasmina.host.export",
    "host_state_dict": "esper.kasmina.host.wrapping",
    "param_groups": "esper.kasmina.host.param_groups",
    "register_blueprint": "esper.blueprints.catalogue",
    "register_policy": "esper.tamiyo.policies",
    "register_selection": "esper.tamiyo.selection",
    "register_strategy": "esper.kasmina.grafts.strategies",
    "summary": "esper.kasmina.host.summary",
    "unwrap": "esper.kasmina.host.wrapping",
    "wrap": "esper.kasmina.host.wrapping",
}

__all__ = [*_HOMES]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'esper' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
