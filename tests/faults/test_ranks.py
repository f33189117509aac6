"""One rank of two is harmed: every other one says so in one sentence, and none waits for ever."""

import json
import subprocess
import sys

import pytest
from torch import distributed

from tests.faults.amount import SHARE, amount
from tests.faults.harmed_rank import SHARDED
from tests.ranks.launch import ROOT, place

pytestmark = pytest.mark.skipif(not distributed.is_available(), reason="torch was built without it")

EACH = amount(34)
"""Faults of a kind; 272 in all."""

PATIENCE = 4.0 if SHARE == 1 else 30.0
"""Seconds for which a rank waits. What is tried on a busy machine must not take longer without a fault."""

SILENT = "does not hear from the others any more"
SAYS = {
    "flipped bit": "Ranks 0 and 1 do not have the same parameters",
    "extra command": "Ranks 0 and 1 do not have the same states of seeds",
    "not finite": "HarmedError: The run was harmed",
    "killed": SILENT,
    "stopped": SILENT,
    "late": SILENT,
    f"flipped bit{SHARDED}": "Ranks 0 and 1 do not have the same parameters",
    f"killed{SHARDED}": SILENT,
}
KINDS = (
    tuple(SAYS)
    if SHARE == 1
    else ("flipped bit", "extra command", "stopped", *(name for name in SAYS if name.endswith(SHARDED)))
)
CONTROLS = ("a little late", "unseen", f"unseen{SHARDED}")
ENDS = ("killed", "stopped", f"killed{SHARDED}")
"""After which the second rank says nothing."""


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """What came of each fault, by kind."""
    faults = [fault for fault in KINDS for _ in range(EACH)]
    command = [sys.executable, "-m", "tests.faults.harmed_rank", str(tmp_path_factory.mktemp("ranks")), str(PATIENCE)]
    told = subprocess.run(
        [*command, *faults, *CONTROLS], cwd=ROOT, env=place(), capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout.splitlines()[-1])
    return {fault: [one for one in found if one["fault"] == fault] for fault in (*KINDS, *CONTROLS)}


@pytest.mark.parametrize("fault", KINDS)
def test_a_rank_that_is_harmed_is_noticed_by_all(fault, ends, record_property):
    healed = 0
    for one in ends[fault]:
        first, second = one["said"]
        if (
            fault.startswith("flipped bit") and first.startswith("done") and first == second
        ):  # an arm was adopted at once
            healed += 1
            continue
        assert SAYS[fault] in first, one
        assert (second == "") if fault in ENDS else (SAYS[fault] in second), one
    longest, number = max(one["seconds"] for one in ends[fault]), len(ends[fault])
    assert healed <= number / 4
    told = f", {healed} of them gone without a trace before anybody looked" if healed else ""
    record_property("faults", f"{number} faults{told}; both ranks had ended after {longest:.0f} s at the most")


@pytest.mark.parametrize("fault", CONTROLS)
def test_nothing_is_said_where_nothing_is_wrong_or_nobody_looks(fault, ends):
    """Negative controls: a rank that is late within its time; a flipped bit where ranks are not compared."""
    (one,) = ends[fault]
    first, second = one["said"]
    assert first.startswith("done")
    assert second.startswith("done")
    assert (first == second) == (not fault.startswith("unseen"))
