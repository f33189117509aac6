"""The manifests of Kubernetes and the image: what they ask for exists and fits together. No cluster is run."""

import copy
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from esper.cli.main import INTERRUPTED, WRONG_INPUT, main
from esper.cli.sweep_file import read_sweep
from esper.contracts.errors import BusError
from esper.oona.environment import KEYS, codec
from tests.deploy import manifests
from tests.deploy.manifests import (
    CONTAINERFILE,
    ROOT,
    Document,
    check_configuration,
    complaints,
    containers,
    documents,
    named,
)

EVERY = documents()
IGNORED = (ROOT / "deploy" / "Containerfile.dockerignore").read_text().split()


def test_nothing_is_wrong_with_the_manifests():
    assert complaints(EVERY) == []


def test_a_configuration_is_one_that_esper_run_takes(tmp_path):
    check_configuration(EVERY, tmp_path)


def test_a_sweep_is_one_that_esper_sweep_takes(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(named(EVERY, "ConfigMap", "esper")["data"]["sweep.yaml"])
    assert read_sweep(path).output == Path("/runs/sweep")


def _container(every: list[Document], kind: str, name: str) -> dict[str, Any]:
    found, *_ = containers([named(every, kind, name)])
    return found.spec


def _swap(every: list[Document], kind: str, name: str, old: str, new: str) -> None:
    args = _container(every, kind, name)["args"]
    args[args.index(old)] = new


BROKEN: dict[str, tuple[str, Callable[[list[Document]], Any]]] = {
    "a field that is not there": (
        "schemas",
        lambda every: named(every, "Job", "run")["spec"].update(backofLimit=1),
    ),
    "a field of a RayJob": (
        "schemas",
        lambda every: named(every, "RayJob", "sweep")["spec"].update(entryPoint="esper"),
    ),
    "a pod of a RayJob": (
        "schemas",
        lambda every: _container(every, "RayJob", "sweep").update(imagePolicy="Always"),
    ),
    "more rights": (
        "restricted",
        lambda every: _container(every, "Deployment", "tamiyo")["securityContext"].update(capabilities={}),
    ),
    "another Secret": (
        "references",
        lambda every: named(every, "Secret", "esper-bus")["metadata"].update(name="bus"),
    ),
    "another claim": (
        "references",
        lambda every: named(every, "PersistentVolumeClaim", "esper-runs")["metadata"].update(name="runs"),
    ),
    "a Service that is not headless": (
        "references",
        lambda every: named(every, "Service", "several-gpus")["spec"].pop("clusterIP"),
    ),
    "a policy for nobody": (
        "selections",
        lambda every: named(every, "NetworkPolicy", "several-gpus")["spec"]["podSelector"].update(
            matchLabels={"app.kubernetes.io/name": "ranks"}
        ),
    ),
    "everything allowed": (
        "selections",
        lambda every: named(every, "NetworkPolicy", "esper-nothing")["spec"].update(egress=[{}]),
    ),
    "a port that no pod has": (
        "selections",
        lambda every: named(every, "Service", "esper-exporter")["spec"]["ports"][0].update(targetPort="web"),
    ),
    "a variable that nobody reads": (
        "environments",
        lambda every: _container(every, "Job", "run")["env"].append({"name": "ESPER_BUSS", "value": "1"}),
    ),
    "a variable that is not there": (
        "environments",
        lambda every: _container(every, "Job", "several-gpus").pop("env"),
    ),
    "an option that is not there": (
        "command_lines",
        lambda every: _swap(every, "Deployment", "tamiyo", "--log-format=json", "--log=json"),
    ),
    "a value that is refused": (
        "command_lines",
        lambda every: _swap(every, "Job", "run", "--resume=auto", "--resume=always"),
    ),
    "a script that the image has not": (
        "command_lines",
        lambda every: _swap(
            every, "Job", "several-gpus", "/esper/examples/several_gpus.py", "/esper/examples/ranks.py"
        ),
    ),
    "a file that no ConfigMap has": (
        "command_lines",
        lambda every: named(every, "ConfigMap", "esper")["data"].pop("sweep.yaml"),
    ),
    "another port": (
        "ports",
        lambda every: _swap(every, "Deployment", "esper-exporter", "--port=9464", "--port=9465"),
    ),
    "fewer pods": (
        "ranks",
        lambda every: named(every, "Job", "several-gpus")["spec"].update(completions=1),
    ),
    "too little time to end": (
        "ranks",
        lambda every: named(every, "Job", "several-gpus")["spec"]["template"]["spec"].update(
            terminationGracePeriodSeconds=30
        ),
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_broken_is_found(what):
    check, break_ = BROKEN[what]
    every = copy.deepcopy(EVERY)
    break_(every)
    assert list(getattr(manifests, check)(every))


def test_a_secret_that_was_not_filled_in_is_refused(capsys):
    held = named(EVERY, "Secret", "esper-bus")["stringData"]
    for command in (["tamiyo", "serve"], ["exporter"]):
        assert main([*command, f"--bus={held['url']}"]) == WRONG_INPUT
        assert "no URL of a bus" in capsys.readouterr().err
    with pytest.raises(BusError, match="openssl rand"):
        codec({KEYS: held["keys"]})


def test_a_run_that_was_stopped_is_no_failure():
    rules = named(EVERY, "Job", "run")["spec"]["podFailurePolicy"]["rules"]
    assert [rule["onExitCodes"]["values"] for rule in rules if "onExitCodes" in rule] == [[INTERRUPTED]]


def _lines(word: str) -> list[str]:
    return re.findall(rf"^{word} (.+)$", CONTAINERFILE, flags=re.MULTILINE)


def test_the_image_copies_what_is_there_and_nothing_else():
    copied = {source for line in _lines("COPY") for source in line.split()[:-1]}
    assert all((ROOT / source).exists() for source in copied)
    assert {f"!{source}" for source in copied} == {line for line in IGNORED if line.startswith("!")}
    assert IGNORED[0] == "*"
    assert {"pyproject.toml", "LICENSE", "src"} <= copied  # what the wheel is built from


def test_the_image_installs_what_can_be_chosen_and_runs_as_a_number_that_is_not_root():
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    arguments = dict(line.split("=", 1) for line in _lines("ARG"))
    assert re.search(r":\d+\.\d+\.\d+", arguments["BASE"])
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    for chosen in (arguments["EXTRAS"], *re.findall(r"EXTRAS=([\w,-]+)", page)):
        assert set(chosen.split(",")) <= told["optional-dependencies"].keys()
    assert {"${EXTRAS}", "${PACKAGES}"} <= set(re.findall(r"\$\{\w+\}", CONTAINERFILE))
    (user,) = _lines("USER")
    assert all(
        container.template["spec"]["securityContext"]["runAsUser"] == int(user.partition(":")[0]) > 0
        for container in containers(EVERY)
    )
    assert "esper" in told["scripts"]


@pytest.mark.parametrize("container", containers(EVERY), ids=lambda one: one.owner["metadata"]["name"])
def test_an_image_is_of_the_version_that_this_is(container):
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert container.spec["image"].rpartition(":")[2] == told["version"]
