"""Commands and paths that are told to be used can be pasted into a shell, whatever a directory is called."""

import shlex

import pytest

from esper.cli import conclusion
from esper.cli.main import main


@pytest.fixture
def odd(tmp_path) -> str:
    return str(tmp_path / "my run's $HOME")


@pytest.fixture
def interrupted(odd, monkeypatch, capsys) -> str:
    """All that is said of a run whose directory has an odd name when it is interrupted."""

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(conclusion.Conclusion, "conclude", interrupt)
        assert main(["run", "--epochs", "1", "--no-controls", "--output", odd]) == 130
    return capsys.readouterr().out


def pasted(said: str) -> list[str]:
    """The words of the last command that was said, as a shell gives them to ``esper``."""
    esper, *words = shlex.split(said[said.rindex("esper run") :])
    assert esper == "esper"
    return words


def test_an_interrupted_run_goes_on(interrupted, odd):
    assert pasted(interrupted) == ["run", "--resume", "last", "--output", odd]
    assert main(pasted(interrupted)) == 0


@pytest.mark.usefixtures("interrupted")
def test_a_directory_that_holds_a_run_is_gone_on_with(odd, capsys):
    assert main(["run", "--output", odd]) == 2
    assert main(pasted(capsys.readouterr().err)) == 0


def test_a_damaged_result_is_made_anew(interrupted, odd, tmp_path, capsys):
    assert main(pasted(interrupted)) == 0
    result = tmp_path / odd / "result.json"
    result.write_text("{}")
    capsys.readouterr()
    assert main(pasted(interrupted)) == 2
    result.unlink()
    assert main(pasted(capsys.readouterr().err)) == 0


@pytest.mark.usefixtures("interrupted")
@pytest.mark.parametrize("line", [["report", "{}/config.yaml"], ["report", "{}", "--output", "{}"]])
def test_a_path_that_is_named_for_example_does(line, odd, capsys):
    command = [word.replace("{}", odd) for word in line]
    assert main(command) == 2
    said = capsys.readouterr().err
    (example,) = shlex.split(said[said.index("for example ") + len("for example ") :].strip().removesuffix("."))
    assert main([*command[:-1], example]) == 0
