"""The user's own samples: what is made of them, and what is said when they cannot be used."""

import zipfile

import numpy as np
import pytest
import torch

from esper.contracts.errors import DataError
from esper.tasks.npz import npz

RNG = np.random.default_rng(0)
X = RNG.normal(3.0, 2.0, size=(200, 2, 3))
Y = np.arange(200) % 4


def _with_nan() -> np.ndarray:
    x = X.copy()
    x[17, 0, 1] = np.nan
    return x


@pytest.fixture
def write(tmp_path):
    def write_archive(**arrays):
        path = tmp_path / "mine.npz"
        np.savez(path, **arrays)
        return path

    return write_archive


def test_samples_are_flattened_standardised_and_dealt(write):
    task = npz(write(x=X, y=Y), seed=0)
    assert [len(part.y) for part in (task.train, task.held_out, task.test)] == [128, 32, 40]
    assert task.train.x.shape[1:] == (6,)
    assert task.train.x.dtype == torch.float32
    assert task.train.y.dtype == torch.int64
    assert task.name == "mine"
    assert task.train.x.mean(0).abs().max() < 1e-6
    torch.testing.assert_close(task.train.x.std(0, correction=0), torch.ones(6))


def test_raw_samples_come_back_from_mean_and_std(write):
    task = npz(write(x=X, y=Y), seed=0)
    parts = (task.train, task.held_out, task.test)
    raw = torch.cat([part.x for part in parts]) * task.std + task.mean
    expected = torch.from_numpy(X.reshape(200, 6)).float()
    torch.testing.assert_close(raw[raw[:, 0].argsort()], expected[expected[:, 0].argsort()])


def test_a_given_test_part_is_taken_as_it_is_and_standardised_by_the_training_part(write):
    task = npz(write(x=X, y=Y, x_test=X[:30] + 100, y_test=Y[:30]), seed=0)
    assert [len(part.y) for part in (task.train, task.held_out, task.test)] == [160, 40, 30]
    assert task.test.y.tolist() == Y[:30].tolist()
    assert task.test.x.mean() > 40


def test_the_seed_alone_deals_the_samples(write):
    path, state = write(x=X, y=Y), torch.get_rng_state()
    assert torch.equal(npz(path, 1).train.x, npz(path, 1).train.x)
    assert not torch.equal(npz(path, 1).train.x, npz(path, 2).train.x)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "labels",
    [
        Y * 7 - 3,
        (Y * 7 - 3).astype(np.float32),
        Y.reshape(-1, 1).astype(np.uint8) * 5,
        np.array(["ant", "bee", "cow", "dog"])[Y],
        np.array([b"ant", b"bee", b"cow", b"dog"])[Y],
        Y % 2 == 0,
    ],
    ids=["integers", "whole floats", "column", "text", "bytes", "booleans"],
)
def test_labels_of_any_kind_become_classes_from_zero(write, labels):
    task = npz(write(x=X, y=labels), seed=0)
    classes = np.unique(labels)
    y = torch.cat([part.y for part in (task.train, task.held_out, task.test)])
    assert y.unique().tolist() == list(range(len(classes)))
    assert len(task.labels) == len(classes)


