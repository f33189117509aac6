"""Other commits of a git repository beside its working tree, each in a folder that is taken away again."""

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from esper.contracts.errors import ConfigError

_NO_HOOKS = ("-c", "core.hooksPath=/dev/null")


def repository_of(folder: Path) -> Path:
    """The root of the working tree that a folder lies in.

    Raises:
        ConfigError: if it lies in none, or git is not installed.
    """
    found = _git(folder, "rev-parse", "--show-toplevel")
    if found is None:
        raise ConfigError(f"{folder} lies in no git repository. Go into a clone and try again.")
    return Path(found)


def commit_named(repository: Path, name: str) -> str:
    """The full hash of a commit, by any name that git knows it by.

    Raises:
        ConfigError: if there is none of that name, or no repository.
    """
    if _git(repository, "rev-parse", "--git-dir") is None:
        raise ConfigError(f"{repository} is no git repository, so that {name!r} cannot be looked up there.")
    found = _git(repository, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    if found is None:
        raise ConfigError(f"There is no commit {name!r} in {repository}. 'git log --oneline' lists those that are.")
    return found


def is_clean(repository: Path, part: Path) -> bool:
    """Whether a part of the working tree is as in its commit, with nothing new but what git ignores."""
    return _git(repository, "status", "--porcelain", "--", str(part)) == ""


def content_of(repository: Path, commit: str, folder: str = "") -> str | None:
    """What git calls what a commit, or a folder in it, holds: the same where all files are. None if it has none."""
    return _git(repository, "rev-parse", "--verify", "--quiet", f"{commit}:{folder}")


@contextmanager
def checked_out(repository: Path, commit: str) -> Iterator[Path]:
    """A folder that holds a commit, as long as the context lasts. Branches and the working tree stay as they are.

    Raises:
        ConfigError: if git cannot make it.
    """
    with tempfile.TemporaryDirectory(prefix="esper-") as temporary:
        folder = Path(temporary).resolve() / commit[:12]
        try:
            if _git(repository, *_NO_HOOKS, "worktree", "add", "--detach", str(folder), commit) is None:
                raise ConfigError(f"git cannot check out {commit[:12]} of {repository} beside its working tree.")
            yield folder
        finally:
            _git(repository, "worktree", "remove", "--force", "--force", str(folder))  # also one half made, with a lock


def _git(folder: Path, *words: str) -> str | None:
    """What git prints; None if it fails."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise ConfigError("git is not installed, and other commits are read with it. Install it.") from error
    return done.stdout.strip() if done.returncode == 0 else None
