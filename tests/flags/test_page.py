"""The page about flags shows what is."""

import json
import re
from pathlib import Path

from esper.contracts.flags import FLAGS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "flags.md").read_text()


def test_every_flag_stands_on_it():
    assert [name for name in FLAGS if f"| `{name}` |" not in PAGE] == []


def test_its_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    exec(compile(code, "docs/flags.md", "exec"), {})
    assert "the 50 % of flags.json" in capsys.readouterr().out


def test_its_figures_are_the_recorded_ones():
    result = json.loads((ROOT / "benchmarks" / "results" / "rollout_kit" / "flags.json").read_text())["result"]
    rows = [
        *(
            f"| share of {share}, of {result['ids']:,} models | "
            + ", ".join(f"{one['share']:.2%}" for one in found["flags"].values())
            + " |"
            for share, found in result["shares"].items()
        ),
        f"| decisions that another process or object makes otherwise, of {result['stickiness']['decisions']:,} | "
        f"{result['stickiness']['changed']} |",
        f"| models that a share growing from 0 to 100 % takes out again, of {result['monotony']['ids']:,} | "
        f"{result['monotony']['lost']} |",
        f"| a look at a resolved flag | {result['cached_evaluation_us']['resolved']:.2f} µs |",
        f"| a look by a store that has resolved the model | {result['cached_evaluation_us']['by_the_store']:.2f} µs |",
    ]
    assert [row for row in rows if row not in PAGE] == []
    assert result["stickiness"]["same_in_another_process"]
