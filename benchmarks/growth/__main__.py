"""``python -m benchmarks.growth``: the tables of growth against its controls.

Learning rates are searched on seeds of their own; then every row is trained from fresh, paired seeds. Every cell is a
file, so an interrupted benchmark goes on where it stopped, and can be computed in pieces on several machines whose
cells are put together; ``--tables`` then says what they come to.
"""

import argparse
import json
from pathlib import Path

from benchmarks.growth.arguments import add_options
from benchmarks.growth.cases import cases
from benchmarks.growth.computing import compute, forget
from benchmarks.growth.plan import Plan
from benchmarks.growth.results import collected, meanings, pictures, replaces, told


def main() -> int:
    """Compute what is missing; print tables, write them with ``results.json`` and the pictures; 1 if a cell failed."""
    parser = _parser()
    options = parser.parse_args()
    for path in (*options.npz, *([] if options.text is None else [options.text])):
        if not path.is_file():
            parser.error(f"there is no file {path}")
    known = cases(options.text, tuple(options.npz))
    twice = {case.name for case in known if [one.name for one in known].count(case.name) > 1}
    if twice:
        parser.error(f"two tables would have the name {', '.join(sorted(twice))}: rename the file of one of them")
    chosen = [case for case in known if options.cases is None or case.name in options.cases]
    unknown = set(options.cases or ()) - {case.name for case in known}
    if unknown:
        parser.error(f"no such case: {', '.join(sorted(unknown))}; there are {', '.join(case.name for case in known)}")
    plan = Plan(options.output, chosen, options.rows, options.seeds)
    if options.text is None:
        print("The tables of a text are left out: name one to learn from, --text PATH.")
    if options.fresh:
        forget(plan)
    failed = [] if options.tables else compute(plan, options.workers)
    for row, reason in plan.waiting().items():
        print(f"not computed: {row}: {reason}")
    write(plan)
    if failed:
        print(f"{len(failed)} cells FAILED and are missing from the tables: {', '.join(failed)}")
    return 1 if failed else 0


def write(plan: Plan) -> None:
    """Print what the cells say, and write it."""
    results = collected(plan)
    if not any(plan.directory.glob("cells/*/*/*/*.json")):
        print(f"There are no cells in {plan.directory}: what is published stays as it is.")
        return
    tables = f"{told(results)}\n\n{meanings()}\n"
    print(f"\n{tables}\n{results['machines']}")
    folder, published = plan.directory / "pictures", plan.directory / "results.json"
    if not replaces(results, published):
        return
    folder.mkdir(parents=True, exist_ok=True)
    published.write_text(json.dumps(results, indent=1) + "\n")
    (plan.directory / "tables.md").write_text(f"# Growth against its controls\n\n{tables}")
    for name, svg in pictures(results).items():
        (folder / name).write_text(svg)
    print(f"Written to {published} and {folder}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.growth", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", help="names of the tables; left out: all")
    parser.add_argument("--text", type=Path, help="a text to learn from, for the tables text-mlp and text-gpt")
    parser.add_argument("--npz", type=Path, nargs="+", default=[], help="files with x, y; each is a table")
    add_options(parser, "0-9 where all cases have the row, else 0-4")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
