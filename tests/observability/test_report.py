"""A report tells what the files of the run say, whatever state they are in, and asks for nothing outside of itself."""

import errno
import json
import os
import re
import shutil
import sys
from importlib import resources
from pathlib import Path

import pytest

from esper.contracts.errors import ConfigError
from esper.observability.record import read
from esper.observability.report import _environment, context, report, write, write_page
from tests.observability.recorded import write_synthetic
from tests.observability.walking import Files, Page, check_numbers
from tests.observability.walking_data import check_data

FILES = ("config.yaml", "result.json", "audit.jsonl", "metrics.jsonl")


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    return write_synthetic(tmp_path_factory.mktemp("synthetic") / "run", seeds=96, boundaries=12, blocks=4)


def rendered(directory) -> Page:
    return Page(write(directory).read_text())


def check(directory) -> Page:
    """Make the page of a run, and look up all its numbers."""
    page = rendered(directory)
    look_up(page, directory)
    return page


def look_up(page: Page, directory) -> None:
    """All numbers of a page are those of the files, which are read anew."""
    files = Files(directory)
    check_numbers(page, files)
    check_data(page.data, files)


class TestNumbers:
    def test_every_number_of_a_real_run_is_the_one_in_its_files(self, real_run):
        page = check(real_run)
        assert len(page.numbers) > 20
        assert page.data["lanes"]
        assert page.data["curves"]["run"]["steps"]
        assert page.data["lattice"] is not None
        assert page.data["anatomy"] is not None

    def test_and_of_one_with_every_outcome(self, synthetic):
        page = check(synthetic)
        outcomes = {lane["outcome"] for lane in page.data["lanes"]}
        assert outcomes == {"FOSSILIZED", "CULLED", "CANCELLED", "ROLLED_BACK"}

    @pytest.mark.parametrize(
        ("name", "kind", "path"),
        [
            ("result.json", None, ["rows", "grown", "test_loss"]),
            ("result.json", None, ["rows", "host_on", "curve", "val_losses", 3]),
            ("result.json", None, ["gains", "host_on", "loss", "low"]),
            ("result.json", None, ["lifecycles", 0, "parameters"]),
            ("metrics.jsonl", "epoch", ["val_loss"]),
            ("metrics.jsonl", "epoch", ["arm_flops"]),
            ("metrics.jsonl", "telemetry", ["places", "0", "chunk_variance", 2]),
            ("audit.jsonl", "arm_ended", ["gain"]),
            ("audit.jsonl", "arm_ended", ["curve", "train_losses", 1]),
            ("audit.jsonl", "transition", ["run_flops"]),
            ("audit.jsonl", "transition", ["step"]),
            ("audit.jsonl", "keep_look", ["ablation_gain_se"]),
            ("audit.jsonl", "model", ["modules", 0, "parameters"]),
        ],
    )
    def test_a_number_that_is_not_the_one_in_its_file_is_noticed(self, name, kind, path, grown, tmp_path):
        """The control of the tests above: the file changes after the page was made."""
        directory = shutil.copytree(grown, tmp_path / "run")
        page = Page(report(read(directory)))
        falsify(directory / name, kind, path)
        with pytest.raises(AssertionError):
            look_up(page, directory)

    @pytest.mark.parametrize("spoil", [lambda text: f"9{text}", lambda text: text.replace(".", "")])
    def test_a_text_that_is_not_its_value_is_noticed(self, spoil, grown):
        page = rendered(grown)
        number = next(number for number in page.numbers if "." in number[2])
        number[2] = spoil(number[2])
        with pytest.raises(AssertionError):
            check_numbers(page, Files(grown))

    def test_a_flag_that_is_not_set_is_not_counted(self, synthetic, tmp_path):
        directory = shutil.copytree(synthetic, tmp_path / "run")
        page = Page(report(read(directory)))
        counted = [json.loads(one[1]) for one in page.numbers if '["count"' in one[1] and "/passed" in one[1]]
        number = int(counted[0][1].partition("#")[2].partition("/")[0])
        lines = (directory / "audit.jsonl").read_text().splitlines()
        lines[number - 1] = json.dumps(json.loads(lines[number - 1]) | {"passed": False})
        (directory / "audit.jsonl").write_text("\n".join(lines) + "\n")
        with pytest.raises(AssertionError):
            check_numbers(page, Files(directory))

    def test_a_comparison_that_is_not_drawn_is_noticed(self, synthetic):
        page = rendered(synthetic)
        page.data["worth"].pop()
        with pytest.raises(AssertionError):
            check_data(page.data, Files(synthetic))

    def test_there_are_no_others_in_sentences_and_tables(self, real_run):
        loose = [text for text in rendered(real_run).loose if re.search(r"\d", text)]
        assert loose == []


