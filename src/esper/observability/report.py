"""One HTML file that tells a run: sentences, tables, and the data of its pictures, with all scripts inside."""

import errno
import json
import os
import shlex
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from esper.contracts.errors import ConfigError
from esper.observability.anatomy import anatomy
from esper.observability.cited import Name
from esper.observability.compare import Comparison
from esper.observability.curves import curves
from esper.observability.head import facts, figures, title
from esper.observability.lanes import lanes
from esper.observability.lattice import lattice
from esper.observability.measures import metric_name
from esper.observability.record import Record, read
from esper.observability.sheets import refusals_sheet, reports_sheet, rows_sheet, settings, sheet
from esper.observability.story import story
from esper.observability.summaries import summaries, why_empty
from esper.observability.worth import worth

REPORT = "report.html"

SECTIONS = ("story", "rows", "curves", "anatomy", "lanes", "worth", "lattice", "reports", "settings")
"""Parts of the page in their order, each a template of ``page/sections`` and an element of that id."""

_ADVICE = {
    errno.ENAMETOOLONG: "Choose a shorter name",
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "Make room, or write it elsewhere"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "Allow writing there, or write it elsewhere"),
}


def write(directory: Path) -> Path:
    """Read a run directory and write its ``report.html``, as a whole or not at all.

    Raises:
        ConfigError: if there is no such directory, it holds nothing of a run, or it cannot be written.
    """
    return write_page(Path(directory) / REPORT, report(read(Path(directory))))


def write_page(path: Path, page: str) -> Path:
    """Write a page as a whole or not at all.

    Raises:
        ConfigError: if it cannot be written.
    """
    if os.path.isdir(path):
        quoted = shlex.quote(str(path / REPORT))
        raise ConfigError(f"{path} cannot be written: it is a directory. Name a file, for example {quoted}.")
    if not os.path.isdir(path.parent):
        what = "is a file" if os.path.isfile(path.parent) else "is not there"
        raise ConfigError(
            f"{path} cannot be written: {path.parent} {what}. Name a directory that there is, or make it."
        )
    unfinished = path.with_name(f".{os.getpid()}.unfinished")
    try:
        unfinished.write_bytes(page.encode("utf-8", "replace"))  # the log may hold half a surrogate pair
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        advice = _ADVICE.get(error.errno or 0, "Write it elsewhere")
        raise ConfigError(f"{path} cannot be written: {error.strerror}. {advice}.") from error
    return path


def report(record: Record) -> str:
    """The page of a run."""
    return render("report.html.j2", context(record))


def context(record: Record, drawn: dict[str, Any] | None = None) -> dict[str, Any]:
    """What ``report.html.j2`` is filled with.

    Args:
        record: of the run.
        drawn: its :func:`data`, if they are there already.

    Returns:
        ``title`` (text), ``headline``, ``story`` (paragraphs), ``faults`` and ``notes``; ``facts`` (``label``,
        ``value``) and ``figures`` (``label``, ``value``, ``note``); the tables ``rows``, ``reports`` and ``refusals``
        (``columns`` and ``rows``, or None); ``settings`` (groups of ``name`` and ``rows``); by section ``empty`` (why
        it has nothing to show, or None) and ``summaries``; ``sections``: all of them; and ``data``: what the scripts
        draw.
    """
    told = story(record)
    content = data(record, lattice(record)) if drawn is None else drawn
    tables = {
        "rows": None if record.result is None else rows_sheet(record.result),
        "reports": reports_sheet(record, content["worth"]),
        "refusals": refusals_sheet(record),
        "settings": settings(record),
    }
    return {
        "title": title(record),
        "facts": facts(record),
        "headline": told.headline,
        "story": told.paragraphs,
        "figures": figures(record),
        "faults": record.faults,
        "notes": [Name(text) for text in dict.fromkeys(event["text"] for _, event in record.of("note"))],
        **tables,
        "sections": SECTIONS,
        "empty": why_empty(record, tables, content),
        "summaries": summaries(record, content),
        "data": content,
    }


