"""The workflows under .github fit their schema, and call only what runs here."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from esper.cli.command_line import parse
from esper.contracts.errors import ConfigError

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
COMMANDS = [
    (path.name, step["run"])
    for path in WORKFLOWS
    for job in yaml.safe_load(path.read_text())["jobs"].values()
    for step in job["steps"]
    if "run" in step
]
TARGETS = dict(re.findall(r"^([a-z-]+):.*\n((?:\t.*\n)*)", (ROOT / "Makefile").read_text(), re.MULTILINE))


def check(*paths: Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", *map(str, paths)]
    return subprocess.run(line, capture_output=True, text=True)


def test_workflows_fit_their_schema():
    done = check(*WORKFLOWS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_workflow_that_does_not_is_found(tmp_path):
    (tmp_path / "bad.yml").write_text((ROOT / ".github/workflows/flags.yml").read_text().replace("runs-on", "runs_on"))
    assert check(tmp_path / "bad.yml").returncode == 1


@pytest.mark.parametrize(("workflow", "command"), COMMANDS)
def test_a_step_runs_a_target_or_ci(workflow, command):
    if command == ".ci/run":
        assert (ROOT / command).stat().st_mode & 0o111
        return
    make, target = command.split()
    assert make == "make"
    assert TARGETS[target]


@pytest.mark.parametrize("target", ["bench-gate", "regression", "ab", "flags", "rollout"])
def test_a_target_calls_a_command_line_that_esper_takes(target):
    (line,) = [line for line in TARGETS[target].splitlines() if "$(BIN)/esper" in line]
    words = line.partition("$(BIN)/esper ")[2].removesuffix("; fi").replace("$(ARGS)", "").replace("$(FLAGS)", "f.json")
    parse([word.strip('"') for word in re.sub(r"\$\(\w+\)", "HEAD~1", words).split()])


def test_a_command_line_that_esper_does_not_take_is_found():
    with pytest.raises(ConfigError):
        parse(["flags", "validate", "--flag", "f.json"])


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_may_only_read(path):
    assert yaml.safe_load(path.read_text())["permissions"] == {"contents": "read"}
