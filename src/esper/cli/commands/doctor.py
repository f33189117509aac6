"""``esper doctor``."""

import argparse
from typing import Any, Self

from esper.cli.commands.subcommand import Subcommand


class DoctorCommand(Subcommand):
    """Tell what is installed here, and whether it works."""

    about = "show versions and devices, and test in some seconds whether everything works here"

    @staticmethod
    def declare(parser: argparse.ArgumentParser) -> None: ...

    @classmethod
    def from_line(cls, values: dict[str, Any]) -> Self:
        return cls()

    def do(self) -> bool:
        from esper.cli.doctor import doctor

        return doctor()
