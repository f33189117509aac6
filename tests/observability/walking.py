"""Looks up every number of a page in the files of its run, without any of the code that made the page."""

import json
import math
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import yaml

UNITS = {"%": 0.01, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}

SPECS = {
    **dict.fromkeys(("number", "plain", "loss"), ("", 1.0)),
    **dict.fromkeys(("percent", "share"), ("%", 1.0)),
    **{"points": ("signed", 0.01), "nats": ("signed", 1.0), "z": ("signed", 1.0)},
    **{"points_apart": ("apart", 0.01), "nats_apart": ("apart", 1.0)},
    **{"flops": ("kMGT", 1.0), "seconds": ("s", 1.0), "date": ("date", 1.0)},
}
"""By its name, what a way of writing a number must look like, and of what it counts: points are hundredths. What is
signed always has its sign; what is apart never has, for the words around it say which way."""

SAME = ("outcome", "target", "reason")
"""What is counted by these fields has one value in all of them."""
UNQUOTED = {"code", "data", "script", "style", "title", "h1", "h2", "h3"}


class Page(HTMLParser):
    """A page taken apart.

    Attributes:
        numbers: ``[value, data-from, text, data-spec]`` of every ``data`` element.
        loose: text of the main part that is in no number, name, heading, script or style.
        elements: names and attributes of all elements.
        data: what the scripts draw.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.numbers: list[list[str]] = []
        self.loose: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.data: Any = None
        self._open: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.elements.append((tag, attributes))
        if tag not in {"meta", "link", "br", "input"}:
            self._open.append((tag, attributes))
        if tag == "data":
            self.numbers.append([attributes["value"], attributes["data-from"], "", attributes["data-spec"]])

    def handle_endtag(self, tag):
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        tags = [tag for tag, _ in self._open]
        if any(attributes.get("id") == "report-data" for _, attributes in self._open):
            self.data = json.loads(data)
        elif "data" in tags:
            self.numbers[-1][2] += data
        elif "main" in tags and not UNQUOTED & set(tags) and self._open[-1][1].get("class") != "title":
            self.loose.append(data)


class Files:
    """The files of a run, read anew."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._read: dict[str, Any] = {}

    def look_up(self, source: str) -> Any:
        """The value that a source names."""
        name, _, pointer = source.partition("#")
        content = self.content(name)
        steps = [step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")]
        value = content if not steps[0] else json.loads(content[int(steps[0]) - 1])
        for step in steps[1:]:
            value = value[int(step)] if isinstance(value, list) else value[step]
        return value

    def content(self, name: str) -> Any:
        """A log as its lines, other files parsed."""
        if name not in self._read:
            text = (self._directory / name).read_text(errors="replace")
            parse = str.splitlines if name.endswith(".jsonl") else json.loads
            self._read[name] = (yaml.safe_load if name.endswith(".yaml") else parse)(text)
        return self._read[name]

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        """Lines of these kinds, or of all, of both logs; damaged ones are left out."""
        both = [*self.numbered("audit.jsonl"), *self.numbered("metrics.jsonl")]
        return [event for _, event in both if not kinds or event.get("event") in kinds]

    def numbered(self, name: str) -> list[tuple[int, dict[str, Any]]]:
        """Lines of a log with their numbers; damaged ones are left out."""
        found = []
        for number, text in enumerate(self.content(name) if (self._directory / name).exists() else [], start=1):
            try:
                event = json.loads(text)
            except ValueError:
                continue
            if isinstance(event, dict):
                found.append((number, event))
        return found

    def result(self) -> dict[str, Any] | None:
        """What the run ended with, if that can be read and is whole."""
        try:
            result = self.content("result.json")
        except (OSError, ValueError):
            return None
        return result if {"task", "rows", "lifecycles"} <= result.keys() else None


def check_numbers(page: Page, files: Files) -> int:
    """Every ``data`` element has the value that its sources give, and shows it. Returns how many there are."""
    for value, origin, text, spec in page.numbers:
        how, *sources = json.loads(origin)
        assert sources
        values = [files.look_up(source) for source in sources]
        if how == "count":
            check_counted(sources, values)
        expected, actual = evaluate(how, values), json.loads(value)
        assert math.isclose(expected, actual, rel_tol=1e-12, abs_tol=1e-15), (value, origin)
        assert shows(text, actual, spec), (value, text, spec)
    return len(page.numbers)


def check_counted(sources: list[str], values: list[Any]) -> None:
    """Nothing is counted twice, no flag that is not set, and nothing that differs in what it is counted for."""
    assert len(set(sources)) == len(sources), sources
    assert all(value for value in values if isinstance(value, bool)), sources
    for field in SAME:
        told = {value for source, value in zip(sources, values, strict=True) if source.endswith(f"/{field}")}
        assert len(told) <= 1, (sources, told)


def evaluate(how: str, values: list[Any]) -> float:
    """What follows from the values of sources."""
    if how == "count":
        return len(values)
    if how == "sum":
        return sum(values)
    if how == "value":
        (value,) = values
        return value
    first, second = values
    return {"ratio": lambda: first / second if second else 0.0, "difference": lambda: first - second}[how]()


def shows(text: str, value: float, spec: str) -> bool:
    """Whether a text is the value, rounded to the digits that it has, and written as the spec says."""
    form, scale = SPECS[spec]
    if form == "date":
        return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%d") == text
    if form == "s" and re.fullmatch(r"(\d+ (h|min|s) ?)+", text):
        times = re.findall(r"(\d+) (h|min|s)", text)
        seconds = sum(int(number) * {"h": 3600, "min": 60, "s": 1}[unit] for number, unit in times)
        return abs(value - seconds) <= 30.5
    match = re.fullmatch(r"([+-]?)([\d,]*\.?\d+(?:e[+-]?\d+)?) ?(%|[kMGTs]?) ?", text)
    assert match, text
    sign, digits, unit = match.groups()
    if unit not in {"%": "%", "kMGT": "kMGT", "s": "s"}.get(form, "") or (not unit and form in {"%", "kMGT", "s"}):
        return False
    if (form == "signed" and not sign) or (form == "apart" and sign) or (form != "signed" and sign == "+"):
        return False
    number = float(digits.replace(",", "")) * (-1 if sign == "-" else 1)
    mantissa, _, power = digits.partition("e")
    half = 0.5 * 10.0 ** (int(power or 0) - len(mantissa.partition(".")[2])) * (1 + 1e-9)
    target = (abs(value) if form == "apart" else value) / UNITS.get(unit, scale)
    return abs(number - target) <= half
