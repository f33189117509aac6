"""The two sides of a comparison: the sources of a base commit, and those of the working tree."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from esper.contracts.errors import ConfigError
from esper.evaluation.baseline.performance import PerformanceBaseline
from esper.evaluation.git_trees import checked_out, commit_named, content_of, is_clean, repository_of

SOURCE_FOLDER = "src"


@dataclass(frozen=True, slots=True)
class Sides:
    """What is compared.

    Args:
        repository: root of the working tree, which is the change.
        base: full hash of the commit that it is compared with.
        head: of the commit that the working tree began from.
        is_clean: whether the sources in the working tree are those of ``head``.
    """

    repository: Path
    base: str
    head: str
    is_clean: bool

    @property
    def base_name(self) -> str:
        """For people."""
        return f"base {self.base[:12]}"

    @property
    def change_name(self) -> str:
        """For people."""
        return f"{self.head[:12]}" if self.is_clean else f"working tree on {self.head[:12]}"

    @contextmanager
    def sources(self) -> Iterator[tuple[Path, Path]]:
        """Folders that hold the package of the base and of the change, as long as the context lasts."""
        with checked_out(self.repository, self.base) as folder:
            yield folder / SOURCE_FOLDER, self.repository / SOURCE_FOLDER


def sides(folder: Path, base: str, *, null: bool = False) -> Sides:
    """The working tree that a folder lies in, and its base.

    Args:
        folder: anywhere in a clone of Esper.
        base: name of a commit, or path of a baseline, which stands for the commit that it was recorded at.
        null: whether both are meant to be the same, to see what the machine alone makes of it.

    Raises:
        ConfigError: if there is no such commit, a side holds no Esper, no commit holds what the baseline was recorded
            of, or both sides are the same and ``null`` does not say so.
    """
    repository = repository_of(folder)
    commit = commit_named(repository, _recorded_at(Path(base)) if base.endswith(".json") else base)
    head = commit_named(repository, "HEAD")
    package = f"{SOURCE_FOLDER}/esper"
    if not (repository / package / "__init__.py").is_file():
        raise ConfigError(f"{repository} is no clone of Esper: there is no {package} in it. Go into one and try again.")
    if content_of(repository, commit, package) is None:
        raise ConfigError(f"Commit {commit[:12]} holds no {package}, so there is nothing to measure. Name a later one.")
    clean = is_clean(repository, repository / SOURCE_FOLDER)
    base_content, content = (content_of(repository, one, SOURCE_FOLDER) for one in (commit, head))
    same = clean and base_content == content
    if same and not null:
        raise ConfigError(
            f"The working tree is the same as {base}: {SOURCE_FOLDER} has not changed. Name another commit, or add "
            "--null to see what the machine alone makes of two sides that are the same."
        )
    if null and not same:
        raise ConfigError(f"--null compares two sides that are the same, but {SOURCE_FOLDER} differs from {base}.")
    return Sides(repository, commit, head, clean)


def _recorded_at(path: Path) -> str:
    baseline = PerformanceBaseline.read(path)
    if baseline.commit is None:
        raise ConfigError(f"{path} was recorded outside of a git repository: no commit holds what it measured.")
    if not baseline.is_clean:
        raise ConfigError(
            f"{path} was recorded with changes that no commit holds, on top of {baseline.commit[:12]}. Commit first, "
            "then record; or name a commit."
        )
    return baseline.commit
