"""A command in a pseudo-terminal: what it writes there, and what the screen shows in the end."""

import fcntl
import os
import pty
import re
import select
import struct
import sys
import termios
from typing import NamedTuple

from tests import warm

HIDE, SHOW, UP = "\x1b[?25l", "\x1b[?25h", "\x1b[1A"
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Shown(NamedTuple):
    """What a command did on its terminal.

    Attributes:
        code: its exit code.
        written: all that it wrote, with control sequences.
        end: the text from the last state of the display on.
    """

    code: int
    written: str
    end: str


def in_terminal(*arguments: str, columns: int = 100, rows: int = 50, **environment: str) -> Shown:
    """Run Python with ``arguments`` in a terminal of this size."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    before = termios.tcgetattr(theirs)
    told = {"TERM": "xterm-256color", "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": "utf-8"}
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES", "RANK")}
    terminal = os.ttyname(theirs)
    process = warm.start(arguments, source=terminal, output=terminal, **{**kept, **told, **environment})

    written = b""
    while process.is_alive() or _is_waiting(ours):
        if _is_waiting(ours):
            written += os.read(ours, 65536)
    after = termios.tcgetattr(theirs)
    os.close(theirs)
    os.close(ours)
    assert after == before, "the terminal is not as it was"
    text = written.decode().replace("\r\n", "\n")
    assert process.exitcode is not None
    return Shown(process.exitcode, text, _CONTROL.sub("", text[text.rfind(UP) + len(UP) :]))


def _is_waiting(descriptor: int) -> bool:
    return bool(select.select([descriptor], [], [], 0.05)[0])
