"""The last words of a run say plainly what growth was worth."""

import pytest

from esper.cli.closing import table, worth

FOSSIL, CULLED = {"outcome": "FOSSILIZED"}, {"outcome": "CULLED"}


def _row(accuracy: float, loss: float | None, parameters: int = 682) -> dict:
    values = {"val_loss": loss, "val_metric": accuracy, "test_loss": loss, "test_metric": accuracy}
    return {"parameters": parameters, "train_flops": 4_000_000, "lr": 0.003, "schedule": "cosine", **values}


def _result(grown, host_on, static, lifecycles) -> dict:
    rows = {"grown": grown, "host_on": host_on, "static": static}
    return {"rows": rows, "lifecycles": lifecycles, "probe_flops": 1_000_000, "reasons": {"host_on": "why not"}}


HOST, STATIC = _row(0.90, 0.30), _row(0.94, 0.20, 1375)


@pytest.mark.parametrize(
    ("grown", "lifecycles", "says"),
    [
        (_row(0.95, 0.18), [FOSSIL, CULLED], "grew 1 part; trying took 25% of the training FLOPs, and that paid: +5.0"),
        (_row(0.95, 0.18), [FOSSIL, FOSSIL], "grew 2 parts"),
        (_row(0.95, 0.18), [FOSSIL], "+1.0 points and -0.020 against a network that had this size from the start"),
        (_row(0.90, 0.29), [FOSSIL], "and that paid: +0.0"),
        (_row(0.89, 0.31), [FOSSIL], "but that did not pay: -1.0 points of accuracy and +0.010 in loss"),
        (_row(0.91, 0.31), [FOSSIL], "disagree about whether it paid"),
        (_row(0.88, 0.31), [CULLED], "Nothing grew: no candidate proved its worth, and trying took 25%"),
        (_row(0.88, 0.31), [CULLED], "at a learning rate searched for it: -2.0 points"),
        (_row(0.88, 0.31), [], "No growth was tried"),
        (_row(0.10, None), [CULLED], "The loss is not finite"),
    ],
)
def test_worth_is_told_in_plain_words(grown, lifecycles, says):
    assert says in worth(_result(grown, HOST, STATIC, lifecycles))


def test_what_was_not_measured_is_said():
    result = _result(_row(0.95, 0.18), None, None, [FOSSIL])
    assert "What that was worth was not measured: why not." in worth(result)


def test_a_control_that_diverged_is_beaten():
    assert "and that paid" in worth(_result(_row(0.95, 0.18), _row(0.1, None), STATIC, [FOSSIL]))


def test_the_table_is_aligned_and_complete():
    lines = table(_result(_row(0.95, 0.18, 1367), HOST, STATIC, [FOSSIL])).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["grown", "host_on", "static"]
    assert len({len(line) for line in lines}) == 1
    assert "1,367" in lines[1]
    assert "95.0%" in lines[1]
