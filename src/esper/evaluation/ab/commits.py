"""Commits of a git repository, checked out for as long as they are compared."""

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from esper.contracts.errors import ConfigError


@dataclass(frozen=True)
class Commit:
    """A commit.

    Args:
        name: as the user wrote it, with the beginning of its hash.
        hash: its full name.
        tree: hash of what it holds: two commits with the same are the same code.
    """

    name: str
    hash: str
    tree: str


def commit(repository: Path, revision: str) -> Commit:
    """What a revision means.

    Raises:
        ConfigError: if there is no such repository or commit.
    """
    if subprocess.run(["git", "-C", repository, "rev-parse", "--git-dir"], capture_output=True).returncode:
        raise ConfigError(f"{repository} is no git repository, so that {revision!r} cannot be looked up there.")
    names = [
        subprocess.run(
            ["git", "-C", repository, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{{kind}}}"],
            capture_output=True,
            text=True,
        ).stdout.strip()
        for kind in ("commit", "tree")
    ]
    if not all(names):
        raise ConfigError(f"There is no commit {revision!r} in {repository}. 'git log' there lists them.")
    return Commit(f"{revision} ({names[0][:8]})", *names)


@contextmanager
def checked_out(repository: Path, wanted: Commit) -> Iterator[Path]:
    """A worktree of the commit in a temporary folder, taken away afterwards."""
    with tempfile.TemporaryDirectory(prefix="esper-ab-") as folder:
        tree = Path(folder) / wanted.hash[:8]
        _git(repository, "worktree", "add", "--detach", "--quiet", str(tree), wanted.hash)
        try:
            yield tree
        finally:
            _git(repository, "worktree", "remove", "--force", str(tree))


def _git(repository: Path, *words: str) -> None:
    done = subprocess.run(["git", "-C", repository, *words], capture_output=True, text=True)
    if done.returncode:
        raise ConfigError(f"git {words[0]} {words[1]} failed in {repository}: {' '.join(done.stderr.split())}")
