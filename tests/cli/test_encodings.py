"""What a console's encoding lacks is printed with replacements: a name does not end a run."""

import io
import json
import os
import sys

import pytest

from esper.cli.main import main

NAME = "数据"


@pytest.fixture
def console(monkeypatch):
    """Output as where a program's output goes into a file on such a system."""

    def set_up(encoding: str, errors: str = "strict") -> None:
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors))

    return set_up


def printed(stream: io.TextIOWrapper) -> str:
    stream.flush()
    return stream.buffer.getvalue().decode(stream.encoding)


def write_table(path: str) -> str:
    with open(path, "w", encoding="utf-8") as file:
        file.write("one,two,label\n" + "".join(f"{i % 3}.{i},{i},{'abc'[i % 3]}\n" for i in range(150)))
    return path


@pytest.mark.parametrize("options", [["--plain"], ["--log-format", "json"]], ids=["plain", "json"])
@pytest.mark.parametrize(("encoding", "errors"), [("cp1252", "strict"), ("ascii", "surrogateescape")])
def test_a_run_ends_whatever_its_data_and_directory_are_called(
    encoding, errors, options, console, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    console(encoding, errors)
    line = ["run", "--data", write_table(f"{NAME}.csv"), "--epochs", "1", "--no-controls", "--max-rounds", "0"]
    assert main([*line, *options, "--output", NAME]) == 0
    told = printed(sys.stdout)
    assert ascii(NAME)[1:-1] in told
    if options != ["--plain"]:
        assert NAME in {json.loads(one).get("directory") for one in told.splitlines()}


def test_every_command_prints_them(console, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    console("ascii")
    one, other = "数", "据"
    for directory in (one, other):
        assert main(["run", "--epochs", "1", "--no-controls", "--max-rounds", "0", "--output", directory]) == 0
    assert main(["report", one]) == 0
    assert main(["compare", one, other, "--output", f"{one}.html"]) == 0
    assert "Written to \\u6570.html" in printed(sys.stdout)
    assert main(["report", "无"]) == 2
    assert "There is no directory \\u65e0" in printed(sys.stderr)


@pytest.mark.parametrize("option", ["--data", "--output", "--from", "--config"])
def test_a_name_that_is_no_text_is_refused(option, tmp_path, monkeypatch, capsys):
    """Else a run would end with an error when it writes down what it was told."""
    monkeypatch.chdir(tmp_path)
    name = os.fsdecode(b"\xff.csv")
    (tmp_path / name).touch()
    assert main(["run", option, name]) == 2
    assert os.listdir(tmp_path) == [name]


def test_what_the_encoding_has_is_printed_as_it_is(console):
    console("utf-8")
    assert main(["report", "数据"]) == 2
    assert "数据" in printed(sys.stderr)
