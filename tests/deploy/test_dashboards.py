"""Dashboards: made from the modules in scripts/dashboards, readable by Grafana's own library, and about all metrics."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from esper.observability.metrics.catalogue import METRICS
from scripts.dashboards.__main__ import BOARDS, FOLDER, text
from tests.deploy.test_rules import RULES, names

ROOT = Path(__file__).parents[2]
FILES = sorted(FOLDER.glob("*.json"))


def panels(path: Path) -> list[dict[str, Any]]:
    return [panel for panel in json.loads(path.read_text())["panels"] if panel["type"] != "row"]


def test_the_files_are_those_that_make_docs_writes():
    assert {path.name: path.read_text() for path in FILES} == {f"{board.name}.json": text(board) for board in BOARDS}


def test_the_dashboards_are_those_that_were_asked_for():
    titles = {json.loads(path.read_text())["title"] for path in FILES}
    wanted = ("overview", "rollout progress", "performance comparison", "errors", "seed health")
    assert titles == {f"Esper: {title}" for title in wanted}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_grafanas_own_library_reads_a_dashboard(path):
    value = json.loads(path.read_text())
    dashboard = Dashboard.from_json(value)
    assert json.loads(json.dumps(dashboard, cls=JSONEncoder)) == value
    assert {variable.name for variable in dashboard.templating.list_val} >= {"datasource", "run"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_panel_says_what_it_shows(path):
    for panel in panels(path):
        assert panel["title"]
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert all(target["legendFormat"] for target in panel["targets"])
        assert {"h", "w", "x", "y"} == panel["gridPos"].keys()
    titles = [panel["title"] for panel in panels(path)]
    assert len(titles) == len(set(titles))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_panel_lies_on_another(path):
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(path.read_text())["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_every_metric_stands_in_a_panel_or_a_rule_and_none_that_there_is_not():
    expressions = [target["expr"] for path in FILES for panel in panels(path) for target in panel["targets"]]
    spoken_of = names(" ".join([*expressions, *(rule["expr"] for rule in RULES.values())]))
    assert spoken_of == METRICS.keys()


def test_what_grafana_is_given_at_its_start_is_what_the_dashboards_ask_for():
    folder = ROOT / "deploy" / "grafana" / "provisioning"
    (source,) = yaml.safe_load((folder / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert source["type"] == "prometheus"
    (provider,) = yaml.safe_load((folder / "dashboards" / "esper.yaml").read_text())["providers"]
    mounted = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]["grafana"]["volumes"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in mounted
