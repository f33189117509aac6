"""What the documents show is what the code and the results say."""

import json
import re
from pathlib import Path
from statistics import fmean

import pytest
import torch
from torch import nn

from benchmarks.controller.running import weights_of
from benchmarks.controller.telling import beside, verdict
from benchmarks.grafts.colonies import table as colonies_table
from benchmarks.growth.going_on import BENCHMARK as GOING_ON
from benchmarks.growth.other_data import markdown as other_data_table
from benchmarks.growth.regret import markdown as regret_table
from benchmarks.growth.results import told
from benchmarks.growth.short import at_a_glance, cost, in_short
from benchmarks.growth.source import BENCHMARK as SOURCE
from benchmarks.growth.tables import overview
from benchmarks.growth.trials_list import CONTROLS
from benchmarks.growth.trials_table import markdown as trials_table
from benchmarks.rollout_kit.baseline import markdown as baseline_table
from esper.contracts.lifecycle import State, diagram
from esper.evaluation.bench.section import Section
from scripts import settings_page

ROOT = Path(__file__).parent.parent
GROWTH = ROOT / "benchmarks" / "results" / "growth"
RESULTS = json.loads((GROWTH / "results.json").read_text())


def test_the_diagram_of_the_lifecycle_is_that_of_the_table():
    assert diagram() in (ROOT / "docs" / "lifecycle.md").read_text()


def test_every_state_stands_in_the_table_with_its_code():
    page = (ROOT / "docs" / "lifecycle.md").read_text()
    assert [state for state in State if f"| {int(state)} | {state.name} |" not in page] == []


def test_the_tables_of_growth_at_a_glance_and_in_detail_are_of_the_recorded_results():
    page = (ROOT / "docs" / "growth.md").read_text()
    assert at_a_glance(RESULTS["tasks"]) in page
    assert overview(RESULTS["tasks"]) in page


@pytest.mark.parametrize("document", ["README.md", "docs/growth.md"])
def test_what_growth_is_worth_is_told_in_three_rows_of_the_recorded_results(document):
    text = (ROOT / document).read_text()
    assert in_short(RESULTS, json.loads((GROWTH / "trials.json").read_text())) in text
    assert f"{cost(RESULTS['tasks'])} of the training FLOPs" in text


def test_the_tables_of_growth_are_the_recorded_results():
    assert told(RESULTS) in (GROWTH / "tables.md").read_text()


def test_regret_and_other_data_are_as_recorded():
    page = (ROOT / "docs" / "growth.md").read_text()
    assert regret_table(json.loads((GROWTH / "regret.json").read_text())["tasks"]) in page
    assert other_data_table(json.loads((GROWTH / "other_data.json").read_text())["data"]) in page


@pytest.mark.parametrize("one", [one for one in (SOURCE, GOING_ON) if (GROWTH / f"{one.name}.json").exists()])
def test_growth_at_size_is_as_recorded(one):
    results = json.loads((GROWTH / f"{one.name}.json").read_text())
    assert one.told(results) in (ROOT / "docs" / "growth.md").read_text()


def test_the_readme_tells_what_growth_at_size_is_worth_as_recorded():
    results = json.loads((GROWTH / "source.json").read_text())
    readme = (ROOT / "README.md").read_text()
    for case, host in (("source-0.25M", "0.25 million"), ("source-1M", "1 million")):
        rows = results["tasks"][case]
        line = next(line for line in readme.splitlines() if line.startswith(f"| {host}"))
        for goal in SOURCE.goals:
            if goal.case == case:
                assert f"| {fmean(goal.gains(rows)):.3f}" in line


def test_the_cost_of_a_live_colony_is_as_recorded():
    rows = json.loads((ROOT / "benchmarks" / "results" / "grafts" / "colonies.json").read_text())["rows"]
    assert colonies_table(rows) in (ROOT / "docs" / "colonies.md").read_text()


def test_the_trials_are_as_recorded():
    trials = json.loads((GROWTH / "trials.json").read_text())
    tables = (trials[name] for name in ("summary", "by_task"))
    assert trials_table(*tables) in (ROOT / "docs" / "growth.md").read_text()


def test_how_often_worthless_modules_were_kept_is_told():
    trials = json.loads((GROWTH / "trials.json").read_text())["trials"]
    kept = {name: [bool(one["kept"]) for one in trials if one["blueprint"] == name] for name in CONTROLS}
    text = " ".join((ROOT / "docs" / "growth.md").read_text().split())
    phrases = (
        "a placebo was kept in",
        "a random frozen module in",
        "a placebo colony was kept in",
        "a random colony in",
    )
    for name, phrase in zip(CONTROLS, phrases, strict=True):
        assert f"{phrase} {sum(kept[name])} of {len(kept[name])}" in text


