"""Alerts: each fires for its fault and clears, a clean day wakes nobody, and no rule can go without a test noticing."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from esper.observability.metrics.catalogue import METRICS
from tests.brokers import require

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "prometheus"
RULES: dict[str, dict[str, Any]] = {
    rule["alert"]: rule
    for group in yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"]
    for rule in group["rules"]
}
CLEAN_DAY = FOLDER / "tests" / "clean_day.yml"


def told(*command: str | Path) -> subprocess.CompletedProcess[str]:
    require(str(command[0]))
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)


def names(text: str) -> set[str]:
    """Metrics of Esper that a text speaks of; those of a histogram by its own name."""
    found = re.findall(r"\besper_\w+", text)
    return {one if one in METRICS else re.sub(r"_(bucket|sum|count)$", "", one) for one in found}


@pytest.mark.parametrize(
    "command",
    [
        ("promtool", "check", "config", FOLDER / "prometheus.yml"),
        ("promtool", "check", "rules", FOLDER / "rules.yml"),
        ("amtool", "check-config", ROOT / "deploy" / "alertmanager" / "alertmanager.yml"),
    ],
    ids=lambda command: command[2] if command[0] == "promtool" else "alertmanager",
)
def test_the_tools_of_prometheus_find_nothing_wrong(command):
    done = told(*command)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("alert", RULES)
def test_an_alert_fires_for_its_fault_and_clears(alert):
    done = told("promtool", "test", "rules", FOLDER / "tests" / f"{alert}.yml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("alert", RULES)
def test_without_its_rule_the_test_of_an_alert_fails(alert, tmp_path):
    folder = shutil.copytree(FOLDER, tmp_path / "prometheus")
    rules = yaml.safe_load((folder / "rules.yml").read_text())
    for group in rules["groups"]:
        group["rules"] = [rule for rule in group["rules"] if rule["alert"] != alert]
    (folder / "rules.yml").write_text(yaml.safe_dump(rules))
    done = told("promtool", "test", "rules", folder / "tests" / f"{alert}.yml")
    assert done.returncode != 0
    assert f"alertname: {alert}" in done.stdout + done.stderr


def test_every_test_is_one_of_an_alert():
    assert {path.stem for path in (FOLDER / "tests").glob("*.yml")} == {*RULES, CLEAN_DAY.stem}


def test_over_a_clean_day_nobody_is_woken():
    done = told("promtool", "test", "rules", CLEAN_DAY)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set.union(*(names(rule["expr"]) for rule in RULES.values())) <= names(CLEAN_DAY.read_text())


@pytest.mark.parametrize(
    "faults",
    [
        {'esper_rollbacks_total{run="a"}': "0x700 1x739"},
        pytest.param({'esper_run_finished{run="b"}': "0x659"}, marks=pytest.mark.long),
        pytest.param(
            {
                'esper_decisions_missed_total{run="a"}': "0x700 0+1x739",
                'esper_controller_last_seen_timestamp_seconds{run="a"}': "0+60x700 42000x739",
            },
            marks=pytest.mark.long,
        ),
    ],
)
def test_over_a_day_with_one_fault_somebody_is(faults, tmp_path):
    folder = shutil.copytree(FOLDER, tmp_path / "prometheus")
    day = yaml.safe_load(CLEAN_DAY.read_text())
    told_of = {one["series"]: one for one in day["tests"][0]["input_series"]}
    for series, values in faults.items():
        told_of[series]["values"] = values
    (folder / "tests" / "day.yml").write_text(yaml.safe_dump(day))
    assert told("promtool", "test", "rules", folder / "tests" / "day.yml").returncode != 0


def test_rules_speak_of_metrics_that_there_are():
    assert set.union(*(names(rule["expr"]) for rule in RULES.values())) <= METRICS.keys()


@pytest.mark.parametrize("alert", RULES)
def test_an_alert_says_what_is_needed_to_act_on_it(alert):
    rule = RULES[alert]
    assert rule["labels"].keys() == {"severity"}
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert "for" in rule
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{alert.lower()}"


def test_every_alert_has_its_section_in_the_runbook_and_every_section_its_alert():
    page = (ROOT / "docs" / "runbook.md").read_text()
    sections = re.split(r"^### ", page, flags=re.MULTILINE)[1:]
    assert [section.partition("\n")[0] for section in sections] == list(RULES)
    for section in sections:
        for part in ("**Means**", "**Look at**", "**Do**"):
            assert part in section, section
