"""The ``esper`` command."""

import sys
from collections.abc import Sequence

from esper.cli.command_line import parse
from esper.cli.run_directory import locate
from esper.contracts.errors import ConfigError, DataError, EsperError, EvaluationError

DONE, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    Returns:
        0 done, 2 the user's input is wrong, 130 interrupted with everything saved, 1 anything else.
    """
    try:
        asked = parse(argv)
        if asked is None:
            from esper.cli.doctor import doctor

            return DONE if doctor() else FAILED
        options, directory = locate(asked)
        from esper.cli.run import run  # torch is not loaded before the options are known to be right

        run(options, directory)
    except SystemExit:  # help was printed
        return DONE
    except KeyboardInterrupt:
        return INTERRUPTED
    except (ConfigError, DataError, EvaluationError) as error:
        return _say(error, WRONG_INPUT)
    except (EsperError, OSError) as error:
        return _say(error, FAILED)
    return DONE


def _say(error: Exception, code: int) -> int:
    print(f"esper: {error}", file=sys.stderr)
    return code
