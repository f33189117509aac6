"""A disk on which the power fails: what was not flushed may be there, in part, or not at all."""

import random
from dataclasses import dataclass, field
from pathlib import Path

Entry = tuple[str, tuple[Path, ...]]


@dataclass
class File:
    """Its content now, and as it was when it was last flushed."""

    latest: bytes = b""
    flushed: bytes | None = None


@dataclass
class Disk:
    """Operations in their order, as a writer did them. What a folder lists is on the disk once it is flushed."""

    entries: list[Entry] = field(default_factory=list)
    contents: dict[int, bytes] = field(default_factory=dict)

    def note(self, kind: str, paths: tuple[Path, ...]) -> None:
        """Take down an operation that was done."""
        if kind == "write":
            self.contents[len(self.entries)] = paths[0].read_bytes()
        self.entries.append((kind, paths))

    def after_a_cut(self, number: int, chance: random.Random) -> dict[Path, bytes | None]:
        """Files, and folders (None), that are there once the power has failed after some operations."""
        entries = self.entries[:number]
        certain = self._flushed_entries(entries)
        in_order = chance.random() < 0.5  # a journal keeps the order; without one anything may be missing
        cut = chance.randrange(number + 1)
        files: dict[Path, File] = {}
        folders: set[Path] = set()
        for index, (kind, paths) in enumerate(entries):
            if kind == "fsync":
                self._flush(files, paths[0])
                continue
            is_there = index in certain or (index < cut if in_order else chance.random() < 0.5)
            if kind == "write":
                if is_there or paths[0] in files:
                    files.setdefault(paths[0], File()).latest = self.contents[index]
            elif is_there:
                _apply(kind, paths, files, folders)
        found: dict[Path, bytes | None] = dict.fromkeys(folders)
        for path, file in files.items():
            if path.parent in folders:
                found[path] = _left(file, chance)
        return found

    def _flushed_entries(self, entries: list[Entry]) -> set[int]:
        """Numbers of the operations on folders that a later flush has made certain."""
        certain, waiting = set(), {}
        for index, (kind, paths) in enumerate(entries):
            if kind == "fsync":
                certain |= waiting.pop(paths[0], set())
            for path in paths if kind != "fsync" else ():
                waiting.setdefault(path.parent, set()).add(index)
        return certain

    @staticmethod
    def _flush(files: dict[Path, File], path: Path) -> None:
        if path in files:
            files[path].flushed = files[path].latest


def _apply(kind: str, paths: tuple[Path, ...], files: dict[Path, File], folders: set[Path]) -> None:
    path = paths[0]
    match kind:
        case "mkdir":
            folders.add(path)
        case "unlink":
            files.pop(path, None)
        case "rmdir":
            folders.discard(path)
        case "link" if path in files:
            files[paths[1]] = files[path]
        case "rename" if path in folders:
            target = paths[1]
            folders.discard(path)
            folders.add(target)
            for inner in [one for one in files if one.parent == path]:
                files[target / inner.name] = files.pop(inner)


def _left(file: File, chance: random.Random) -> bytes:
    """What is left of a file: all that was flushed; of what was not, anything."""
    if file.flushed == file.latest:
        return file.latest
    size = chance.randrange(len(file.latest) + 1)
    kinds = [
        file.flushed or b"",
        b"",
        file.latest,
        file.latest[:size],
        file.latest[:size].ljust(len(file.latest), b"\0"),
    ]
    return chance.choice(kinds)