def data(record: Record, sensed: dict[str, Any] | None) -> dict[str, Any]:
    """What the page's scripts draw, ready for JSON.

    Args:
        record: of the run.
        sensed: its :func:`~esper.observability.lattice.lattice`.
    """
    models = record.of("model")
    planned = (record.result or {}).get("planned_steps", models[0][1]["planned_steps"] if models else None)
    epochs = (record.config or {}).get("epochs")
    return {
        "metric": metric_name(record),
        "planned_steps": planned,
        "epochs": epochs if isinstance(epochs, int) else None,
        "curves": curves(record),
        "lanes": lanes(record),
        "worth": worth(record),
        "anatomy": anatomy(record),
        "lattice": sensed,
    }


def as_script(content: Any) -> Any:
    """JSON that may stand in a script element: nothing in it ends the element."""
    from markupsafe import Markup

    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c"))


def render(template: str, values: Mapping[str, Any]) -> str:
    """Fill a template of ``page/``.

    Raises:
        ConfigError: if Jinja2 is not installed.
    """
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Any:
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
        from markupsafe import Markup
    except ImportError as error:
        raise ConfigError("Jinja2 is not installed: pip install 'esper-morphogenetic[run]'.") from error
    pages = resources.files("esper.observability") / "page"
    environment = Environment(
        loader=PackageLoader("esper.observability", "page"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.globals["asset"] = lambda name: Markup((pages / name).read_text(encoding="utf-8"))
    environment.filters["as_script"] = as_script
    return environment


def comparison_page(comparison: Comparison) -> str:
    """The page of several runs side by side."""
    return render("compare.html.j2", comparison_context(comparison))


def comparison_context(comparison: Comparison) -> dict[str, Any]:
    """What ``compare.html.j2`` is filled with.

    Returns:
        ``title``, ``headline``, ``story`` and ``faults`` (texts); the tables ``runs``, ``pairs`` (gains over the first
        run) and ``differences`` (options), or None; by section ``empty`` and ``summaries``; and ``data``.
    """
    size, headings = comparison.size, comparison.headings
    names = [Name(row.name) for row in comparison.rows]
    runs = zip(names, (row.cells[: size - 1] for row in comparison.rows), strict=True)
    pairs = zip(names[1:], (row.cells[size - 1 :] for row in comparison.rows[1:]), strict=True)
    has_curves = any(one["steps"] for one in comparison.curves)
    tables = {
        "runs": sheet([("run", False), *((name, True) for name in headings[1:size])], ([n, *c] for n, c in runs)),
        "pairs": sheet([("run", False), *((name, True) for name in headings[size:])], ([n, *c] for n, c in pairs)),
        "differences": sheet(
            [("option", False), *((label, False) for label in comparison.labels)],
            ([Name(option), *map(Name, values)] for option, values in comparison.settings),
        ),
    }
    reasons = {
        "runs": "There is no run.",
        "pairs": "There is one run only: nothing to compare it with.",
        "differences": "No option differs, as far as is known.",
        "curves": "No run has reached its first boundary.",
    }
    is_there = {**tables, "curves": has_curves}
    return {
        "title": "Comparison of runs",
        "headline": "Runs side by side",
        "story": comparison.remarks,
        "faults": [],
        **tables,
        "empty": {name: None if is_there[name] else reason for name, reason in reasons.items()},
        "summaries": {"curves": "The held-out loss of every run at its boundaries."},
        "data": {"metric": comparison.metric, "runs": [_run_data(one) for one in comparison.curves]},
    }


def _run_data(curve: Mapping[str, Any]) -> dict[str, Any]:
    metrics = curve["val_metrics"] if any(one is not None for one in curve["val_metrics"]) else None
    return {"name": curve["label"], **{key: curve[key] for key in curve if key != "label"}, "val_metrics": metrics}
