"""The ``esper`` command."""

import io
import sys
from collections.abc import Sequence

from esper.cli.command_line import parse
from esper.contracts.errors import BusError, ConfigError, DataError, EsperError, EvaluationError

DONE, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    Returns:
        0 done, 2 the user's input is wrong, 130 interrupted with everything saved, 1 anything else.
    """
    _print_anything()
    try:
        return DONE if parse(argv).do() else FAILED
    except SystemExit:  # help was printed
        return DONE
    except KeyboardInterrupt:
        return INTERRUPTED
    except (BusError, ConfigError, DataError, EvaluationError) as error:
        return _say(error, WRONG_INPUT)
    except (EsperError, OSError) as error:
        return _say(error, FAILED)


def _print_anything() -> None:
    """Names of files may hold characters that the console's encoding lacks: those are printed as ``\\u6570``."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")


def _say(error: Exception, code: int) -> int:
    print(f"esper: {error}", file=sys.stderr)
    return code
