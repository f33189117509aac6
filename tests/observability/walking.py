"""Looks up every number of a page in the files of its run, without any of the code that made the page."""

import json
import math
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import yaml

SCALES = {"": 1.0, "%": 0.01, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
UNQUOTED = {"code", "data", "script", "style", "title", "h1", "h2", "h3"}


class Page(HTMLParser):
    """A page taken apart.

    Attributes:
        numbers: ``(value, data-from, text)`` of every ``data`` element.
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
            self.numbers.append([attributes["value"], attributes["data-from"], ""])

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
        found = []
        for name in ("audit.jsonl", "metrics.jsonl"):
            for text in self.content(name) if (self._directory / name).exists() else []:
                try:
                    event = json.loads(text)
                except ValueError:
                    continue
                if isinstance(event, dict) and (not kinds or event.get("event") in kinds):
                    found.append(event)
        return found

    def result(self) -> dict[str, Any] | None:
        """What the run ended with, if that can be read."""
        try:
            return self.content("result.json")
        except (OSError, ValueError):
            return None


def check_numbers(page: Page, files: Files) -> int:
    """Every ``data`` element has the value that its sources give, and shows it. Returns how many there are."""
    for value, origin, text in page.numbers:
        how, *sources = json.loads(origin)
        assert sources
        expected, actual = evaluate(how, [files.look_up(source) for source in sources]), json.loads(value)
        assert math.isclose(expected, actual, rel_tol=1e-12, abs_tol=1e-15), (value, origin)
        assert shows(text, actual), (value, text)
    return len(page.numbers)


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


def shows(text: str, value: float) -> bool:
    """Whether a text is the value, rounded to the digits that it has."""
    if re.fullmatch(r"\d{4}-\d\d-\d\d", text):
        return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%d") == text
    if re.fullmatch(r"(\d+ (h|min|s) ?)+", text):
        times = re.findall(r"(\d+) (h|min|s)", text)
        seconds = sum(int(number) * {"h": 3600, "min": 60, "s": 1}[unit] for number, unit in times)
        return abs(value - seconds) <= 30.5
    match = re.fullmatch(r"([+-]?)([\d,]*\.?\d+(?:e[+-]?\d+)?) ?(%|[kMGT]?)(?: s)? ?", text)
    assert match, text
    sign, digits, unit = match.groups()
    number = float(digits.replace(",", "")) * (-1 if sign == "-" else 1)
    mantissa, _, power = digits.partition("e")
    half = 0.5 * 10.0 ** (int(power or 0) - len(mantissa.partition(".")[2])) * (1 + 1e-9)
    targets = [value / SCALES[unit]] + ([100 * value] if not unit else [])  # points are hundredths
    return any(abs(number - target) <= half or (not sign and abs(number - abs(target)) <= half) for target in targets)
