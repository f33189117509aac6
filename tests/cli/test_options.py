"""Options: command line over file over defaults, and one clear message for whatever is wrong with them."""

import math
import re
import subprocess
import sys
from dataclasses import fields
from typing import get_args

import pytest
import yaml

from esper.cli.command_line import COMMANDS, parse
from esper.cli.commands.run import GROWTH_OPTIONS
from esper.cli.configuration_file import to_values
from esper.cli.main import main
from esper.cli.options import HINTS, PACES, Options, flag
from esper.contracts.config import GrowthConfig
from esper.evaluation.training import SCHEDULES


@pytest.fixture
def write(tmp_path):
    def write_config(text: str) -> str:
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return str(path)

    return write_config


def test_nothing_need_be_given():
    assert parse(["run"]).options == Options()


def test_the_command_line_goes_over_the_file_and_the_file_over_defaults(write):
    path = write("epochs: 7\nlr: 3e-4\ncontrols: false\ngrowth:\n  max_rounds: 1\n  keep_looks: [0.5, 0.9]\n")
    options = parse(["run", "--config", path, "--epochs", "9"]).options
    assert (options.epochs, options.lr, options.controls) == (9, 3e-4, False)
    assert options.batch_size == PACES["mlp"].batch_size
    assert options.growth == GrowthConfig(max_rounds=1, keep_looks=(0.5, 0.9))
    assert parse(["run", "--config", path, "--controls"]).options.controls


def test_schedules_are_those_that_a_run_knows():
    assert set(get_args(HINTS["schedule"])) == set(SCHEDULES)
    assert {pace.schedule for pace in PACES.values()} <= set(SCHEDULES)


def test_growth_is_seeded_by_the_run_unless_told_otherwise(write):
    assert parse(["run", "--seed", "5"]).options.growth.seed == 5
    assert parse(["run", "--seed", "5", "--config", write("growth: {seed: 8}")]).options.growth.seed == 8


def test_what_a_run_stores_reads_back_as_the_same_options(write):
    path = write("data: mine.npz\nlr: 0.01\ngrowth: {layers: {'0': 4}, graft_lr: 2, seed: 3}")
    options = parse(["run", "--config", path]).options
    stored = parse(["run", "--config", write(yaml.safe_dump(to_values(options)))]).options
    assert to_values(stored) == to_values(options)
    assert stored.growth.layers == {"0": 4}


@pytest.mark.parametrize(
    ("line", "settings"), [("hidden=32-16", {"hidden": (32, 16)}), ("hidden=32,depth=3", {"hidden": 32, "depth": 3})]
)
def test_settings_of_a_host_are_stored_as_they_were_given(line, settings, write):
    options = parse(["run", "--host-settings", line]).options
    stored = parse(["run", "--config", write(yaml.safe_dump(to_values(options)))]).options
    assert stored.host_settings == options.host_settings == settings


def test_a_folder_of_texts_has_a_pace_of_its_own(tmp_path):
    options = parse(["run", "--data", f"text:{tmp_path}", "--host", "mlp"]).options
    assert {name: getattr(options, name) for name in PACES["a folder"]._fields} == PACES["a folder"]._asdict()


def test_growth_on_the_command_line_goes_over_the_file(write):
    path = write("growth: {max_rounds: 1, patience: 5, layers: ['4']}")
    options = parse(
        ["run", "--config", path, "--layers", "0,2:4", "--seeds-per-layer", "3", "--max-rounds", "0"]
    ).options
    assert options.growth == GrowthConfig(layers=("0", "2:4"), seeds_per_layer=3, max_rounds=0, patience=5)


@pytest.mark.parametrize(
    ("line", "host", "pace"),
    [
        ([], "mlp", "mlp"),
        (["--data", "mnist1d", "--host", "cnn"], "cnn", "cnn"),
        (["--data", "text:a.txt"], "gpt", "text"),
        (["--data", "text:a.txt", "--host", "mine:net"], "mine:net", "text"),
        (["--data", "text:a.txt", "--host", "mlp"], "mlp", "mlp on text"),
        (["--host", "mine:net"], "mine:net", "mlp"),
    ],
)
def test_what_was_left_out_follows_from_data_and_host(line, host, pace):
    options = parse(["run", *line]).options
    assert options.host == host
    assert {name: getattr(options, name) for name in PACES[pace]._fields} == PACES[pace]._asdict()


