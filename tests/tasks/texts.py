"""Texts to learn from."""

from pathlib import Path

import numpy as np

LETTERS = "abcdefghij \n"


def write_text(directory: Path, length: int = 6_000, letters: str = LETTERS) -> Path:
    """A file of letters drawn at random."""
    rng = np.random.default_rng(0)
    path = directory / "mine.txt"
    path.write_text("".join(letters[i] for i in rng.integers(len(letters), size=length)), encoding="utf-8")
    return path


def write_sums(directory: Path, length: int = 6_000) -> Path:
    """A file of letters each of which follows from the two before it, which no linear map tells."""
    letters, rng = "abcdefg", np.random.default_rng(0)
    codes = [0, 1]
    for _ in range(length - 2):
        codes.append((codes[-1] * codes[-2] + 1) % 7 if rng.random() < 0.9 else int(rng.integers(7)))
    path = directory / "sums.txt"
    path.write_text("".join(letters[code] for code in codes), encoding="utf-8")
    return path


def write_texts(directory: Path, files: int = 30, size: int = 800) -> Path:
    """A folder of files of random letters, each of which begins with its number, as in ``<007>``."""
    rng, path = np.random.default_rng(0), directory / "texts"
    path.mkdir()
    for number in range(files):
        letters = rng.integers(ord("a"), ord("z"), size=size, dtype=np.uint8).tobytes()
        (path / f"text-{number:03}.txt").write_bytes(f"<{number:03}>".encode() + letters)
    return path
