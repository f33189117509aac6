"""Panels and dashboards as data, and how Grafana's own library builds them."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from string import ascii_uppercase
from typing import Any

from grafana_foundation_sdk.builders import bargauge, common, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.builders import dashboard as building
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement, StackingMode, TooltipDisplayMode
from grafana_foundation_sdk.models.dashboard import (
    Dashboard,
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    DataTransformerConfig,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = DataSourceRef("prometheus", "${datasource}")
OF_RUNS = 'run=~"$run"'
"""What chooses the runs of a panel; in the modules beside this one it is written ``$``, as in ``esper_step{$}``."""


@dataclass(frozen=True)
class Panel:
    """One panel.

    Args:
        title: of the panel.
        about: a sentence or two for whoever looks at it.
        unit: as Grafana calls it.
        queries: expressions, each with the legend of its series.
        kind: ``"lines"``, ``"stacked"``, ``"number"``, ``"bars"``, ``"classes"`` (a histogram) or ``"table"``, in which
            each query is a column of that name.
        width: of 24.
    """

    title: str
    about: str
    unit: str
    queries: Mapping[str, str]
    kind: str = "lines"
    width: int = 8

    def built(self) -> Any:
        """The builder of the panel."""
        built = _KINDS[self.kind](self.unit).title(self.title).description(self.about).unit(self.unit)
        built = built.datasource(SOURCE).span(self.width).height(4 if self.kind == "number" else 8)
        for letter, expression, legend in self._lettered():
            query = prometheus.Dataquery().expr(expression.replace("{$", "{" + OF_RUNS)).legend_format(legend)
            query = query.ref_id(letter).datasource(SOURCE)
            query = query.range() if self.kind in ("lines", "stacked", "classes") else query.instant()
            built = built.with_target(query.format(_FORMATS.get(self.kind, PromQueryFormat.TIME_SERIES)))
        return self._with_columns(built) if self.kind == "table" else built

    def _lettered(self) -> Iterator[tuple[str, str, str]]:
        """Queries with the letters by which Grafana tells them apart."""
        for letter, (expression, legend) in zip(ascii_uppercase, self.queries.items(), strict=False):
            yield letter, expression, legend

    def _with_columns(self, built: Any) -> Any:
        """One row a run, one column a query; of one that tells the host, its label is the column."""
        names = {f"Value #{letter}": legend for letter, _, legend in self._lettered()}
        left_out = ("Time", *(value for value, legend in names.items() if legend == "host"))
        options = {"excludeByName": dict.fromkeys(left_out, True), "renameByName": names}
        built = built.with_transformation(DataTransformerConfig("merge", options={}))
        return built.with_transformation(DataTransformerConfig("organize", options=options))


@dataclass(frozen=True)
class Board:
    """One dashboard.

    Args:
        name: of its file, and of its address within Grafana.
        title: for people.
        about: a sentence.
        sections: its panels, under a heading each.
        variables: what may be chosen besides the runs: a name, and the query of its values.
    """

    name: str
    title: str
    about: str
    sections: Mapping[str, tuple[Panel, ...]]
    variables: Mapping[str, str] = field(default_factory=dict)

    def built(self) -> Dashboard:
        """As Grafana's library has it."""
        made = building.Dashboard(f"Esper: {self.title}").uid(f"esper-{self.name}").description(self.about)
        made = made.tags(["esper"]).time("now-6h", "now").refresh("30s").timezone("browser").readonly()
        made = made.tooltip(DashboardCursorSync.CROSSHAIR)
        link = building.DashboardLink("Esper").type(DashboardLinkType.DASHBOARDS).tags(["esper"])
        made = made.link(link.as_dropdown(True).include_vars(True).keep_time(True))
        made = made.with_variable(building.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        made = made.with_variable(
            _choice("run", "label_values(esper_run_up, run)").multi(True).include_all(True).all_value(".*")
        )
        for name, query in self.variables.items():
            made = made.with_variable(_choice(name, query))
        numbers = itertools.count(1)
        for heading, panels in self.sections.items():
            made = made.with_row(building.Row(heading).id(next(numbers)))
            for panel in panels:
                made = made.with_panel(panel.built().id(next(numbers)))
        return made.build()


def _choice(name: str, query: str) -> building.QueryVariable:
    asked = building.QueryVariable(name).label(name.capitalize()).datasource(SOURCE).query(query)
    return asked.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED).sort(VariableSort.ALPHABETICAL_ASC)


def _lines(unit: str) -> timeseries.Panel:
    legend = common.VizLegendOptions().display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM)
    tooltip = common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI)
    return timeseries.Panel().legend(legend.show_legend(True)).tooltip(tooltip).span_nulls(False)


def _stacked(unit: str) -> timeseries.Panel:
    return _lines(unit).stacking(common.StackingConfig().mode(StackingMode.NORMAL)).fill_opacity(30)


def _classes(unit: str) -> heatmap.Panel:
    return heatmap.Panel().y_axis(heatmap.YAxisConfig().unit(unit))


_KINDS: dict[str, Callable[[str], Any]] = {
    "lines": _lines,
    "stacked": _stacked,
    "number": lambda unit: stat.Panel(),
    "bars": lambda unit: bargauge.Panel(),
    "classes": _classes,
    "table": lambda unit: table.Panel(),
}

_FORMATS = {"classes": PromQueryFormat.HEATMAP, "table": PromQueryFormat.TABLE}
