"""The ``esper`` command."""

import sys
from collections.abc import Sequence

from esper.cli.command_line import parse
from esper.contracts.errors import ConfigError, DataError, EsperError, EvaluationError

DONE, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    Returns:
        0 done, 2 the user's input is wrong, 130 interrupted with everything saved, 1 anything else.
    """
    try:
        return DONE if parse(argv).do() else FAILED
    except SystemExit:  # help was printed
        return DONE
    except KeyboardInterrupt:
        return INTERRUPTED
    except (ConfigError, DataError, EvaluationError) as error:
        return _say(error, WRONG_INPUT)
    except (EsperError, OSError) as error:
        return _say(error, FAILED)


def _say(error: Exception, code: int) -> int:
    print(f"esper: {error}", file=sys.stderr)
    return code