def test_links_between_documents_lead_somewhere():
    documents = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")})
    targets = [
        (document, target)
        for document in documents
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text())
    ]
    assert len(documents) > 10 < len(targets)
    assert [f"{document}: {target}" for document, target in targets if not (document.parent / target).exists()] == []


def test_the_page_of_settings_is_what_the_code_says():
    assert settings_page.page() == settings_page.PAGE.read_text(), "make docs"


def test_the_example_of_the_readme_runs():
    torch.manual_seed(0)
    x, y = torch.randn(400, 16), torch.randint(4, (400,))
    names = {
        "model": nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)),
        **{"x_train": x[:200], "y_train": y[:200], "x_held_out": x[200:], "y_held_out": y[200:]},
    }
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    exec(example, names)
    assert names["session"].epoch == 60
    assert names["plain"](x).shape == (400, 4)


def test_the_example_of_the_page_about_copies_of_blocks_runs():
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "deepening.md").read_text(), flags=re.DOTALL)
    names: dict[str, object] = {}
    exec(example, names)
    assert names["answer"].accepted


def test_the_example_of_the_page_on_colonies_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "colonies.md").read_text(), flags=re.DOTALL)
    exec(example, {})
    table, reports = capsys.readouterr().out.split("\n[")
    assert re.search(r"^\* +colony of 8 ", table, flags=re.MULTILINE)
    assert reports == "('*', 'widen', 212, 'FOSSILIZED')]\n"


def test_how_often_a_comparison_with_a_base_is_right_is_what_was_measured():
    found = json.loads((ROOT / "benchmarks/results/rollout_kit/baseline.json").read_text())["result"]
    page = (ROOT / "docs" / "baselines.md").read_text()
    assert baseline_table(found) in page
    assert f"estimated as {found['slowed']['estimates']['step']['median']:.0%}".replace("%", " %") in page


@pytest.mark.parametrize("name", ["h200-kernels", "h200-step", "h200-agreement", "cpu"])
def test_what_kernels_cost_is_as_recorded(name):
    page = (ROOT / "docs" / "kernels.md").read_text()
    recorded = json.loads((ROOT / "benchmarks" / "results" / "bench" / f"{name}.json").read_text())
    for section in map(Section.from_dict, recorded["sections"]):
        assert f"#{section.told()}" in page


def test_what_checkpoints_take_is_as_recorded():
    page = (ROOT / "docs" / "reliability.md").read_text()
    recorded = json.loads((ROOT / "benchmarks" / "results" / "checkpoints" / "cpu.json").read_text())
    (size,) = (one for one in recorded["sizes"] if one["gigabytes"] == 1.0)
    for name, median in size["seconds_per_gigabyte"].items():
        least, most = size["least_and_most"][name]
        assert f"| {median:.2f} | {least:.2f} to {most:.2f} |" in page


def test_the_faults_that_are_told_are_those_that_were_delivered():
    page = (ROOT / "docs" / "reliability.md").read_text()
    printed = (ROOT / "benchmarks" / "results" / "checkpoints" / "faults.txt").read_text()
    told = dict(line.split(": ", 1) for line in printed.splitlines() if line.startswith("test_"))
    for name, faults in told.items():
        number = int(re.match(r"\D*([0-9]+)", faults)[1])
        assert f"{number:,}" in page, name


def test_what_else_was_examined_is_told():
    results = ROOT / "benchmarks" / "results" / "controller"
    page = (ROOT / "docs" / "learned.md").read_text()
    for name in ("ablations", "seeds"):
        assert beside(json.loads((results / f"{name}.json").read_text())["examined"]) in page
    (placebos,) = json.loads((results / "placebos.json").read_text())["examined"]
    assert verdict(placebos["verdict"]) in page
    assert placebos["weights"] == weights_of("learned")
    for one in json.loads((results / "decisions.json").read_text())["decisions"]:
        assert f"{one['decisions']:,} | {one['median_ms']:.1f} | {one['p95_ms']:.1f} ms" in re.sub(" +", " ", page)


def test_the_exam_of_the_learned_controller_is_that_of_the_weights_that_come_with_esper():
    (result,) = json.loads((ROOT / "benchmarks" / "results" / "controller" / "exam.json").read_text())["examined"]
    assert verdict(result["verdict"]) in (ROOT / "docs" / "learned.md").read_text()
    assert result["weights"] == weights_of("learned")
