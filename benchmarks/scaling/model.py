"""What Esper takes by number of GPUs, computed from what was measured. Every rank holds the whole model (DDP)."""

import json
import math
from dataclasses import dataclass
from typing import Any, Self

import torch

from benchmarks.measurements import RESULTS
from benchmarks.scaling.laws import Law, better, line
from esper.tasks.gpt import GPTHost

TRAINED, KEPT = 16, 12
"""Bytes of a parameter in float32: weight, gradient and AdamW's two moments; a checkpoint holds no gradient."""

ROUND_US = 10.0
"""Assumed, not measured: microseconds that a small all-reduce between GPUs takes more each time the ranks double."""


def read(group: str, name: str) -> Any:
    """What a benchmark has kept."""
    found = json.loads((RESULTS / group / f"{name}.json").read_text())
    return found.get("result", found)


@dataclass(frozen=True, slots=True)
class Host:
    """A transformer with seeds in all layers of its perceptrons and two live grafts in one of the narrow ones.

    Args:
        name: of the model.
        parameters: of the model.
        places: layers with seeds.
        channels: of all of these.
        width: of the stream, which the grafts read and write.
    """

    name: str
    parameters: int
    places: int
    channels: int
    width: int

    @classmethod
    def of(cls, name: str, host: GPTHost) -> Self:
        """Counted without memory for it."""
        with torch.device("meta"):
            parameters = sum(one.numel() for one in host().parameters())
        return cls(name, parameters, 2 * host.blocks, host.blocks * (host.hidden + host.width), host.width)


@dataclass(frozen=True, slots=True)
class Constants:
    """What was measured.

    Args:
        column_bytes: of a seed's state (``sizes``).
        sensed_bytes: of what seeds sense, by channels (``sizes``).
        graft: parameters of a graft, by width (``sizes``).
        dormant, growing: share of DDP's throughput on two GPUs (``ranks/h200.json``).
        step_ms: of DDP there.
        per_step: collective calls of a dormant step and of one with grafts (``counting``).
        meetings, told: at a boundary: how often ranks only meet on the host, and how often rank 0 tells something.
        told_bytes: what rank 0 tells, by layers.
        meet_us, tell_us: microseconds of both, by ranks (``exchanges``).
        sockets: of a rank, by ranks.
        gather_bytes: that a rank sends when all tell a kilobyte, by ranks.
        write_s: seconds to write and read back a gigabyte of a checkpoint (``checkpoints/cpu.json``).
        step_s: the processor's, by layers with seeds (``sizes``).
        report_bytes: of a layer's report (``control``).
        line_bytes: of a telemetry line in memory, by layers.
    """

    column_bytes: float
    sensed_bytes: Law
    graft: Law
    dormant: float
    growing: float
    step_ms: float
    per_step: tuple[float, float]
    meetings: int
    told: int
    told_bytes: Law
    meet_us: Law
    tell_us: Law
    sockets: Law
    gather_bytes: Law
    write_s: float
    step_s: Law
    report_bytes: float
    line_bytes: Law

    @classmethod
    def measured(cls) -> Self:
        """From the results in the repository."""
        sizes, counted, control = (read("scaling", name) for name in ("sizes", "counting", "control"))
        ranks, exchanges = read("ranks", "h200"), read("scaling", "exchanges")
        [checkpoint] = [one for one in read("checkpoints", "cpu")["sizes"] if one["gigabytes"] == 1.0]
        steps = {name: _calls(counted["8"][f"10 steps, {name}"]) / 10 for name in ("dormant", "a graft")}
        boundary = counted["8"]["boundary, dormant"]
        tells = sum(one["times"] for name, one in boundary.items() if name.startswith("same"))
        told = {
            int(layers): sum(one["bytes"] for name, one in of["boundary, dormant"].items() if name.startswith("same"))
            for layers, of in counted.items()
        }
        return cls(
            column_bytes=sizes["state"][0]["columns"] / sizes["state"][0]["seeds"],
            sensed_bytes=line({one["channels"]: one["sensed"] for one in sizes["state"]}),
            graft=line({one["width"]: one["parameters"] for one in sizes["graft"]}),
            dormant=ranks["throughput"]["dormant"]["throughput"],
            growing=ranks["throughput"]["growing"]["throughput"],
            step_ms=ranks["bare_milliseconds"],
            per_step=(steps["dormant"], steps["a graft"]),
            meetings=boundary["meeting"]["times"] - tells,
            told=tells,
            told_bytes=line(told),
            meet_us=better(by_ranks(exchanges, "check_equal", "least")),
            tell_us=better(by_ranks(exchanges, "same, 1 KB", "least")),
            sockets=line({int(ranks): one["sockets"] for ranks, one in exchanges.items()}),
            gather_bytes=line(by_ranks(exchanges, "gather, 1 KB", "bytes")),
            write_s=checkpoint["seconds_per_gigabyte"]["write"],
            step_s=line({one["layers"]: one["more for a step s"] for one in sizes["layers"]}),
            report_bytes=control["one run"]["reports"][-1]["bytes of its messages"]
            / control["one run"]["reports"][-1]["layers"],
            line_bytes=line(
                {
                    one["layers"]: one["bytes of a line that waits"]
                    for one in control["one run"]["reports"]
                    if one["layers"] >= 10_000
                }
            ),
        )