def test_paths_are_stored_absolute_for_a_run_that_is_resumed_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for data, stored in {
        "a.npz": f"{tmp_path}/a.npz",
        "a.csv": f"{tmp_path}/a.csv",
        "text:a.txt": f"text:{tmp_path}/a.txt",
        "mnist1d": "mnist1d",
    }.items():
        assert parse(["run", "--data", data]).options.data == stored
    assert parse(["run", "--from", "w.safetensors"]).options.weights == f"{tmp_path}/w.safetensors"
    (tmp_path / "run.yaml").write_text("weights: ../w.safetensors")
    assert parse(["run", "--config", "run.yaml"]).options.weights == f"{tmp_path.parent}/w.safetensors"


SETTINGS = """\
growth:
  axis: {"stem*": 1}
  output_fields: {head: logits}
  strategy: drift_controlled
  selection: cost
  trial: live
  max_memory: 0.2
  target_metric: null
"""


def test_settings_of_every_type_fit_and_are_stored(write):
    growth = parse(["run", "--config", write(SETTINGS)]).options.growth
    assert (growth.axis, growth.output_fields, growth.strategy) == (
        {"stem*": 1},
        {"head": "logits"},
        "drift_controlled",
    )
    assert (growth.selection, growth.trial, growth.max_memory, growth.target_metric) == ("cost", "live", 0.2, None)
    stored = write(yaml.safe_dump(to_values(parse(["run", "--config", write(SETTINGS)]).options)))
    assert to_values(parse(["run", "--config", stored]).options)["growth"]["axis"] == {"stem*": 1}


def test_what_is_shown_belongs_to_one_call_and_is_not_stored():
    asked = parse(["run", "--plain", "--log-format", "json"])
    assert (asked.options.plain, asked.options.log_format) == (True, "json")
    assert to_values(asked.options) == to_values(Options())


def test_numbers_may_be_written_in_every_plain_way(write):
    """With an exponent, which YAML takes for text; with a sign; infinite; what the command line takes, too."""
    path = write("lr: 1e-3\nepochs: +7\ncontrols: no\ngrowth: {max_growth: .inf, gate_z: 2., drift_threshold: 1.0e-05}")
    options = parse(["run", "--config", path, "--seed", "010"]).options
    assert (options.lr, options.epochs, options.controls, options.seed) == (1e-3, 7, False, 10)
    assert (options.growth.max_growth, options.growth.gate_z, options.growth.drift_threshold) == (math.inf, 2.0, 1e-5)


def test_what_is_meant_twice_may_be_written_once(write):
    """Anchors, aliases and merged mappings are no keys that stand twice."""
    text = "growth: {layers: &which ['0'], exclude: *which, <<: {patience: 2, max_rounds: 1}, max_rounds: 3}"
    growth = parse(["run", "--config", write(text)]).options.growth
    assert (growth.layers, growth.exclude, growth.patience, growth.max_rounds) == (("0",), ("0",), 2, 3)


def test_an_empty_file_changes_nothing(write):
    assert parse(["run", "--config", write("")]).options.growth == GrowthConfig()


def test_help_loads_nothing_that_is_slow():
    """Of no command. How soon it answers is measured by ``benchmarks.seeing``."""
    code = (
        "import sys\nfrom esper.cli.main import main\n"
        "slow = {'torch', 'numpy', 'yaml', 'rich', 'jinja2', 'structlog', 'sklearn'}\n"
        "for command in ([], *([name] for name in sys.argv[1:])):\n"
        "    assert main([*command, '--help']) == 0\n"
        "    assert sys.modules.keys().isdisjoint(slow), command"
    )
    subprocess.run([sys.executable, "-c", code, *COMMANDS], check=True, capture_output=True)


