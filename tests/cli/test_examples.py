"""Every example runs as it stands, in a process of its own, without a warning."""

from pathlib import Path

import pytest

from esper.cli.main import main
from tests import warm
from tests.few import few

EXAMPLES = Path(__file__).parents[2] / "examples"
SHORT = {
    "plain_loop.py": ["12"],
    "accelerate_loop.py": ["12"],
    "cnn.py": ["6"],
    "small_gpt.py": ["--epochs", "5"],
    "own_blueprint_and_strategy.py": ["15"],
    "own_controller.py": ["15"],
    "hugging_face_trainer.py": ["8"],
    "several_gpus.py": ["8"],
    "lightning_module.py": ["12"],
}
WITH_RANKS = ["arms_on_other_gpus.py"]  # run in tests/ranks, as several_gpus.py is too
LIGHTNINGS = [  # what it warns of itself
    r"`isinstance\(treespec, LeafSpec\)`",
    "The 'train_dataloader' does not have many workers",
    "The 'val_dataloader' does not have many workers",
    "GPU available but not used",
]
STRICT = """
import runpy, sys, warnings
_, *spared = sys.argv.pop(1).split("|")
warnings.simplefilter("error")
for one in spared:
    warnings.filterwarnings("ignore", one)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def _run(name: str, *arguments: str) -> str:
    spared = "|".join(["", *(LIGHTNINGS if name == "lightning_module.py" else [])])
    done = warm.run(["-c", STRICT, spared, str(EXAMPLES / name), *arguments])
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_tested_and_listed():
    names = {path.name for path in EXAMPLES.glob("*.py")}
    assert names == {*SHORT, *WITH_RANKS}
    listed = (EXAMPLES / "README.md").read_text()
    assert all(f"({name})" in listed for name in (*names, "sweep.yaml"))


@pytest.mark.parametrize("name", few(SHORT, [name for name in SHORT if name != "several_gpus.py"]))
def test_an_example_runs_and_says_how_its_lifecycles_ended(name):
    out = _run(name, *SHORT[name])
    assert any(outcome in out for outcome in ("FOSSILIZED", "CULLED"))
    assert "fossils" in out


def test_the_sweep_runs(tmp_path, monkeypatch):
    """Four of its trials, an epoch each."""
    text = (EXAMPLES / "sweep.yaml").read_text()
    for long, short in (("epochs: 30", "epochs: 1"), ("seed: [0, 1]", "seed: 0"), ("samples: 2", "samples: 1")):
        assert long in text
        text = text.replace(long, short)
    monkeypatch.chdir(tmp_path)
    Path("sweep.yaml").write_text(text)
    assert main(["sweep", "sweep.yaml"]) == 0
    assert len(list(tmp_path.glob("sweeps/sweep/trials/*/report.html"))) == 4


def test_the_transformer_writes_like_the_text_it_was_given(tmp_path):
    (tmp_path / "zeros.txt").write_text("0 1 0 1 0 1 0 1 " * 400)
    assert "0 1 0 1 0 1 0 1" in _run("small_gpt.py", str(tmp_path / "zeros.txt"), "--epochs", "3")