def by_ranks(exchanges: Any, name: str, what: str) -> dict[int, float]:
    """A figure of an exchange by number of ranks."""
    return {int(ranks): one["exchanges"][name][what] for ranks, one in exchanges.items()}


def _calls(counted: dict[str, dict[str, int]]) -> int:
    return sum(one["times"] for one in counted.values())


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on each GPU, whatever their number: the model with optimizer, all seeds, and the grafts with optimizer."""

    model: float
    seeds: float
    grafts: float


def memory(host: Host, of: Constants, seeds: int = 64, grafts: int = 2) -> Memory:
    """Of a model without its activations."""
    columns = of.column_bytes * seeds * host.places
    sensed = of.sensed_bytes.b * host.channels + of.sensed_bytes.a * host.places
    return Memory(TRAINED * host.parameters, columns + sensed, TRAINED * grafts * of.graft.at(host.width))


@dataclass(frozen=True, slots=True)
class Row:
    """What it takes on so many GPUs.

    Args:
        gpus: how many.
        gradients: bytes that DDP sends from each GPU at a step.
        dormant, growing: bytes that Esper sends beside, at a step with sleeping seeds and with grafts.
        boundary: bytes that it sends from each GPU at a boundary.
        slower_dormant, slower_growing: share of a step's time.
        meeting_ms: what ranks exchange on the host at a boundary.
        sockets: of each rank for that.
        checkpoints: bytes of one checkpoint of all ranks.
    """

    gpus: int
    gradients: float
    dormant: float
    growing: float
    boundary: float
    slower_dormant: float
    slower_growing: float
    meeting_ms: float
    sockets: float
    checkpoints: float


def row(host: Host, of: Constants, gpus: int, seeds: int = 64, grafts: int = 2) -> Row:
    """Traffic is that of rings, in which each sends ``2 (n - 1) / n`` of what is added up."""
    ring, doubled = 2 * (gpus - 1) / gpus, max(0.0, math.log2(gpus) - 1)
    sensed = 4 * (5 * host.channels + 4 * host.places)
    slower = [
        (1 / share - 1) + 1e-3 * ROUND_US * calls * doubled / of.step_ms if gpus > 1 else math.nan
        for share, calls in zip((of.dormant, of.growing), of.per_step, strict=True)
    ]
    meeting = of.meetings * of.meet_us.at(gpus) + of.told * of.tell_us.at(gpus) if gpus > 1 else 0.0
    return Row(
        gpus=gpus,
        gradients=ring * 4 * host.parameters,
        dormant=ring * 4,
        growing=ring * 4 * (1 + grafts * (of.graft.at(host.width) + seeds)),
        boundary=ring * sensed + (gpus > 1) * of.told_bytes.at(host.places),
        slower_dormant=slower[0],
        slower_growing=slower[1],
        meeting_ms=1e-3 * meeting,
        sockets=of.sockets.at(gpus) if gpus > 1 else 0.0,
        checkpoints=KEPT * host.parameters * gpus,
    )


def hosts() -> list[Host]:
    """The two models of the page."""
    return [
        Host.of("GPT-2 small", GPTHost(50257, 1024, 768, 3072, 12, 12)),
        Host.of("7B", GPTHost(50257, 4096, 4096, 16_384, 32, 32)),
    ]
