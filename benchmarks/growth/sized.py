"""Benchmarks of byte-level transformers of several sizes, on the texts of the environment: cases, options, the way.

Cells, rows, search, tables are those of the other cases. Every size has its own number of steps: so many bytes read for
each parameter of the host.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.growth.arguments import RESULTS, above_0, add_options, at_least
from benchmarks.growth.cases import Case
from benchmarks.growth.computing import compute, forget
from benchmarks.growth.environment import Gathered, gathered, recorded
from benchmarks.growth.goals import Goal
from benchmarks.growth.goals import told as goals_told
from benchmarks.growth.plan import Plan
from benchmarks.growth.results import collected, replaces, told
from benchmarks.growth.short import in_nats
from esper.cli.options import STAYS_UP, TEXT, Options, Pace
from esper.contracts.errors import EsperError
from esper.evaluation.training import Recipe
from esper.tasks.gpt import GPTHost
from esper.tasks.placed import device_named

BYTES = 256
"""Different tokens."""

EPOCHS = 20
"""Boundaries of a run: so often the held-out windows are measured, 1,000 at most, and growth is decided."""

STEP = 1.5
"""Factor between learning rates that are tried next to each other."""

QUICK, QUICK_BYTES = "quick", 250_000


class Size(NamedTuple):
    """A host, its pace, and a first guess of its learning rate."""

    width: int
    blocks: int
    heads: int
    rate: float
    bytes_per_parameter: float
    context: int = 256
    growth: tuple[tuple[str, Any], ...] = ()

    @property
    def host(self) -> GPTHost:
        """Factory of the host."""
        return GPTHost(BYTES, self.context, self.width, 4 * self.width, self.blocks, self.heads)


SIZES = {
    # Bytes are few here, and growth would not be tried at all (min_targets).
    QUICK: Size(16, 2, 2, 6e-3, 20, context=32, growth=(("min_targets", 0),)),
    "0.25M": Size(64, 4, 4, 3e-3, 300),
    "1M": Size(128, 5, 4, 3e-3, 300),
    "5M": Size(256, 6, 8, 1.2e-3, 20),
    "20M": Size(512, 6, 8, 6e-4, 20),
}
"""By name. Those of 5 and 20 million read about as much as is optimal for the FLOPs (Hoffmann et al., "Training
compute-optimal large language models", 2022); a larger network would gain nothing."""


def case_of(name: str, size: str, texts: Gathered, options: argparse.Namespace, **more: Any) -> Case:
    """A case.

    Args:
        name: of the benchmark, to which the size is added.
        size: name in ``SIZES``.
        texts: to learn from.
        options: of the command line: device, precision, compile, batch, rates and bytes for each parameter.
        more: what else it is to have.
    """
    one = SIZES[size]
    to_read = (options.bytes_per_parameter or one.bytes_per_parameter) * one.host.num_parameters(
        one.width, 4 * one.width
    )
    steps = max(1, round(to_read / (options.batch * one.context * EPOCHS)))
    ladder = tuple(float(f"{one.rate * STEP**exponent:.2g}") for exponent in range(-6, 7))
    middle = ladder.index(one.rate)
    tried = (one.rate,) if size == QUICK else ladder[middle - 1 : middle + 2]
    rates = tuple(options.rates) if options.rates else tried
    return Case(
        f"{name}-{size}",
        TEXT + texts.path,
        "gpt",
        Pace(EPOCHS, options.batch, one.rate, STAYS_UP, steps),
        rates=rates,
        tuning_seeds=(900,),
        trained=Recipe(one.rate, STAYS_UP),
        ladder=tuple(sorted({*ladder, *rates})),
        schedules=(STAYS_UP,),
        digest=texts.digest,
        host_settings=(("width", one.width), ("blocks", one.blocks), ("heads", one.heads), ("context", one.context)),
        growth=one.growth,
        precision=options.precision,
        is_compiled=options.compile,
        device=options.device,
        **more,
    )


@dataclass(frozen=True)
class Benchmark:
    """A benchmark of several sizes.

    Args:
        name: of it, and of the file of its results.
        about: it, for ``--help``.
        kinds: of texts that it reads.
        make_cases: gives the cases, by sizes, texts of each kind, and options.
        glances: for each row that grows what stands beside it at a glance, by row.
        goals: what it is to show.
    """

    name: str
    about: str
    kinds: Sequence[str]
    make_cases: Callable[[Sequence[str], Mapping[str, Gathered], argparse.Namespace], list[Case]]
    glances: Mapping[str, Mapping[str, str]]
    goals: Sequence[Goal]

    def told(self, results: Mapping[str, Any]) -> str:
        """Its results at a glance, and its goals."""
        tables = [in_nats(results, grown, controls) for grown, controls in self.glances.items()]
        return "\n\n".join([*filter(None, tables), goals_told(self.goals, results)])


def main(benchmark: Benchmark, arguments: list[str] | None = None) -> int:
    """Compute what is missing, print the tables, write ``NAME.json``; 1 if a cell failed.

    Args:
        benchmark: which.
        arguments: of the command line; None takes those of the process.
    """
    parser = _parser(benchmark)
    options = parser.parse_args(arguments)
    if options.quick and options.output == RESULTS:
        parser.error("A try would be taken for the benchmark. Give --quick together with an --output of its own.")
    with tempfile.TemporaryDirectory() as links:
        try:
            options.device = device_named(Options(device=options.device).device)
            texts = _texts(benchmark.kinds, options, Path(links))
        except EsperError as error:
            parser.error(str(error))
        sizes = [QUICK] if options.quick else options.sizes
        seeds = options.seeds or range(1 if options.quick else 5)
        plan = Plan(options.output, benchmark.make_cases(sizes, texts, options), options.rows, seeds)
        if options.fresh:
            forget(plan)
        failed = [] if options.tables else compute(plan, options.workers, options.seconds)
    for row, reason in plan.waiting().items():
        print(f"not computed: {row}: {reason}")
    write(benchmark, plan, texts)
    if failed:
        print(f"{len(failed)} cells FAILED and are missing from the tables: {', '.join(failed)}")
    return 1 if failed else 0


def _texts(kinds: Sequence[str], options: argparse.Namespace, links: Path) -> dict[str, Gathered]:
    """The texts of the environment, or, for tables alone, of that in which cells were computed."""
    told_in = options.output / "cells" / "texts"
    if options.tables:
        return {kind: recorded(kind, told_in) for kind in kinds}
    return {kind: gathered(kind, links, told_in, QUICK_BYTES if options.quick else None) for kind in kinds}


def write(benchmark: Benchmark, plan: Plan, texts: Mapping[str, Gathered]) -> None:
    """Print what the cells say, and write it; what was written before of other sizes stays beside it."""
    found = collected(plan, families={})
    if not found["tasks"] and not found["others"]:
        print(f"No row is finished in {plan.directory}: nothing is written.")
        return
    published = plan.directory / f"{benchmark.name}.json"
    old = json.loads(published.read_text()) if published.exists() else {}
    results = {part: old.get(part, {}) | found[part] for part in ("settings", "tasks", "others")}
    results["texts"] = {kind: one.told() for kind, one in texts.items()}
    results["machines"] = old.get("machines", []) + [
        one for one in found["machines"] if one not in old.get("machines", [])
    ]
    print(f"\n{told(found)}\n\n{benchmark.told(results)}\n\n{found['machines']}")
    if replaces(results, published):
        published.write_text(json.dumps(results, indent=1) + "\n")
        print(f"Written to {published}")


def _parser(benchmark: Benchmark) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"benchmarks.growth.{benchmark.name}",
        description=benchmark.about,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    sizes = [size for size in SIZES if size != QUICK]
    parser.add_argument("--sizes", nargs="+", choices=sizes, default=sizes[:1], help="of the hosts, in parameters")
    parser.add_argument(
        "--quick", action="store_true", help="a tiny host, few bytes, one seed: under a minute on a CPU"
    )
    parser.add_argument("--rates", nargs="+", type=above_0, help="learning rates to begin with; one is not searched")
    parser.add_argument("--bytes-per-parameter", type=above_0, metavar="N", help="read in training; left out: by size")
    parser.add_argument("--batch", type=at_least(1), default=64, metavar="N", help="windows of a step")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the forward pass")
    parser.add_argument("--compile", action="store_true", help="have torch compile the models")
    add_options(parser, "0-4")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after which no cell is begun")
    return parser
