"""What is wrong with manifests of Kubernetes, as a cluster and Esper would find it: sentences, none if all fits."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jsonschema
import kubernetes_validate
import yaml
from torch.distributed.run import get_args_parser

from esper.cli.command_line import parse
from esper.cli.commands.exporter import PORT
from esper.cli.configuration_file import read_file
from esper.contracts.errors import ConfigError
from esper.oona.environment import KEYS, STORE

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
CONTAINERFILE = (ROOT / "deploy" / "Containerfile").read_text()
VERSIONS = ("1.31", "1.37")
"""Of Kubernetes: the oldest and the newest one that must take them."""
OURS = "app.kubernetes.io/part-of"

Document = dict[str, Any]

_FREE: dict[str, Any] = {"type": "object"}


def _group(**more: Document) -> Document:
    """Of pods of a Ray cluster."""
    start = {"type": "object", "additionalProperties": {"type": "string"}}
    properties = {"rayStartParams": start, "template": _FREE, **more}
    return {"type": "object", "additionalProperties": False, "required": ["template"], "properties": properties}


RAY_JOB: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["rayClusterSpec"],
    "properties": {
        "entrypoint": {"type": "string"},
        "submissionMode": {"enum": ["K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"]},
        "backoffLimit": {"type": "integer"},
        "shutdownAfterJobFinishes": {"type": "boolean"},
        "ttlSecondsAfterFinished": {"type": "integer", "minimum": 0},
        "rayClusterSpec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["headGroupSpec"],
            "properties": {
                "rayVersion": {"type": "string"},
                "headGroupSpec": _group(),
                "workerGroupSpecs": {
                    "type": "array",
                    "items": _group(
                        groupName={"type": "string"},
                        **{key: {"type": "integer"} for key in ("replicas", "minReplicas", "maxReplicas")},
                    ),
                },
            },
        },
    },
}
"""The part of KubeRay's schema (ray.io/v1, spec) that is used here; templates of pods are checked as pods."""


@dataclass(frozen=True)
class Container:
    """A container of a pod template, with the document that it is of.

    Args:
        owner: its document.
        template: its pod's.
        spec: the container itself.
    """

    owner: Document
    template: Document
    spec: Document

    @property
    def variables(self) -> dict[str, Any]:
        """Of its environment, by name."""
        return {one["name"]: one for one in self.spec.get("env", [])}

    @property
    def ports(self) -> dict[str, int]:
        """By name."""
        return {one["name"]: one["containerPort"] for one in self.spec.get("ports", [])}

    def line(self, values: dict[str, str]) -> list[str]:
        """What is started, with variables put in as Kubernetes does."""
        ray = self.owner["spec"].get("entrypoint")
        line = shlex.split(ray) if ray else [*self.spec.get("command", entry_point()), *self.spec.get("args", [])]
        return [re.sub(r"\$\((\w+)\)", lambda found: values[found[1]], one) for one in line]


def entry_point() -> list[str]:
    """Of the image."""
    found = re.search(r"^ENTRYPOINT \[(.+)\]$", CONTAINERFILE, flags=re.MULTILINE)
    assert found, "not in the exec form"
    return [one.strip().strip('"') for one in found[1].split(",")]


def documents(folder: Path = FOLDER) -> list[Document]:
    """All of the manifests."""
    return [one for path in sorted(folder.rglob("*.yaml")) for one in yaml.safe_load_all(path.read_text())]


def named(every: list[Document], kind: str, name: str) -> Document:
    """One of them."""
    (found,) = (one for one in every if (one["kind"], one["metadata"]["name"]) == (kind, name))
    return found