def falsify(path, kind, path_in_it) -> None:
    """Make a number in a file larger by half."""
    documents = [path.read_text()] if kind is None else path.read_text().splitlines()
    loaded = [json.loads(one) for one in documents]
    changed = next(one for one in loaded if kind is None or one["event"] == kind)
    *way, last = path_in_it
    target = changed
    for step in way:
        target = target[step]
    target[last] = target[last] * 3 // 2 + 1 if isinstance(target[last], int) else target[last] * 1.5 + 0.1
    path.write_text("".join(json.dumps(one) + "\n" for one in loaded))


class TestDamage:
    @pytest.mark.parametrize("name", FILES)
    @pytest.mark.parametrize("how", ["missing", "empty", "cut", "garbage"])
    def test_the_rest_is_told(self, name, how, synthetic, tmp_path):
        directory = shutil.copytree(synthetic, tmp_path / "run")
        content = (directory / name).read_bytes()
        damaged = {"empty": b"", "cut": content[: len(content) // 2 - 7], "garbage": bytes(range(256)) * 20}
        if how == "missing":
            (directory / name).unlink()
        else:
            (directory / name).write_bytes(damaged[how])
        page = check(directory)
        is_as_of_an_unfinished_run = (name, how) == ("result.json", "missing")
        assert is_as_of_an_unfinished_run or read(directory).faults
        assert page.numbers

    @pytest.mark.parametrize("seed", range(8))
    def test_lost_lines_are_borne(self, seed, synthetic, tmp_path):
        """Every third line of both logs is damaged."""
        directory = shutil.copytree(synthetic, tmp_path / "run")
        for name in ("audit.jsonl", "metrics.jsonl"):
            lines = (directory / name).read_text().splitlines()
            cut = [line[:-9] if (at + seed) % 3 == 0 or (at * seed) % 7 == 1 else line for at, line in enumerate(lines)]
            (directory / name).write_text("\n".join(cut) + "\n")
        check(directory)

    def test_a_directory_without_a_run_gets_no_page(self, tmp_path):
        with pytest.raises(ConfigError, match="holds nothing of a run"):
            write(tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_a_run_of_an_older_version_is_told_as_far_as_it_goes(self, synthetic, tmp_path):
        directory = shutil.copytree(synthetic, tmp_path / "run")
        forget(directory / "audit.jsonl", {"model"}, {"gain", "gain_se", "ablation_gain", "ablation_gain_se", "curve"})
        forget(directory / "metrics.jsonl", {"telemetry"}, set())
        page = rendered(directory)
        check_numbers(page, Files(directory))
        assert page.data["anatomy"] is None
        assert page.data["lattice"] is None
        assert [row["mean"] for row in page.data["worth"]] == [None] * len(page.data["worth"]) != []
        assert page.data["lanes"]


def forget(path, kinds, fields) -> None:
    """Take what is new out of a log."""
    events = [json.loads(line) for line in path.read_text().splitlines()]
    old = [
        {key: value for key, value in one.items() if key not in fields} for one in events if one["event"] not in kinds
    ]
    path.write_text("".join(json.dumps(one) + "\n" for one in old))


class TestStory:
    @pytest.mark.parametrize("is_damaged", [False, True])
    def test_notes_and_faults_have_their_own_places(self, is_damaged, synthetic, tmp_path):
        directory = shutil.copytree(synthetic, tmp_path / "run")
        if is_damaged:
            (directory / "metrics.jsonl").unlink()
        record = read(directory)
        filled = context(record)
        assert [str(one) for one in filled["notes"]] == [event["text"] for _, event in record.of("note")] != []
        assert bool(filled["faults"]) == is_damaged
        told = "".join(map(str, [filled["headline"], *filled["story"]]))
        assert not any(str(one) in told for one in [*filled["notes"], *filled["faults"]])


class TestFile:
    def test_nothing_is_asked_for_outside(self, grown):
        page = rendered(grown)
        for tag, attributes in page.elements:
            assert tag not in {"iframe", "object", "embed", "base", "img"}
            for name in ("src", "href", "action", "srcset", "data", "poster"):
                assert re.match(r"#|data:|$", attributes.get(name) or ""), (tag, attributes)
        policy = next(attributes for _, attributes in page.elements if "http-equiv" in attributes)
        assert "default-src 'none'" in policy["content"]

    def test_nor_by_style_and_scripts(self):
        folder = resources.files("esper.observability") / "page"
        own = [folder / "style.css", *(folder / "scripts").iterdir()]
        assert len(own) > 5
        for file in own:
            text = file.read_text().replace("http://www.w3.org/2000/svg", "")
            assert not re.search(r"https?://|@import|\burl\((?!\s*[\"']?(#|data:))|\bfetch\(|XMLHttpRequest", text), (
                file
            )

    def test_it_is_written_as_a_whole_or_not_at_all(self, synthetic, tmp_path):
        directory = shutil.copytree(synthetic, tmp_path / "run")
        (directory / "report.html").unlink(missing_ok=True)
        (directory / "report.html").mkdir()  # cannot be replaced by a file
        before = sorted(directory.iterdir())
        with pytest.raises(ConfigError, match=r"report\.html cannot be written"):
            write(directory)
        assert sorted(directory.iterdir()) == before

    @pytest.mark.parametrize(
        ("name", "says"),
        [
            ("", "it is a directory. Name a file, for example {root}/report.html."),
            ("there", "it is a directory. Name a file, for example {root}/there/report.html."),
            ("file/x.html", "{root}/file is a file. Name a directory that there is, or make it."),
            ("no/x.html", "{root}/no is not there. Name a directory that there is, or make it."),
            ("x" * 300, "File name too long. Choose a shorter name."),
        ],
    )
    def test_where_it_cannot_be_written_the_advice_is_right(self, name, says, tmp_path):
        (tmp_path / "there").mkdir()
        (tmp_path / "file").touch()
        with pytest.raises(ConfigError, match=f"cannot be written: {re.escape(says.format(root=tmp_path))}$"):
            write_page(tmp_path / name, "page")
        assert {path.name for path in tmp_path.iterdir()} == {"there", "file"}

    def test_the_working_directory_is_no_file(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ConfigError, match=r"^\. cannot be written: it is a directory. Name a file"):
            write_page(Path(), "page")

    def test_a_long_name_is_written(self, tmp_path):
        assert write_page(tmp_path / f"{'x' * 250}.html", "page").read_text() == "page"

    @pytest.mark.parametrize(
        ("code", "advice"),
        [(errno.ENOSPC, "Make room, or write"), (errno.EROFS, "Allow writing there, or"), (errno.EIO, "Write it else")],
    )
    def test_a_medium_that_refuses_is_told(self, code, advice, tmp_path, monkeypatch):
        def refuse(*_):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(Path, "write_bytes", refuse)
        with pytest.raises(ConfigError, match=f"{os.strerror(code)}. {advice}"):
            write_page(tmp_path / "x.html", "page")

    def test_a_second_report_replaces_the_first(self, synthetic, tmp_path):
        directory = shutil.copytree(synthetic, tmp_path / "run")
        path = write(directory)
        path.write_text("old")
        assert write(directory) == path
        assert path.read_text().startswith("<!doctype html>")

    @pytest.mark.parametrize("name", ["</script><b>bad</b>", '"><img src=x onerror=alert(1)>', "<!--", "&lt;"])
    def test_hostile_names_stay_names(self, name, synthetic, tmp_path):
        directory = shutil.copytree(synthetic, tmp_path / "run")
        benign = [tag for tag, _ in rendered(directory).elements]
        for file in ("audit.jsonl", "metrics.jsonl", "result.json"):
            text = (directory / file).read_text()
            quoted = name.replace('"', '\\"')
            text = text.replace("bottleneck_mlp", quoted).replace("blocks.0", quoted).replace("made-up", quoted)
            (directory / file).write_text(text)
        page = rendered(directory)
        assert [tag for tag, _ in page.elements] == benign
        assert page.data["lanes"][0]["blueprint"] == json.loads(f'"{quoted}"')

    def test_half_a_character_can_be_written(self, synthetic, tmp_path):
        directory = shutil.copytree(synthetic, tmp_path / "run")
        with (directory / "config.yaml").open("a") as file:
            file.write('  freeze: "\\ud800"\n')
        assert rendered(directory).data["lanes"]

    @pytest.mark.long
    def test_ten_thousand_seeds_over_a_hundred_epochs_fit_into_five_megabytes(self, tmp_path):
        directory = write_synthetic(tmp_path / "run", seeds=10_000, boundaries=100, noise=0.3)
        path = write(directory)
        lattice = Page(path.read_text()).data["lattice"]
        assert path.stat().st_size < 5_000_000
        assert sum(place["seeds"] for place in lattice["places"]) >= 10_000
        assert len(lattice["steps"]) == 100
        assert len(lattice["measures"]) >= 3

    def test_without_jinja2_it_says_what_to_install(self, synthetic, monkeypatch):
        monkeypatch.setitem(sys.modules, "jinja2", None)
        _environment.cache_clear()
        with pytest.raises(ConfigError, match="pip install"):
            report(read(synthetic))
