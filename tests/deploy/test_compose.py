"""What brings it all up: mounted files exist, names and ports agree, the exporter needs what its image has.

Docker itself is not run.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
INNER_PORTS = {"jaeger": {4317}}
"""Ports at which a service listens without being told, and that are not published."""

DOCKERFILE = (DEPLOY / "exporter" / "Dockerfile").read_text()


def ports(service: str) -> set[int]:
    """At which a service listens for the others."""
    published = {int(port.rpartition(":")[2]) for port in SERVICES[service].get("ports", [])}
    return published | INNER_PORTS.get(service, set())


def read(path: str) -> Any:
    return yaml.safe_load((DEPLOY / path).read_text())


def test_it_is_a_compose_file():
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, str(DEPLOY / "compose.yaml")], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_of_one_version_and_reached_from_this_machine_only(name):
    service = SERVICES[name]
    image = service.get("image") or re.search(r"^FROM (.+)$", DOCKERFILE, flags=re.MULTILINE).group(1)
    assert re.search(r":v?\d+\.\d+\.\d+", image)
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_service_mounts_is_there(name):
    for volume in SERVICES[name].get("volumes", []):
        source = volume.partition(":")[0]
        if source.startswith("."):
            assert (DEPLOY / source).exists(), volume
            assert volume.endswith(":ro")
        else:
            assert source in COMPOSE["volumes"]


def test_services_find_each_other():
    prometheus = read("prometheus/prometheus.yml")
    targets = [one for job in prometheus["scrape_configs"] for at in job["static_configs"] for one in at["targets"]]
    targets += [one for at in prometheus["alerting"]["alertmanagers"][0]["static_configs"] for one in at["targets"]]
    for path in (DEPLOY / "grafana" / "provisioning" / "datasources").glob("*.yaml"):
        targets += [one["url"].removeprefix("http://") for one in yaml.safe_load(path.read_text())["datasources"]]
    collector = read("otel/collector.yaml")
    targets.append(collector["exporters"]["otlp"]["endpoint"])
    targets.append(SERVICES["exporter"]["command"][1].removeprefix("redis://"))
    assert len(targets) == 6
    for target in targets:
        service, _, port = target.partition(":")
        assert int(port) in ports(service), target


def test_services_listen_where_their_ports_are_published():
    assert ports("exporter") == {int(SERVICES["exporter"]["command"][-1])}
    endpoint = read("otel/collector.yaml")["receivers"]["otlp"]["protocols"]["http"]["endpoint"]
    assert ports("collector") == {int(endpoint.rpartition(":")[2])}


def test_a_pipeline_of_the_collector_is_made_of_what_it_defines():
    collector = read("otel/collector.yaml")
    for pipeline in collector["service"]["pipelines"].values():
        for part in ("receivers", "processors", "exporters"):
            assert set(pipeline[part]) <= collector[part].keys()


def test_rules_are_where_prometheus_looks_for_them():
    mounted = [volume.split(":")[1] for volume in SERVICES["prometheus"]["volumes"]]
    for name in read("prometheus/prometheus.yml")["rule_files"]:
        assert f"/etc/prometheus/{name}" in mounted


def installed() -> set[str]:
    """What the image of the exporter installs."""
    line = re.search(r"-c constraints.txt (.+?) \\$", DOCKERFILE, flags=re.MULTILINE).group(1)
    return set(shlex.split(line))


def test_the_image_of_the_exporter_installs_what_the_extras_name():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {re.split("[><=]", one)[0] for extra in ("bus", "redis", "metrics") for one in extras[extra]}
    assert installed() == named - {"nvidia-ml-py"}
    pinned = (ROOT / "constraints.txt").read_text().replace("_", "-")
    assert [name for name in installed() if f"{name.partition('[')[0]}==" not in pinned] == []


def test_the_image_of_the_exporter_copies_what_the_package_is_built_from(tmp_path):
    ignored = (DEPLOY / "exporter" / "Dockerfile.dockerignore").read_text().split()
    for line in re.findall(r"^COPY (.+)$", DOCKERFILE, flags=re.MULTILINE):
        *sources, _ = line.split()
        for source in sources:
            assert f"!{source}" in ignored
            copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
            copy(ROOT / source, tmp_path / source)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist")]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert "esper/cli/exporting.py" in zipfile.ZipFile(wheel).namelist()


ONLY = """
import importlib.abc, sys
class Refusing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in {allowed} | set(sys.stdlib_module_names):
            raise ModuleNotFoundError(f"not in the image: {{name}}", name=name)
sys.meta_path.insert(0, Refusing())
from esper.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_the_exporter_needs_nothing_that_its_image_has_not(redis_url):
    allowed = {name.partition("[")[0].replace("-", "_") for name in installed()} | {"hiredis", "esper"}
    command = [sys.executable, "-c", ONLY.format(allowed=allowed), "exporter", "--bus", redis_url, "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        line = process.stdout.readline()
        port = re.search(r":(\d+)/metrics", line)
        assert port, line + process.stdout.read()
        with urllib.request.urlopen(f"http://127.0.0.1:{port.group(1)}/metrics", timeout=30) as answer:
            assert "esper_exporter_bus_up" in answer.read().decode()
    finally:
        process.terminate()
        process.stdout.close()
        process.wait()
