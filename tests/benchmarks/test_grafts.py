"""The benchmark of a step with a live colony."""

import json

import pytest

from benchmarks.grafts.colonies import COLONIES, main, table


@pytest.mark.filterwarnings(  # about dynamo's own doings while it traces
    r"ignore:.* should not be instantiated\. Methods on autograd functions are all static:DeprecationWarning"
)
@pytest.mark.parametrize(
    "how", [[], pytest.param(["--compile", "aot_eager"], marks=pytest.mark.long)], ids=["eager", "compiled"]
)
def test_every_colony_is_measured_beside_the_network_that_it_becomes(how, tmp_path, capsys):
    output = tmp_path / "colonies.json"
    main(["--hosts", "quick", "--batch", "1", "--repeats", "2", "--output", str(output), *how])
    rows = json.loads(output.read_text())["rows"]
    assert [row["colony"] for row in rows] == [layer_id for layer_id, _, _ in COLONIES]
    for row in rows:
        assert row["exported"]["parameters"] >= row["live"]["parameters"] > row["bare"]["parameters"]
        assert all(one["ms"][0] > 0 for one in (row["bare"], row["live"], row["exported"]))
    assert table(rows) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--device", "tpu"], "tpu"),
        (["--batch", "0"], "must be at least 1"),
        (["--repeats", "1"], "must be at least 2"),
    ],
)
def test_what_cannot_be_measured_is_refused(options, said, capsys):
    with pytest.raises(SystemExit):
        main(options)
    assert said in capsys.readouterr().err
