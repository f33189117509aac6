"""Feature flags of one run: resolved before it begins, kept in its directory, taken up where it goes on."""

from pathlib import Path

from esper.cli.options import Options
from esper.cli.run_directory import FLAGS_FILE, read_json, write_json
from esper.contracts.errors import ConfigError
from esper.contracts.flags import Flags, from_told, none_in_play, resumed, told
from esper.flags.store import resolve


def run_flags(options: Options, task_name: str, directory: Path | None) -> Flags:
    """The flags of a new run, or of one that goes on.

    Args:
        options: of the run.
        task_name: with the seed it is the model's id, where none was given.
        directory: of the run to resume; None starts a new one.

    Raises:
        ConfigError: if the environment sets what is no flag or value, or what was kept is damaged.
    """
    model_id = options.model_id or f"{task_name}-{options.seed}"
    now = resolve(model_id, options.flags)
    if directory is None:
        return now
    kept = read_json(directory / FLAGS_FILE)
    if not kept:
        return resumed(none_in_play(model_id), now)
    try:
        return resumed(from_told(kept["model_id"], kept["flags"]), now)
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{directory / FLAGS_FILE} is damaged: {error!r}. Start another run.") from error


def keep_flags(flags: Flags, directory: Path) -> None:
    """Write down those of a new run, if any are in play."""
    if flags.are_in_play:
        write_json(directory / FLAGS_FILE, {"model_id": flags.model_id, "flags": told(flags)})