def templates(every: list[Document]) -> Iterator[tuple[Document, Document]]:
    """Documents that make pods, with the template."""
    for one in every:
        if one["kind"] == "RayJob":
            cluster = one["spec"]["rayClusterSpec"]
            for group in (cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", [])):
                yield one, group["template"]
        elif "template" in one.get("spec", {}):
            yield one, one["spec"]["template"]


def containers(every: list[Document]) -> list[Container]:
    """All of them."""
    return [Container(one, pod, spec) for one, pod in templates(every) for spec in pod["spec"]["containers"]]


def complaints(every: list[Document]) -> list[str]:
    """All that is wrong."""
    checks = (schemas, restricted, references, selections, environments, command_lines, ports, ranks)
    return [f"{check.__name__}: {one}" for check in checks for one in check(every)]


def schemas(every: list[Document]) -> Iterator[str]:
    """A document that its kind does not allow."""
    for one in every:
        name = one["metadata"]["name"]
        for version in VERSIONS:
            try:
                for known in _as_known(one):
                    kubernetes_validate.validate(known, version, strict=True)
                if one["kind"] == "RayJob":
                    jsonschema.validate(one["spec"], RAY_JOB)
            except jsonschema.ValidationError as error:
                yield f"{one['kind']} {name}: {error.message}"


def _as_known(document: Document) -> list[Document]:
    """Kubernetes knows no RayJob, but the pods that it makes."""
    if document["kind"] != "RayJob":
        return [document]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": document["metadata"]}
    return [pod | {"spec": template["spec"]} for _, template in templates([document])]


def restricted(every: list[Document]) -> Iterator[str]:
    """A pod that has more rights than the namespace allows, or that keeps what it writes in its image."""
    for one, template in templates(every):
        name, pod = one["metadata"]["name"], template["spec"]
        of_pod = pod.get("securityContext", {})
        if not of_pod.get("runAsNonRoot") or of_pod.get("seccompProfile") != {"type": "RuntimeDefault"}:
            yield f"{name}: the pod may run as root, or without a seccomp profile"
        if pod.get("automountServiceAccountToken") is not False:
            yield f"{name}: the pod is given a token of the cluster"
        for container in pod["containers"]:
            own = container.get("securityContext", {})
            if own.get("allowPrivilegeEscalation") is not False or own.get("capabilities") != {"drop": ["ALL"]}:
                yield f"{name}: the container may gain rights"
            if not own.get("readOnlyRootFilesystem"):
                yield f"{name}: the container may write to its image"
            if "memory" not in container.get("resources", {}).get("limits", {}):
                yield f"{name}: the container's memory has no bound"


def references(every: list[Document]) -> Iterator[str]:
    """A ConfigMap, a Secret, a key of one, a claim or a volume that is not there."""
    there = {(one["kind"], one["metadata"]["name"]): one for one in every}
    for one, template in templates(every):
        name, pod = one["metadata"]["name"], template["spec"]
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        for volume in volumes.values():
            wanted = [("ConfigMap", volume["configMap"]["name"])] if "configMap" in volume else []
            if "persistentVolumeClaim" in volume:
                wanted.append(("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]))
            yield from (f"{name}: there is no {kind} {other}" for kind, other in wanted if (kind, other) not in there)
        for container in pod["containers"]:
            for mount in container.get("volumeMounts", []):
                if mount["name"] not in volumes:
                    yield f"{name}: there is no volume {mount['name']}"
            for variable in container.get("env", []):
                asked = variable.get("valueFrom", {}).get("secretKeyRef")
                if asked and asked["key"] not in there.get(("Secret", asked["name"]), {}).get("stringData", {}):
                    yield f"{name}: there is no {asked['key']} in Secret {asked['name']}"
        hosts = pod.get("subdomain")
        if hosts is not None and there.get(("Service", hosts), {}).get("spec", {}).get("clusterIP") != "None":
            yield f"{name}: there is no headless Service {hosts}"


def selections(every: list[Document]) -> Iterator[str]:
    """A selector that takes no pod, or a port by a name that no such pod has; a pod to which nothing is denied."""
    pods = [(template["metadata"]["labels"], template) for _, template in templates(every)]

    def taken(selector: dict[str, str]) -> list[Document]:
        return [template for labels, template in pods if selector.items() <= labels.items()]

    def names(chosen: list[Document]) -> set[str]:
        return {port["name"] for one in chosen for spec in one["spec"]["containers"] for port in spec.get("ports", [])}

    denied: list[Document] = []
    for one in every:
        name, spec = f"{one['kind']} {one['metadata']['name']}", one.get("spec", {})
        if one["kind"] == "Service":
            chosen, wanted = taken(spec["selector"]), {port.get("targetPort", port["name"]) for port in spec["ports"]}
        elif one["kind"] in ("Deployment", "PodDisruptionBudget"):
            chosen, wanted = taken(spec["selector"]["matchLabels"]), set()
        elif one["kind"] == "NetworkPolicy":
            chosen = taken(spec["podSelector"]["matchLabels"])
            rules = spec.get("ingress", [])
            wanted = {port["port"] for rule in rules for port in rule.get("ports", [])}
            if spec["policyTypes"] == ["Ingress", "Egress"] and "ingress" not in spec and "egress" not in spec:
                denied += chosen
        else:
            continue
        if not chosen:
            yield f"{name} selects no pod"
        yield from (f"{name}: no pod has a port {port!r}" for port in wanted - names(chosen))
    for labels, template in pods:
        if template not in denied:
            yield f"nothing is denied to {labels['app.kubernetes.io/name']}"


def environments(every: list[Document]) -> Iterator[str]:
    """A variable that nobody reads, or one that is put in and not there."""
    for container in containers(every):
        name, written = container.owner["metadata"]["name"], " ".join(container.spec.get("args", []))
        used = set(re.findall(r"\$\((\w+)\)", written))
        yield from (f"{name}: {one} is not there" for one in used - container.variables.keys())
        yield from (f"{name}: nobody reads {one}" for one in container.variables.keys() - used - {KEYS, STORE})


def command_lines(every: list[Document]) -> Iterator[str]:
    """A line that Esper or torchrun does not take, or a file in it that is not where it is looked for."""
    held = named(every, "ConfigMap", "esper")["data"]
    for container in containers(every):
        name = container.owner["metadata"]["name"]
        line = container.line(dict.fromkeys(container.variables, "1"))
        mounted = {mount["mountPath"] for mount in container.spec["volumeMounts"]}
        for word in line:
            path = Path(word.rpartition("=")[2])
            if path.parent == Path("/etc/esper") and (path.name not in held or "/etc/esper" not in mounted):
                yield f"{name}: there is no {path}"
            if path.is_relative_to("/runs") and "/runs" not in mounted:
                yield f"{name}: {path} is not kept"
            if path.is_relative_to("/esper") and not (ROOT / path.relative_to("/esper")).is_file():
                yield f"{name}: the image has no {path}"
        try:
            yield from (f"{name}: {one}" for one in _refused(line, held))
        except ConfigError as error:
            yield f"{name}: {error}"


def _refused(line: list[str], held: dict[str, str]) -> Iterator[str]:
    program, *words = line
    if program == "torchrun":
        try:
            get_args_parser().parse_args(words)
        except SystemExit:
            yield f"torchrun does not take {words}"
    elif program != "esper":
        yield f"there is no program {program}"
    else:
        with TemporaryDirectory() as folder:
            for name, text in held.items():
                Path(folder, name).write_text(text)
            parse([one.replace("/etc/esper", folder) for one in words if not one.startswith("--config=")])


def check_configuration(every: list[Document], folder: Path) -> None:
    """Read the configuration of the run as ``esper run --config`` does.

    Raises:
        ConfigError: if it is wrong.
    """
    path = folder / "run.yaml"
    path.write_text(named(every, "ConfigMap", "esper")["data"]["run.yaml"])
    read_file(path)
    parse(["run", f"--config={path}"])


def ports(every: list[Document]) -> Iterator[str]:
    """A port that is not the one at which a process listens."""
    for container in containers(every):
        name, listening = container.owner["metadata"]["name"], container.ports
        said = dict(one.lstrip("-").split("=", 1) for one in container.spec.get("args", []) if one.startswith("--"))
        wanted = {
            "metrics": said.get("port") if int(said.get("port", PORT)) == PORT else None,
            "health": said.get("health", "").rpartition(":")[2],
            "meeting": said.get("master-port"),
        }
        for port in listening.keys() & wanted.keys():
            if str(listening[port]) != wanted[port]:
                yield f"{name}: {port} is at {wanted[port]}, not at {listening[port]}"
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            if kind in container.spec and container.spec[kind]["httpGet"]["port"] not in listening:
                yield f"{name}: {kind} asks at a port that is not there"
    annotated = named(every, "Service", "esper-exporter")["metadata"]["annotations"]["prometheus.io/port"]
    if int(annotated) != PORT:
        yield f"Prometheus is sent to port {annotated}"


def ranks(every: list[Document]) -> Iterator[str]:
    """Numbers of a job of several ranks that do not agree."""
    job, service = named(every, "Job", "several-gpus"), named(every, "Service", "several-gpus")
    (container,) = containers([job])
    said = get_args_parser().parse_args(container.line({"JOB_COMPLETION_INDEX": "0"})[1:])
    if not int(said.nnodes) == job["spec"]["completions"] == job["spec"]["parallelism"]:
        yield "there are not as many pods as nodes"
    if said.master_addr != f"{job['metadata']['name']}-0.{job['spec']['template']['spec']['subdomain']}":
        yield f"pod 0 is not called {said.master_addr}"
    if said.master_port not in [port["port"] for port in service["spec"]["ports"]]:
        yield "the Service has another port"
    if said.shutdown_timeout >= job["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]:
        yield "the kubelet kills before torchrun does"