def test_help_shows_every_option_with_its_default(capsys):
    assert main(["run", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for one in fields(Options):
        if one.name != "growth":
            option = flag(one.name)
            default = None if one.metadata["shown"] else one.default
            default = ("no", "yes")[default] if isinstance(default, bool) else default
            shown = "" if default is None else re.escape(f"{default})")
            assert re.search(rf"{option}\b[^()]*(\([^()]*\))?[^()]*\(default: {shown}", text), option
    for name in GROWTH_OPTIONS:
        assert f"--{name.replace('_', '-')} " in text
    assert "(default: 60 for mlp, 60 for cnn, 30 for text, 30 for mlp on text, 20 for a folder)" in text
    for one in fields(GrowthConfig):
        assert f"{one.name}: " in text


BAD_LINES = {
    "no command": (
        [],
        "Say what to do: 'esper run', 'esper report', 'esper compare', ",
    ),
    "unknown command": (
        ["rnu"],
        "no command 'rnu'. Did you mean 'run'? Valid: ab, ",
    ),
    "an option before the command": (["--epochs", "3", "run"], "no option '--epochs'. Valid: --help."),
    "unknown option": (["run", "--epoch", "3"], "no option '--epoch'. Did you mean '--epochs'"),
    "an abbreviation": (["run", "--bat=3"], "no option '--bat'"),
    "a stray word": (["run", "digits"], "takes options only, not 'digits'"),
    "a value for a switch": (["run", "--plain=no"], "--plain: ignored explicit argument 'no'"),
    "another log": (["run", "--log-format", "xml"], "--log-format must be 'text' or 'json', not 'xml'"),
    "no value": (["run", "--epochs"], "--epochs: expected one argument"),
    "text for a number": (["run", "--epochs", "many"], "--epochs must be a whole number, not 'many'"),
    "a broken number": (["run", "--epochs", "1.5"], "--epochs must be a whole number, not '1.5'"),
    "a number with underscores": (["run", "--epochs", "1_0"], "--epochs must be a whole number, not '1_0'"),
    "digits of another script": (["run", "--lr", "٣"], "--lr must be a number, not '٣'"),
    "no rate": (["run", "--lr", "fast"], "--lr must be a number, not 'fast'"),
    "no epochs": (["run", "--epochs", "0"], "epochs must be at least 1, not 0"),
    "no batch": (["run", "--batch-size", "0"], "batch_size must be at least 1, not 0"),
    "a negative seed": (["run", "--seed", "-1"], "seed must be 0 to 2147483647, not -1"),
    "a huge seed": (["run", "--seed", "99999999999"], "seed must be 0 to 2147483647"),
    "no threads": (["run", "--threads", "0"], "threads must be 1 to 1024"),
    "a rate of zero": (["run", "--lr", "0"], "lr must be above 0"),
    "a rate that is no number": (["run", "--lr", "nan"], "lr must be above 0 and finite"),
    "an infinite rate": (["run", "--lr", "inf"], "lr must be above 0 and finite"),
    "another schedule": (
        ["run", "--schedule", "step"],
        "--schedule must be 'constant_then_linear' or 'cosine', not 'step'",
    ),
    "another resume": (["run", "--resume", "first"], "--resume must be 'last' or 'auto', not 'first'"),
    "no file": (["run", "--config", "none.yaml"], "none.yaml cannot be read: No such file"),
    "a directory": (["run", "--config", "."], "cannot be read: Is a directory"),
    "unknown data": (["run", "--data", "digit"], "no data set 'digit'. Did you mean 'digits'"),
    "unknown host": (["run", "--host", "cnm"], "no host 'cnm'. Did you mean 'cnn'"),
    "a host without name": (["run", "--host", ""], "host must be a name or path, not ''"),
    "a transformer of features": (
        ["run", "--host", "gpt"],
        "gpt cannot learn --data digits, which is features. Possible: mlp, cnn",
    ),
    "an image network of text": (
        ["run", "--host", "cnn", "--data", "text:a.txt"],
        "which is a text. Possible: gpt, mlp, or a factory",
    ),
    "unknown policy": (["run", "--policy", "heuristics"], "no policy 'heuristics'. Did you mean 'heuristic'"),
    "unknown blueprint": (
        ["run", "--blueprints", "bottleneck"],
        "no blueprint 'bottleneck'. Did you mean 'bottleneck_mlp'",
    ),
    "unknown strategy": (["run", "--strategy", "fixed"], "no grafting strategy 'fixed'. Did you mean 'fixed_ramp'"),
    "unknown selection": (["run", "--selection", "best"], "no selection strategy 'best'. Valid: accuracy, cost"),
    "unknown trial": (["run", "--trial", "arm"], "--trial must be 'round' or 'live', not 'arm'"),
    "text for seeds": (["run", "--seeds-per-layer", "all"], "--seeds-per-layer must be a whole number, not 'all'"),
    "no seeds": (["run", "--seeds-per-layer", "0"], "growth: seeds_per_layer must be a whole number >= 1, not 0"),
    "unknown layers": (["run", "--layers", "0,enc*"], "'enc*' matches no module"),
    "no weights": (["run", "--from", "none.safetensors"], "--from: There is no file"),
    "weights of another format": (["run", "--from", "w.npz"], "--from: Weights are read from .safetensors"),
    "weights without name": (["run", "--from", ""], "weights must be a name or path, not ''"),
    "no steps": (["run", "--steps-per-epoch", "0"], "steps_per_epoch must be at least 1, not 0"),
    "an option of the doctor": (["doctor", "--fast"], "no option '--fast'. Valid: --help"),
    "a report of nothing": (["report"], "required: DIR. See 'esper report --help'."),
    "a report of two runs": (["report", "a", "b"], "'esper report' takes one run directory only, not 'b'"),
    "an unknown option of the report": (["report", "a", "--outptu", "b"], "Did you mean '--output'? Valid: --help"),
    "a report of no run": (["report", "runs/none"], "There is no directory runs/none."),
    "one run to compare": (["compare", "a"], "needs two run directories at least, and not only a."),
    "an unknown option of the comparison": (["compare", "a", "b", "--page"], "no option '--page'. Valid: --help"),
    "missing table": (["run", "--data", "none.csv"], "There is no file"),
    "missing text": (["run", "--data", "text:none.txt"], "There is no file"),
    "no text": (["run", "--data", "text:"], "is not a file"),
    "missing data": (["run", "--data", "none.npz"], "There is no file"),
    "an empty folder": (["run", "--data", "text:."], "There is no text below"),
    "no device": (["run", "--device", "gpu"], "no device 'gpu'. Did you mean 'cpu'? Valid: auto, cpu, cuda, cuda:N."),
    "no number of a device": (["run", "--device", "cuda:one"], "no device 'cuda:one'. Did you mean 'cuda:N'"),
    "a zero before the number of a device": (["run", "--device", "cuda:01"], "no device 'cuda:01'"),
    "no precision": (["run", "--precision", "fp16"], "--precision must be 'fp32' or 'bf16', not 'fp16'"),
    "no value of a setting": (["run", "--host-settings", "hidden"], "'hidden' is no setting. Write whole numbers"),
    "a broken setting": (["run", "--host-settings", "hidden=8.5"], "'hidden=8.5' is no setting"),
    "a setting below 0": (["run", "--host-settings", "hidden=-8"], "'hidden=-8' is no setting"),
    "a setting of a host twice": (
        ["run", "--host-settings", "hidden=8,hidden=9"],
        "hidden stands twice. Give it once.",
    ),
    "a setting of another host": (["run", "--host-settings", "heads=2"], "mlp has no setting 'heads' here"),
    "settings of a host of one's own": (
        ["run", "--host", "m:n", "--host-settings", "width=2"],
        "set the size of m:n in",
    ),
    "nothing to resume": (["run", "--resume", "last"], "no run under runs/"),
    "nowhere to begin or resume": (["run", "--resume", "auto"], "--resume auto needs --output DIR"),
    "nothing to resume there": (["run", "--resume", "last", "--output", "there"], "no run in there"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_wrong_command_line_ends_with_one_message_and_writes_nothing(case, tmp_path, monkeypatch, capsys):
    line, says = BAD_LINES[case]
    monkeypatch.chdir(tmp_path)
    assert main(line) == 2
    _check_message(capsys, says)
    assert list(tmp_path.iterdir()) == []


BAD_FILES = {
    "unknown option": ("epoch: 3", "there is no option 'epoch'. Did you mean 'epochs'"),
    "unknown setting": ("growth: {max_round: 1}", "growth has no setting 'max_round'. Did you mean 'max_rounds'"),
    "an option of one call": ("resume: last", "there is no option 'resume'"),
    "what is shown": ("plain: true", "there is no option 'plain'"),
    "the format of the log": ("log_format: json", "there is no option 'log_format'"),
    "a key that is no text": ("3: 4", "there is no option 3"),
    "a list": ("- epochs", "must be a mapping of options to values, not list"),
    "growth is no mapping": ("growth: 3", "growth must be a mapping"),
    "no YAML": ("epochs: [1", "not valid YAML"),
    "text for a number": ("epochs: many", "epochs must be a whole number, not 'many'"),
    "a number in quotes": ("epochs: '7'", "epochs must be a whole number, not '7'"),
    "a broken number": ("epochs: 7.5", "epochs must be a whole number, not 7.5"),
    "true for a number": ("epochs: true", "epochs must be a whole number, not True"),
    "nothing for a number": ("epochs:", "epochs must be a whole number, not None"),
    "a number for true": ("controls: 1", "controls must be true or false, not 1"),
    "out of range": ("epochs: -2", "epochs must be at least 1, not -2"),
    "text for a setting": ("growth: {patience: long}", "growth.patience must be a whole number, not 'long'"),
    "a setting out of range": ("growth: {patience: 0}", "growth: patience must be a whole number >= 1, not 0"),
    "settings that contradict": ("growth: {grow_at: 0.9}", "grow_at must be between grow_after and grow_until"),
    "a wrong choice": ("growth: {compare: time}", "growth.compare must be 'flops' or 'steps', not 'time'"),
    "one name for a list": ("growth: {blueprints: glu}", "growth.blueprints must be a list, each text, not 'glu'"),
    "a wrong list": ("growth: {keep_looks: [a]}", "growth.keep_looks must be a list, each a number"),
    "a number in base 8": (
        "seed: 1\nepochs: 010",
        "run.yaml, line 2: epochs 010 is 8 to YAML. Write 8 if that is meant, '010' in quotes if it is text, or else "
        "the number in plain decimal digits.",
    ),
    "a number in base 16": ("epochs: 0x1F", "epochs 0x1F is 31 to YAML"),
    "a number in base 2": ("epochs: 0b11", "epochs 0b11 is 3 to YAML"),
    "a number in base 60": ("epochs: 1:30", "epochs 1:30 is 90 to YAML"),
    "a number in base 60 within": (
        "growth:\n  keep_looks: [0.5, 0:0.9]",
        "line 2: growth.keep_looks 0:0.9 is 0.9 to YAML",
    ),
    "underscores in a number": ("seed: 1_0", "seed 1_0 is 10 to YAML"),
    "underscores in a broken number": ("lr: 0.0_1", "lr 0.0_1 is 0.01 to YAML"),
    "underscores in a power": ("lr: 1_0e-3", "lr must be a number, not '1_0e-3'"),
    "a power for a whole number": ("epochs: 1e3", "epochs must be a whole number, not '1e3'"),
    "a number where text is wanted": (
        "data: 012",
        "data 012 is 10 to YAML. Write 10 if that is meant, '012' in quotes",
    ),
    "a date": ("data: 2020-01-01", "line 1: data 2020-01-01 is a timestamp to YAML, which no option takes"),
    "a tag that does not fit": ("controls: !!bool maybe", "controls maybe is a bool to YAML, which no option takes"),
    "no word for text": ("host: no", "host must be text, not False"),
    "an option twice": ("epochs: 2\nseed: 1\nepochs: 3", "epochs stands twice, in lines 1 and 3. Delete one of them."),
    "a setting twice": ("growth: {patience: 2, patience: 2}", "growth.patience stands twice, in lines 1 and 1"),
    "a layer twice": ("growth:\n  layers:\n    '0': 1\n    \"0\": 2", "growth.layers.0 stands twice, in lines 3 and 4"),
    "what holds itself": ("growth: {layers: &a [*a]}", "growth.layers must be a list, each text or"),
    "no mapping of settings": (
        "host_settings: 3",
        "host_settings must be a mapping of text to a whole number or a list",
    ),
    "a broken setting of a host": (
        "host_settings: {hidden: wide}",
        "host_settings must be a mapping of text to a whole",
    ),
    "a precision": ("precision: 16", "precision must be 'fp32' or 'bf16', not 16"),
    "unknown blueprint": ("growth: {blueprints: [bottleneck]}", "no blueprint 'bottleneck'. Did you mean"),
    "a pattern without match": ("growth: {layers: ['enc*']}", "'enc*' matches no module"),
    "too many seeds": ("growth: {layers: {'0': 9}}", "8 output channels and cannot carry 9 seeds"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_wrong_file_ends_with_one_message_and_writes_nothing(case, write, tmp_path, monkeypatch, capsys):
    text, says = BAD_FILES[case]
    path = write(text)
    monkeypatch.chdir(tmp_path)
    assert main(["run", "--config", path]) == 2
    _check_message(capsys, says)
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.yaml"]


def _check_message(capsys, says: str) -> None:
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("esper: ")
    assert err.count("\n") == 1
    assert says in err
