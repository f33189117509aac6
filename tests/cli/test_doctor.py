"""The doctor says what is there and whether it works."""

import os
import subprocess
import sys
from importlib import metadata

import pytest

from esper.cli import doctor as doctor_module
from esper.cli.main import main
from esper.contracts.config import GrowthConfig


def test_all_is_well(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for name in ("torch", "numpy", "safetensors"):
        assert f"{name:13}{metadata.version(name)}" in out
    assert out.count("  ok      ") == 4
    assert "failed" not in out


@pytest.mark.parametrize(
    ("name", "breaks", "failed"),
    [
        ("esper.cli.self_test.CONFIG", GrowthConfig(max_rounds=0), "a seed grows"),
        ("esper.runtime.session.Session.load", lambda *_: None, "goes on from its checkpoint"),
        pytest.param(
            *("esper.cli.self_test.export", lambda model: model, "exports to plain torch"), marks=pytest.mark.long
        ),
        ("esper.cli.self_test.wrap", None, "what the bare one does: TypeError"),
    ],
)
def test_what_is_broken_is_told_with_exit_code_1(name, breaks, failed, monkeypatch, capsys):
    monkeypatch.setattr(name, breaks)
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    (line,) = (line for line in out.splitlines() if line.startswith("  failed"))
    assert failed in line
    assert "All is well" not in out


@pytest.fixture
def works(monkeypatch):
    """Whether all works is of no interest, and takes long to find out."""
    monkeypatch.setattr(doctor_module, "_self_test", lambda: True)


@pytest.mark.usefixtures("works")
def test_a_missing_extra_is_no_fault_and_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(doctor_module.EXTRAS, "bench", ("scipy", "no-such-package"))
    assert main(["doctor"]) == 0
    assert "[bench]      lacks no-such-package: pip install 'esper-morphogenetic[bench]'" in capsys.readouterr().out


def test_a_torch_that_cannot_be_imported_is_told(tmp_path):
    (tmp_path / "torch.py").write_text("raise OSError('libtorch.so: cannot open')")
    line = [sys.executable, "-m", "esper", "doctor"]
    search = os.pathsep.join([str(tmp_path), *sys.path])
    told = subprocess.run(line, env={**os.environ, "PYTHONPATH": search}, capture_output=True, text=True, check=False)
    assert told.returncode == 1
    assert "torch cannot be imported: OSError: libtorch.so: cannot open" in told.stdout


def test_another_package_of_the_same_import_name_is_told_with_the_remedy(tmp_path, monkeypatch, capsys):
    """There is a game library of this name; where both are installed, whose files are found is chance."""
    installed = tmp_path / "esper-3.3.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: esper\nVersion: 3.3\n")
    (installed / "RECORD").write_text("esper/__init__.py,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "esper is also the import name of esper, whose files" in out
    assert "pip uninstall esper; pip install --force-reinstall --no-deps esper-morphogenetic" in out
    assert "All is well" not in out


@pytest.mark.usefixtures("works")
def test_a_package_of_another_import_name_is_none_of_our_business(tmp_path, monkeypatch, capsys):
    """The control: also where it is called as ours is."""
    installed = tmp_path / "esper-3.3.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: esper\nVersion: 3.3\n")
    (installed / "RECORD").write_text("whisper/__init__.py,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["doctor"]) == 0
