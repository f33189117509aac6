"""The page of several runs tells what their files say."""

import json
import math
import re
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from esper.observability.compare import compare
from esper.observability.record import read
from esper.observability.report import comparison_context, comparison_page
from tests.observability.recorded import write_synthetic
from tests.observability.walking import Files, Page, check_numbers, shows


def page_of(*directories) -> Page:
    return Page(comparison_page(compare([read(directory) for directory in directories])))


class ManyFiles(Files):
    """Files of several runs, each behind the run's label."""

    def __init__(self, directories) -> None:
        self._runs = {directory.name: Files(directory) for directory in directories}

    def look_up(self, source):
        label, _, rest = source.partition("/")
        return self._runs[label].look_up(rest)


def split_paired(page: Page) -> list:
    """Takes the numbers out of a page that follow from samples, and gives them."""
    paired = [one for one in page.numbers if json.loads(one[1])[0].startswith("paired_")]
    page.numbers = [one for one in page.numbers if one not in paired]
    return paired


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two finished runs that were tested on the same samples, the second a little better."""
    root = tmp_path_factory.mktemp("pair")
    first, second = (write_synthetic(root / name, seeds=96, boundaries=12, blocks=2) for name in ("one", "other"))
    result = json.loads((second / "result.json").read_text())
    result["rows"]["grown"] |= {"test_loss": 0.3, "test_metric": 0.9}
    (second / "result.json").write_text(json.dumps(result))
    return first, second


def test_every_number_is_the_one_in_the_files_of_its_run(pair, grown, no_controls, interrupted):
    directories = [*pair, grown, no_controls, interrupted]
    page = page_of(*directories)
    split_paired(page)
    assert check_numbers(page, ManyFiles(directories)) > 10
    for run, directory in zip(page.data["runs"], directories, strict=True):
        epochs = Files(directory).events("epoch")
        assert run["name"] == directory.name
        assert run["steps"] == [event["step"] for event in epochs]
        assert run["val_losses"] == [event["val_loss"] for event in epochs]
        assert run["val_metrics"] == [event["val_metric"] for event in epochs]


def test_paired_numbers_follow_from_the_samples(pair):
    root = pair[0].parent
    paired = split_paired(page_of(*pair))
    assert paired
    for value, origin, text, spec in paired:
        how, *sources = json.loads(origin)
        columns = [load_file(root / source.split("#")[0])[source.split("#")[1]].astype(float) for source in sources]
        apart = columns[0] - columns[1]
        mean, error = apart.mean(), apart.std(ddof=1) / math.sqrt(apart.size)
        expected = {"paired_mean": mean, "paired_low": mean - 1.96 * error, "paired_high": mean + 1.96 * error}[how]
        assert np.isclose(json.loads(value), expected, rtol=1e-4, atol=1e-9)
        assert shows(text, json.loads(value), spec)


def test_there_are_no_others(pair):
    assert [text for text in page_of(*pair).loose if re.search(r"\d", text)] == []


def test_one_run_alone_says_so(pair):
    filled = comparison_context(compare([read(pair[0])]))
    assert filled["pairs"] is None
    assert "one run only" in filled["empty"]["pairs"]
    assert page_of(pair[0]).data["runs"][0]["steps"]


def test_runs_without_a_boundary_have_no_curves(pair, tmp_path):
    directory = shutil.copytree(pair[0], tmp_path / "begun")
    (directory / "metrics.jsonl").write_text("")
    filled = comparison_context(compare([read(directory)]))
    assert "boundary" in filled["empty"]["curves"]
    assert comparison_page(compare([read(directory)]))
