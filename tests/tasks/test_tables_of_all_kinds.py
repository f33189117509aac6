"""Tables as they are found: they run with no option but ``--data`` and ``--label``, and what was decided is told."""

import gzip
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sklearn.datasets
import torch

from esper.cli.main import main
from esper.contracts.errors import ConfigError, DataError
from esper.evaluation.scoring import mean_loss, per_sample
from esper.tasks.catalogue import load_task
from esper.tasks.task import Task
from tests import warm

ROWS = 240
RNG = np.random.default_rng(0)
SKLEARN = Path(sklearn.datasets.__file__).parent / "data"


def _people() -> pd.DataFrame:
    """Numbers with gaps, categories with gaps, a counter, free text, and a label of text."""
    age = np.where(RNG.random(ROWS) < 0.2, np.nan, RNG.integers(1, 80, ROWS))
    sex = RNG.choice(["male", "female"], ROWS)
    table = {
        "PassengerId": np.arange(ROWS) + 1,
        "Name": [f"Person {index}" for index in range(ROWS)],
        "Sex": sex,
        "Age": age,
        "Port": RNG.choice(["S", "C", "Q", None], ROWS),
        "Survived": np.where((sex == "female") ^ (RNG.random(ROWS) < 0.1), "yes", "no"),
    }
    return pd.DataFrame(table)


def _numbers(target: str = "target") -> pd.DataFrame:
    x = RNG.normal(size=(ROWS, 3)).round(4) * [1, 10, 1000]
    return pd.DataFrame(x, columns=["a", "b", "c"]).assign(**{target: (x @ [3, 0.5, 0.001]).round(3)})


def _kinds(first: bool = False) -> pd.DataFrame:
    table = _numbers().rename(columns={"target": "kind"})
    table["kind"] = np.where(table["kind"] > 0, "up", "down")
    return table[["kind", "a", "b", "c"]] if first else table


def _flags() -> pd.DataFrame:
    table = _numbers().drop(columns="target")
    return table.assign(red=(table.a > 0).astype(int), tall=(table.b > 3).astype(int))


def _gzipped(text: str) -> bytes:
    return gzip.compress(text.encode())


def _parquet(table: pd.DataFrame) -> bytes:
    return table.to_parquet(index=False)


def _semicolons(table: pd.DataFrame) -> str:
    """As a spreadsheet writes them where decimals have a comma and thousands a point."""
    lines = [";".join(table.columns)]
    for row in table.itertuples(index=False):
        cells = [value if isinstance(value, str) else f"{value:,.3f}" for value in row]
        lines.append(";".join(cell.translate(str.maketrans(",.", ".,")) for cell in cells))
    return "\n".join(lines)


IRIS = (SKLEARN / "iris.csv").read_text()
WINE = (SKLEARN / "wine_data.csv").read_text()

TABLES = {
    "real targets": ("t.csv", _numbers().to_csv(index=False), None, "regression: 240 rows, 3 numeric features, target"),
    "categories and gaps": (
        *("t.csv", _people().to_csv(index=False), "Survived"),
        "classification: 240 rows, 1 numeric feature and 2 categorical features, target 'Survived' (2 classes)",
    ),
    "tabs": ("t.tsv", _kinds().to_csv(index=False, sep="\t"), None, "classification: 240 rows, 3 numeric features"),
    "bars": ("t.txt", _kinds().to_csv(index=False, sep="|"), None, "classification: 240 rows, 3 numeric features"),
    "blanks": ("t.txt", _numbers().to_csv(index=False, sep=" "), None, "regression: 240 rows, 3 numeric features"),
    "decimal commas": ("t.csv", _semicolons(_kinds()), None, "classification: 240 rows, 3 numeric features"),
    "counts on top, as many as columns": (
        *("iris.csv", IRIS, None),
        "classification: 150 rows, 4 numeric features, target 'column 5' (3 classes)",
    ),
    "counts on top, fewer than columns": (
        *("wine.csv", WINE, None),
        "classification: 178 rows, 13 numeric features, target 'column 14' (3 classes)",
    ),
    "quotes": ("t.csv", _kinds().to_csv(index=False, quoting=1), None, "classification: 240 rows, 3 numeric features"),
    "a byte order mark": ("t.csv", "\ufeff" + _kinds().to_csv(index=False), "kind", "classification: 240 rows, 3"),
    "compressed": ("t.csv.gz", _gzipped(_numbers().to_csv(index=False)), None, "regression: 240 rows, 3 numeric"),
    "parquet": ("t.parquet", _parquet(_people()), "Survived", "classification: 240 rows, 1 numeric feature and 2"),
    "the label first": ("t.csv", _kinds(first=True).to_csv(index=False), "kind", "classification: 240 rows, 3 numeric"),
    "several labels": ("t.csv", _flags().to_csv(index=False), "red,tall", "multilabel: 240 rows, 3 numeric features"),
    "no header, the label by its place": (
        *("t.csv", _kinds(first=True).to_csv(index=False, header=False), "0"),
        "classification: 240 rows, 3 numeric features, target 'column 1' (2 classes)",
    ),
}


