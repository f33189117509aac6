"""``python -m benchmarks.kernel_pictures RESULTS``: what seeds and grafts cost, as pictures.

Reads what ``esper bench --output RESULTS`` has written, and writes an SVG beside it for every part that has a line.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("svg")

from matplotlib import pyplot

from esper.evaluation.bench.clock import Spread
from esper.evaluation.bench.section import Section

AXES = {
    "added, us": ("dormant seeds of the layer", "log"),
    "forward and backward, us": ("seeds with grafts, %", "linear"),
}


def draw(title: str, name: str, line: Sequence[tuple[float, Spread]], output: Path) -> None:
    """A line with its quartiles, from zero; ``name`` is one of :data:`AXES`."""
    label, scale = AXES[name]
    figure, axes = pyplot.subplots(figsize=(7, 3.6), layout="constrained")
    spreads = [spread for _, spread in line]
    errors = [[one.middle - one.low for one in spreads], [one.high - one.middle for one in spreads]]
    axes.errorbar([x for x, _ in line], [one.middle for one in spreads], errors, marker="o", capsize=3)
    axes.set(title=title, xlabel=label, ylabel=name, xscale=scale)
    axes.set_ylim(0, 1.15 * max(one.high for one in spreads))
    axes.title.set_fontsize(10)
    axes.grid(alpha=0.3)
    figure.savefig(output, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    """All lines of a file."""
    parser = argparse.ArgumentParser(prog="benchmarks.kernel_pictures", description=__doc__)
    parser.add_argument("results", type=Path)
    results = parser.parse_args().results
    pyplot.rcParams |= {"svg.hashsalt": "esper", "svg.fonttype": "none"}  # the same bytes each time; text as text
    for saved in json.loads(results.read_text())["sections"]:
        section = Section.from_dict(saved)
        for name, line in section.points.items():
            output = results.with_name(f"{results.stem}-{AXES[name][0].split()[0]}.svg")
            draw(section.title, name, line, output)
            print(output)


if __name__ == "__main__":
    main()