def test_a_constant_feature_keeps_its_scale(write):
    x = X.copy()
    x[:, 0, 0] = 0.1
    task = npz(write(x=x, y=Y), seed=0)
    assert task.std[0] == 1
    assert (task.train.x[:, 0] == 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_every_class_is_trained_on_however_rare(write, seed):
    labels = Y.copy()
    labels[11] = 99
    assert 4 in npz(write(x=X, y=labels), seed).train.y


def test_the_host_is_wider_where_there_are_many_classes(write):
    few, many = (npz(write(x=X, y=np.arange(200) % n), seed=0, task="classification").make_host() for n in (4, 60))
    assert [few[0].out_features, many[0].out_features] == [8, 30]
    assert [few[-1].out_features, many[-1].out_features] == [4, 60]


def test_quantities_are_standardised_by_the_training_part(write):
    y = X[:, 0, 0] * 100 + 7
    task = npz(write(x=X, y=y, x_test=X[:30], y_test=y[:30]), seed=0)
    assert (task.kind, task.metric, task.labels, task.num_classes) == ("regression", "R2", ("y",), 1)
    assert task.told == ("regression: 200 samples, 6 numeric features, target 'y'",)
    torch.testing.assert_close(task.test.y * task.scale.std + task.scale.mean, torch.from_numpy(y[:30]).float())
    assert task.train.y.mean().abs() < 1e-5
    assert task.make_host()(task.train.x).shape == (160, 1)


def test_columns_of_zero_and_one_are_labels(write):
    y = np.column_stack([X[:, 0, 0] > 3, X[:, 1, 1] > 4, Y > 1]).astype(np.int64)
    task = npz(write(x=X, y=y), seed=0)
    assert (task.kind, task.metric, task.num_classes) == ("multilabel", "labels right", 3)
    assert task.train.y.dtype == torch.float32
    assert task.train.y.shape == (128, 3)


@pytest.mark.parametrize("labels", [["a", "nan", "b"], ["a", "", "b"], [b"a", b"nan", b"b"], ["a", "b", "NaN"]])
def test_labels_that_are_missing_are_no_class(write, labels):
    with pytest.raises(DataError, match=r"y is missing in 6[67] of 200 samples, first in sample [12]"):
        npz(write(x=X, y=np.array(labels)[np.arange(200) % 3]), seed=0)


def test_labels_of_bytes_are_never_merged(write):
    with pytest.raises(DataError, match="no UTF-8"):
        npz(write(x=X, y=np.array([b"\xe4", b"\xf6"])[Y % 2]), seed=0)


BAD_ARRAYS = {
    "no x": ({"X": X, "y": Y}, "holds no array 'x'.*Valid: X, y"),
    "no y": ({"x": X, "labels": Y}, "holds no array 'y'"),
    "y_test is missing": ({"x": X, "y": Y, "x_test": X}, "'x_test' without 'y_test'"),
    "x_test is missing": ({"x": X, "y": Y, "y_test": Y}, "'y_test' without 'x_test'"),
    "ragged": ({"x": np.array([[1.0], [1.0, 2.0]], dtype=object), "y": Y}, "rows differ in length"),
    "text as features": ({"x": np.full((200, 2), "a"), "y": Y}, "x is of type <U1"),
    "complex": ({"x": X.astype(complex), "y": Y}, "x is of type complex128"),
    "NaN": ({"x": _with_nan(), "y": Y}, "in 1 of 200 samples, first in sample 17"),
    "infinite": ({"x": np.where(np.isnan(_with_nan()), np.inf, X), "y": Y}, "first in sample 17"),
    "NaN in the test part": ({"x": X, "y": Y, "x_test": _with_nan(), "y_test": Y}, "x_test holds NaN"),
    "too large": ({"x": X * 1e307, "y": Y}, "too large"),
    "a single value": ({"x": np.float64(1), "y": Y}, "x is a single value"),
    "no features": ({"x": np.zeros((200, 0)), "y": Y}, "no features"),
    "no samples": ({"x": X[:0], "y": Y[:0]}, "x has 0 samples; at least 100"),
    "few samples": ({"x": X[:40], "y": Y[:40]}, "x has 40 samples; at least 100"),
    "an empty test part": ({"x": X, "y": Y, "x_test": X[:0], "y_test": Y[:0]}, "x_test has 0 samples"),
    "different lengths": ({"x": X, "y": Y[:-1]}, "x has 200 samples but y has 199"),
    "different test lengths": ({"x": X, "y": Y, "x_test": X, "y_test": Y[:9]}, "y_test has 9"),
    "one-hot": ({"x": X, "y": np.eye(4)[Y]}, r"y has shape \(200, 4\).*argmax"),
    "one class": ({"x": X, "y": Y * 0 + 3}, "all 200 labels are 3"),
    "quantities": (
        {"x": X, "y": Y + 0.5},
        "y holds 4 different numbers, not all of them whole.*--task classification or --task regression",
    ),
    "NaN label": ({"x": X, "y": np.where(Y == 1, np.nan, Y)}, "y holds nan"),
    "as many labels as samples": ({"x": X, "y": np.arange(200)}, "y holds 200 different whole numbers.*--task"),
    "a label that is the same everywhere": (
        {"x": X, "y": np.column_stack([Y * 0, Y % 2])},
        "'label 0' is the same in all 200 samples",
    ),
    "a quantity that never changes": ({"x": X, "y": np.full(200, 0.5)}, "y is constant: 0.5 in all 200 samples"),
    "a quantity that is too large": (
        {"x": X, "y": np.append(np.arange(199) / 8, 1e308)},
        "too large to be standardised",
    ),
    "test targets of another kind": (
        {"x": X, "y": X[:, 0, 0], "x_test": X, "y_test": np.full(200, "a")},
        "y_test is not of the kind of y",
    ),
    "labels of dates": ({"x": X, "y": Y.astype("datetime64[D]")}, "y is of type datetime64"),
    "unseen test labels": (
        {"x": X, "y": Y, "x_test": X, "y_test": Y + 2},
        "y_test holds labels that y does not: 4, 5",
    ),
    "another test shape": (
        {"x": X, "y": Y, "x_test": X[:, :1], "y_test": Y},
        r"shape \(2, 3\), those of x_test \(1, 3\)",
    ),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_arrays_that_cannot_be_used_are_refused_with_one_clear_message(write, case):
    arrays, says = BAD_ARRAYS[case]
    path = write(**arrays)
    with pytest.raises(DataError, match=says) as caught:
        npz(path, seed=0)
    assert str(path) in str(caught.value)


def test_a_file_that_is_missing_is_refused(tmp_path):
    with pytest.raises(DataError, match="There is no file"):
        npz(tmp_path / "none.npz", seed=0)


def test_a_directory_is_refused(tmp_path):
    with pytest.raises(DataError, match="not a file"):
        npz(tmp_path, seed=0)


@pytest.mark.parametrize(("content", "says"), [(b"", "empty"), (b"x,y\n1,2\n", r"not an \.npz archive")])
def test_a_file_of_another_kind_is_refused(tmp_path, content, says):
    path = tmp_path / "mine.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=says):
        npz(path, seed=0)


def test_a_file_that_was_cut_short_is_refused(write):
    path = write(x=X, y=Y)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"not an \.npz archive"):
        npz(path, seed=0)


def test_a_damaged_file_is_refused(write):
    path = write(x=X, y=Y)
    content = bytearray(path.read_bytes())
    content[2000] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        npz(path, seed=0)


def test_an_archive_of_something_else_is_refused(tmp_path):
    path = tmp_path / "mine.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", "no array")
        archive.writestr("y", "neither")
    with pytest.raises(DataError, match="x is no NumPy array"):
        npz(path, seed=0)


def test_many_codes_of_classes_are_told_from_counts_by_how_often_they_come(write):
    codes = np.arange(600) % 40
    x = RNG.normal(size=(600, 3))
    assert npz(write(x=x, y=codes), seed=0).num_classes == 40
    with pytest.raises(DataError, match="40 different whole numbers"):
        npz(write(x=x[:240], y=codes[:240]), seed=0)
    with pytest.raises(DataError, match="40 different whole numbers"):
        npz(write(x=x, y=codes.astype(np.float32)), seed=0)