@pytest.fixture
def write(tmp_path):
    def write_file(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write_file


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_is_learned_from_and_what_it_is_taken_for_is_told(write, kind):
    name, content, label, told = TABLES[kind]
    task = load_task(write(name, content), 0, label=label)
    assert task.told[0].startswith(told)
    torch.manual_seed(0)
    host = task.make_host()
    before = mean_loss(host, task.train)
    optimizer = torch.optim.AdamW(host.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        mean_loss(host, task.train).backward()
        optimizer.step()
    assert mean_loss(host, task.train) < before
    for part in (task.train, task.held_out, task.test):
        assert torch.isfinite(part.x).all()


RUN = ["--epochs", "3", "--no-controls", "--plain"]


@pytest.mark.parametrize("kind", ["real targets", "categories and gaps", "several labels"])
def test_esper_run_takes_it_and_its_report_names_the_metric(write, tmp_path, capsys, kind):
    name, content, label, told = TABLES[kind]
    line = ["--data", write(name, content), *(["--label", label] if label else []), "--output", str(tmp_path / "out")]
    assert main(["run", *line, *RUN]) == 0
    said = capsys.readouterr().out
    assert f"data         {told}" in said
    metric = {"real targets": "R2", "categories and gaps": "accuracy", "several labels": "labels right"}[kind]
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["metric"] == metric
    report = (tmp_path / "out" / "report.html").read_text()
    assert f"test {metric}" in report
    if metric != "accuracy":
        assert "accuracy" not in said
        assert "accuracy" not in report
    further = {"R2": ["RMSE"], "accuracy": [], "labels right": ["macro F1"]}[metric]
    assert list(result["rows"]["grown"]["test_further"]) == further
    assert all(name in said for name in further)


def test_the_card_of_a_network_tells_how_to_use_it_on_a_row_of_the_table(write, tmp_path):
    people = _people().assign(weight=RNG.normal(70, 9, ROWS).round(1))
    data = write("people.csv", people.to_csv(index=False))
    out = tmp_path / "out"
    assert main(["run", "--data", data, "--label", "weight", *RUN, "--output", str(out)]) == 0
    usage = (out / "model" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    rows = [{name: None if pd.isna(cell) else cell for name, cell in row.items()} for row in people.to_dict("records")]
    code = f"rows = {rows!r}\n{usage}\nprint(json.dumps([x.sum(0).tolist(), sum(predicted) / len(predicted)]))"
    done = warm.run(["-c", code], folder=out / "model")
    assert done.returncode == 0, done.stderr
    features, predicted = json.loads(done.stdout)
    task = load_task(data, 0, label="weight")
    expected = torch.cat([part.x for part in (task.train, task.held_out, task.test)]).sum(0)
    torch.testing.assert_close(torch.tensor(features), expected, rtol=1e-4, atol=1e-2)
    assert predicted == pytest.approx(70, abs=5)


@pytest.mark.parametrize(("task", "wanted"), [("regression", "R2"), ("classification", "accuracy")])
def test_many_whole_numbers_are_asked_about(write, task, wanted):
    table = _numbers().assign(target=np.arange(ROWS) % 60)
    data = write("t.csv", table.to_csv(index=False))
    with pytest.raises(DataError, match=r"60 different whole numbers: they may be classes or a quantity. Say --task"):
        load_task(data, 0)
    assert load_task(data, 0, task=task).metric == wanted


def test_few_whole_numbers_are_classes_unless_told_otherwise(write):
    data = write("t.csv", _numbers().assign(target=np.arange(ROWS) % 7).to_csv(index=False))
    assert load_task(data, 0).kind == "classification"
    assert load_task(data, 0, task="regression").kind == "regression"


def test_a_quantity_is_standardised_by_the_training_part_and_r2_is_what_scikit_learn_says(write):
    from sklearn.metrics import r2_score

    task = load_task(write("t.csv", _numbers().to_csv(index=False)), 0)
    assert task.train.y.mean().abs() < 1e-5
    assert task.train.y.std(correction=0) == pytest.approx(1, abs=1e-5)
    host = task.make_host()
    losses, scores = per_sample(host, task.test)
    with torch.no_grad():
        predicted = host(task.test.x).flatten()
    assert scores.mean() == pytest.approx(r2_score(task.test.y.numpy(), predicted.numpy()), abs=1e-5)
    assert losses.mean() == pytest.approx(float((predicted - task.test.y).square().mean()), abs=1e-6)


def test_what_fills_gaps_and_which_levels_there_are_is_fitted_on_the_training_part_alone(write):
    table = _numbers()
    table["gap"] = np.where(np.arange(ROWS) % 5 == 0, np.nan, 1.0)
    table["level"] = RNG.choice(["x", "y"], ROWS)
    whole = load_task(write("t.csv", table.to_csv(index=False)), 0, label="target")
    is_test = _rows_of(whole, table, whole.test)
    table.loc[is_test & table["gap"].notna(), "gap"] = 1e6
    table.loc[is_test, "level"] = "never seen"
    other = load_task(write("u.csv", table.to_csv(index=False)), 0, label="target")
    assert torch.equal(whole.train.x, other.train.x[:, : whole.train.x.shape[1]])
    assert "level is other" in other.features
    assert "level is never seen" not in other.features


def _rows_of(task: Task, table: pd.DataFrame, part) -> np.ndarray:
    """Which rows of the table a part holds, by the numbers of its third column."""
    raw = part.x[:, 2] * task.std[2] + task.mean[2]
    return np.isclose(table["c"].to_numpy()[:, None], raw.numpy()[None], rtol=0, atol=1e-2).any(1)


def test_rare_levels_are_one_feature_and_gaps_are_a_level(write):
    levels = ["common", "usual", None] * (ROWS // 3)
    levels[5], levels[6], levels[100] = "rare", "rarer", "rarest"
    task = load_task(write("t.csv", _numbers().assign(level=levels).to_csv(index=False)), 0, label="target")
    names = [name for name in task.features if name.startswith("level")]
    assert names == ["level is common", "level is missing", "level is usual", "level is other"]


def test_classes_have_the_names_that_the_first_line_gives(tmp_path):
    shutil.copy(SKLEARN / "iris.csv", tmp_path)
    assert load_task(str(tmp_path / "iris.csv"), 0).labels == ("setosa", "versicolor", "virginica")


@pytest.mark.parametrize(
    ("cells", "value"),
    [
        (("999,5", "1.234"), 1234.0),
        (("0.5", "1,234.5"), 1234.5),
        (("1.234.567", "3"), 1234567.0),
        (("1,00,000", "50,000"), 100000.0),
        (("\N{MINUS SIGN}0.53", "0.25"), -0.53),
    ],
)
def test_signs_between_thousands_are_told_from_decimals_by_the_other_cells(write, cells, value):
    rows = [f"{cells[index % 2]};{index % 3};{'ab'[index % 2]}" for index in range(ROWS)]
    task = load_task(write("t.csv", "size;n;kind\n" + "\n".join(rows)), 0)
    raw = task.train.x[:, 0] * task.std[0] + task.mean[0]
    assert ((raw - value).abs() < 1e-3 * abs(value)).any()


BAD = {
    "a number that is either of two": (["1,234", "5,678"], "'1,234', which is one number with a decimal point and"),
    "a number that is either of two between semicolons": (["1.234", "5.678"], "'1.234', which is one number with a"),
    "both signs for decimals": (["0,5", "1.25"], "a decimal comma beside others with a decimal point"),
    "dates": (["2021-03-01", "2021-04-02"], r"line 2, column 1 \('size'\): '2021-03-01' is a date or a time"),
    "months": (["2021_03", "2021_04"], "'2021_03' is a date or a time"),
    "days with a point": (["03.04.2021", "04.04.2021"], "is a date or a time"),
    "times": (["12:30", "13:45"], "is a date or a time"),
    "days with a month's name": (["Jan 5 2020", "march 12, 2021"], "'Jan 5 2020' is a date or a time"),
    "months with a name": (["Jan 2020", "Sept. 2021"], "'Jan 2020' is a date or a time"),
    "quarters": (["2020Q1", "2021-Q4"], "'2020Q1' is a date or a time"),
    "weeks": (["2020-W01", "2020-W52"], "'2020-W01' is a date or a time"),
    "below zero by brackets": (["0.25", "(0.53)"], r"line 3, column 1 \('size'\): '\(0.53\)' is a number in brackets"),
}


@pytest.mark.parametrize("case", BAD)
def test_cells_that_could_be_misread_are_refused(write, case):
    cells, says = BAD[case]
    rows = [f"{cells[index % 2]};{'ab'[index % 2]}" for index in range(ROWS)]
    with pytest.raises(DataError, match=says):
        load_task(write("t.csv", "size;kind\n" + "\n".join(rows)), 0)


@pytest.mark.parametrize("form", ["{} kg", "{}%", "${}.50", "1 {:03}", "{}€"])
def test_numbers_with_something_beside_them_are_refused_rather_than_left_out(write, form):
    rows = [f"{form.format(index)};{'ab'[index % 2]}" for index in range(ROWS)]
    with pytest.raises(DataError, match=r"line 2, column 1 \('size'\): .* is a number with something beside it"):
        load_task(write("t.csv", "size;kind\n" + "\n".join(rows)), 0)


def test_a_header_stays_one_though_a_cell_of_the_label_is_called_alike(write):
    rows = "\n".join(f"{index / 7:.3f},{'yn'[index % 2]}" for index in range(ROWS))
    assert load_task(write("t.csv", f"a,y\n{rows}"), 0).labels == ("n", "y")


def test_a_first_line_of_texts_whose_levels_come_again_is_a_sample(write):
    levels = (["red", "green", "blue"], ["big", "small"], ["x", "y"])
    rows = "\n".join(",".join(one[index % len(one)] for one in levels) for index in range(ROWS))
    assert load_task(write("t.csv", rows), 0).told[0].startswith("classification: 240 rows")
    assert load_task(write("u.csv", f"colour,size,y\n{rows}"), 0).told[0].startswith("classification: 240 rows")


def test_a_delimiter_at_the_end_of_every_line_is_no_column(write):
    rows = "\n".join(f"{index / 7:.3f},{index % 5},{'ab'[index % 2]}," for index in range(ROWS))
    assert load_task(write("t.csv", f"a,b,kind,\n{rows}"), 0).labels == ("a", "b")


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("t.csv", _kinds().to_csv(), "column 1 (it has no name)"),
        ("t.csv", _kinds().to_csv(index=False).replace("\n", ",\n"), "column 5 (it is empty, and has no name)"),
        ("t.parquet", _kinds().set_index("a").to_parquet(), "'a' (the file's index)"),
        ("t.parquet", _kinds().sample(frac=1.0, random_state=0).to_parquet(), "the file's index"),
    ],
)
def test_a_column_that_is_no_feature_is_told(write, name, data, says):
    assert load_task(write(name, data), 0).told[1:] == (f"left out: {says}",)


def test_words_that_begin_like_a_month_are_categories(write):
    rows = [f"{('marble 20', 'sepia 1900')[index % 2]},{index % 7},{'ab'[index % 2]}" for index in range(ROWS)]
    task = load_task(write("t.csv", "size,n,kind\n" + "\n".join(rows)), 0)
    assert {"size is marble 20", "size is sepia 1900"} <= set(task.features)


@pytest.mark.parametrize(("constant", "task"), [(5.5, "auto"), (5, "auto"), (5.5, "regression"), ("up", "auto")])
def test_a_target_that_is_the_same_everywhere_is_called_constant(write, constant, task):
    table = _numbers().assign(target=constant)
    with pytest.raises(DataError, match=f"target is constant: .*{constant}"):
        load_task(write("t.csv", table.to_csv(index=False)), 0, task=task)


def test_dates_are_classes_only_where_that_is_said(write):
    path = write("t.csv", _numbers().assign(day=[f"Jan {index % 9 + 1} 2020" for index in range(ROWS)]).to_csv())
    with pytest.raises(DataError, match=r"'Jan 1 2020' is a date or a time.*--task classification"):
        load_task(path, 0, label="day")
    assert len(load_task(path, 0, label="day", task="classification").labels) == 9


def test_a_missing_label_is_quoted(write):
    table = _kinds().to_csv(index=False).replace("up\n", "nan\n", 1)
    with pytest.raises(DataError, match=r"the label is missing \('nan'\)"):
        load_task(write("t.csv", table), 0)


def test_the_passengers_of_a_ship_are_learned_from(write):
    """Tickets are numbers or codes, cabins mostly missing; decks and classes are few."""
    people = _people()
    people["Ticket"] = [f"A/{index % 9} {index}" if index % 4 == 0 else str(9000 + 7 * index) for index in range(ROWS)]
    people["Cabin"] = [f"C{index}" if index % 5 == 0 else None for index in range(ROWS)]
    people["Siblings"] = [["0", "1", "2", "3+"][index % 4] for index in range(ROWS)]
    task = load_task(write("t.csv", people.to_csv(index=False)), 0, label="Survived")
    assert task.told[0].startswith("classification: 240 rows, 1 numeric feature and 3 categorical features")
    left_out = (
        "left out: 'PassengerId' (another whole number in every row), 'Name' (another text in nearly every row), "
    )
    assert task.told[-1].startswith(left_out + "'Ticket' (another text in nearly every row), 'Cabin' (")
    assert [name for name in task.features if name.startswith("Siblings")] == [
        *("Siblings is 0", "Siblings is 1", "Siblings is 2", "Siblings is 3+")
    ]


def test_a_word_for_missing_among_numbers_is_named(write):
    ages = [str(index / 4) if index % 5 else "unknown" for index in range(ROWS)]
    with pytest.raises(DataError, match=r"line 2, column 4 \('age'\): 'unknown' is no finite number, as others of"):
        load_task(
            write("t.csv", _numbers().drop(columns="target").assign(age=ages, y=RNG.random(ROWS)).to_csv(index=False)),
            0,
        )


def test_columns_are_counted_as_in_the_file_though_an_index_is_left_out(write):
    table = _numbers().astype({"b": object})
    table.loc[3, "b"] = "oops"
    with pytest.raises(DataError, match=r"line 5, column 3 \('b'\): 'oops' is no finite number"):
        load_task(write("t.csv", table.to_csv()), 0)


@pytest.mark.parametrize(
    ("option", "says"), [({"label": "a"}, "--label names a column"), ({"task": "regression"}, "--task is for tables")]
)
def test_options_of_tables_are_refused_for_other_data(option, says):
    with pytest.raises(ConfigError, match=says):
        load_task("digits", 0, **option)


@pytest.mark.parametrize("task", ["auto", "regression"])
def test_a_quantity_with_both_signs_for_decimals_is_refused(write, task):
    rows = "\n".join(f"{index};{f'{index},5' if index % 2 else f'{index}.25'}" for index in range(ROWS))
    with pytest.raises(DataError, match="price has decimals with a comma beside others with a point"):
        load_task(write("t.csv", f"a;price\n{rows}"), 0, task=task)


def test_prose_is_no_table(write):
    with pytest.raises(DataError, match=r"one column only: .* A text to learn is --data text:t.txt"):
        load_task(write("t.txt", "It was the best of times.\nIt was the worst of times, though.\n" * 99), 0)


def test_labels_may_be_true_and_false(write):
    table = _flags().astype({"red": bool, "tall": bool})
    task = load_task(write("t.parquet", _parquet(table)), 0, label="red,tall")
    assert task.labels == ("red", "tall")
    with pytest.raises(DataError, match="--task regression is for one label, and --label red,tall names 2"):
        load_task(write("t.parquet", _parquet(table)), 0, label="red,tall", task="regression")


def test_a_missing_value_among_quantities_is_named(write):
    table = _numbers().astype({"target": object})
    table.loc[7, "target"] = "NA"
    with pytest.raises(DataError, match=r"line 9, column 4 \('target'\): 'NA' is no number, and a quantity must be"):
        load_task(write("t.csv", table.to_csv(index=False)), 0)


LABELS = {
    "unknown": ("colour", "has no column 'colour' for --label.*Valid: a, b, c, target"),
    "beyond the last": ("7", "has no column '7' for --label"),
    "twice": ("a,a", "names a column twice"),
    "all": ("a,b,c,target", "leaves none to learn from"),
    "several of other values": ("a,b", r"line 2, column 1 \('a'\): .* is neither 0 nor 1"),
}


@pytest.mark.parametrize("case", LABELS)
def test_a_label_that_cannot_be_meant_is_refused(write, case):
    label, says = LABELS[case]
    with pytest.raises(DataError, match=says):
        load_task(write("t.csv", _numbers().to_csv(index=False)), 0, label=label)


def test_text_is_no_quantity(write):
    with pytest.raises(DataError, match=r"'(up|down)' is no number, and a quantity must be numbers"):
        load_task(write("t.csv", _kinds().to_csv(index=False)), 0, task="regression")


def test_a_table_of_ids_alone_is_refused(write):
    rows = "\n".join(f"{index},person {index},{'ab'[index % 2]}" for index in range(ROWS))
    with pytest.raises(DataError, match=r"no column that can be learned from: 'id' .*, 'name' .* left out"):
        load_task(write("t.csv", f"id,name,kind\n{rows}"), 0)


@pytest.mark.parametrize("name", ["t.csv.gz", "t.parquet"])
def test_a_file_that_was_cut_short_is_refused(write, name):
    whole = _gzipped(_kinds().to_csv(index=False)) if name.endswith("gz") else _parquet(_kinds())
    with pytest.raises(DataError, match="cannot be read"):
        load_task(write(name, whole[:-200]), 0)


def test_a_table_is_the_same_whatever_the_file(write):
    text = io.StringIO()
    _people().to_csv(text, index=False)
    people = pd.read_csv(io.StringIO(text.getvalue()))
    tasks = [
        load_task(write("t.csv", text.getvalue()), 0, label="Survived"),
        load_task(write("t.parquet", _parquet(people)), 0, label="Survived"),
        load_task(write("t.tsv.gz", _gzipped(people.to_csv(index=False, sep="\t"))), 0, label="Survived"),
    ]
    for task in tasks[1:]:
        assert torch.equal(task.train.x, tasks[0].train.x)
        assert torch.equal(task.train.y, tasks[0].train.y)
        assert task.told == tasks[0].told
