"""A commit as one side of a comparison."""

from dataclasses import dataclass
from pathlib import Path

from esper.evaluation.git_trees import commit_named, content_of


@dataclass(frozen=True)
class Commit:
    """A commit.

    Args:
        name: as the user wrote it, with the beginning of its hash.
        hash: its full name.
        tree: what git calls what it holds: two commits with the same are the same code.
    """

    name: str
    hash: str
    tree: str


def commit(repository: Path, revision: str) -> Commit:
    """What a revision means.

    Raises:
        ConfigError: if there is no such repository or commit.
    """
    found = commit_named(repository, revision)
    return Commit(f"{revision} ({found[:8]})", found, content_of(repository, found) or "")
