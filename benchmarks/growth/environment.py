"""Texts that lie in every environment: Python source, C headers, English. They are linked, not copied.

A folder of links is what ``esper run --data text:FOLDER`` reads. Which files they are differs from one environment to
the next, so a digest of their names and sizes goes with every figure.
"""

import hashlib
import json
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from esper.contracts.errors import ConfigError

ENGLISH_ENDINGS = (".md", ".rst", ".txt")
ENGLISH_NAMES = ("license", "licence", "copying", "readme", "notice", "metadata", "changelog", "copyright", "news")


def _is_english(path: Path) -> bool:
    return path.suffix in ENGLISH_ENDINGS or (path.suffix == "" and path.name.lower().startswith(ENGLISH_NAMES))


KINDS: dict[str, Callable[[Path], bool]] = {
    "python": lambda path: path.suffix == ".py",
    "c": lambda path: path.suffix in (".h", ".hpp", ".cuh"),
    "english": _is_english,
}
"""Which files are of a kind."""

FURTHER_ROOTS = {"c": (Path("/usr/include"),), "english": (Path("/usr/share/doc"),)}
"""Beside the standard library and the installed packages, where they exist."""

PACKAGES = ("site-packages", "dist-packages")
"""Folders of packages in the standard library's, which are roots of their own or not of this environment."""


class Gathered(NamedTuple):
    """Texts of one kind: where links to them lie, what tells them from others, how many, how large together."""

    path: str
    digest: str
    files: int
    size_bytes: int

    def told(self) -> dict[str, Any]:
        """All but where the links lie, as plain values."""
        return {name: value for name, value in self._asdict().items() if name != "path"}


def gathered(kind: str, links: Path, directory: Path, most_bytes: int | None = None) -> Gathered:
    """Link the texts of a kind into a new folder.

    Args:
        kind: name in ``KINDS``.
        links: takes the folder, of that name.
        directory: takes what is told of the texts, in ``KIND.json``.
        most_bytes: about so many are enough; None takes all.

    Raises:
        ConfigError: if what is told there is of other texts: figures of both must not be put together.
    """
    files = _some(_found(kind), most_bytes)
    about = "\n".join(f"{name} {path.stat().st_size}" for name, path in files.items())
    found = Gathered(
        str(links / kind),
        hashlib.sha256(about.encode()).hexdigest()[:16],
        len(files),
        sum(path.stat().st_size for path in files.values()),
    )
    told = directory / f"{kind}.json"
    if told.exists() and recorded(kind, directory).digest != found.digest:
        raise ConfigError(
            f"{told} tells of other {kind} texts than this environment holds, and figures of both cannot be put "
            "together. Name another --output, or go on where it was begun."
        )
    for name, path in files.items():
        link = Path(found.path, name)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    directory.mkdir(parents=True, exist_ok=True)
    told.write_text(json.dumps(found.told()) + "\n")
    return found


def recorded(kind: str, directory: Path) -> Gathered:
    """What was gathered there, perhaps on another machine.

    Raises:
        ConfigError: if nothing was.
    """
    told = directory / f"{kind}.json"
    if not told.exists():
        raise ConfigError(f"There is no {told}: nothing was computed there. Name the --output of a run, or compute.")
    return Gathered(str(directory / kind), **json.loads(told.read_text()))


def _found(kind: str) -> dict[str, Path]:
    """All files of a kind by the names of their links, which are the same wherever an environment lies."""
    paths = sysconfig.get_paths()
    places = [Path(paths[name]).resolve() for name in ("stdlib", "purelib", "platlib")]
    roots = list(dict.fromkeys([*places, *FURTHER_ROOTS.get(kind, ())]))
    return {
        f"{number}/{path.relative_to(root)}": path
        for number, root in enumerate(roots)
        for path in _below(root, roots)
        if KINDS[kind](path)
    }


def _below(folder: Path, roots: list[Path]) -> Iterator[Path]:
    """Files below a folder without those of another environment; hidden ones and links to folders are left out."""
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name in PACKAGES or path in roots:
            continue
        if path.is_dir():
            if not path.is_symlink():
                yield from _below(path, roots)
        elif path.is_file():
            yield path


def _some(files: dict[str, Path], most_bytes: int | None) -> dict[str, Path]:
    """Files of ``most_bytes`` together, in an order that follows from their names; all of them for None."""
    if most_bytes is None:
        return files
    chosen: dict[str, Path] = {}
    left = most_bytes
    for name in sorted(files, key=lambda name: hashlib.sha256(name.encode()).hexdigest()):
        size = files[name].stat().st_size
        if 0 < size <= most_bytes // 20 and size <= left:
            chosen[name], left = files[name], left - size
    return chosen
