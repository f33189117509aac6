"""The page about rollouts shows the recorded figures."""

import json
from pathlib import Path

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "benchmarks" / "results" / "rollout_kit"
PAGE = (ROOT / "docs" / "rollout.md").read_text()


def test_the_replays():
    result = json.loads((RESULTS / "rollout.json").read_text())["result"]
    for name, found in {"clean": result["clean"], **result["degraded"], **result["smaller harm"]}.items():
        told = [found[key] for key in ("replays", "taken back", "completed", "still waiting after 14 days")]
        with_flag = found["median runs with the flag on"]
        assert f"| {name} | " + " | ".join(map(str, told)) + f" | {with_flag:g} |" in PAGE
    degraded = result["degraded"].values()
    assert sum(one["taken back"] for one in degraded) >= 0.99 * sum(one["replays"] for one in degraded)
    assert result["clean"]["taken back"] <= 0.01 * result["clean"]["replays"]
    assert result["no data"]["promoted"] == 0
    assert result["no data"]["promoted by an engine that does not ask for data"] == result["no data"]["replays"]


def test_the_real_ones():
    result = json.loads((RESULTS / "rollout-real.json").read_text())["result"]
    clean, harm = result["from 1 to 100 percent"], result["taken back"]
    assert (clean["outcome"], harm["outcome"]) == ("completed", "rolled back")
    for found in (clean, harm):
        assert f"`{found['flag']}`" in PAGE
        assert f"{sum(found['runs'].values())} runs" in PAGE
    assert f"{100 * harm['measures'][0]['worse_by']:.0f} %" in PAGE
