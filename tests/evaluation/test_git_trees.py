"""Commits beside a working tree."""

import subprocess
from pathlib import Path

import pytest

from esper.contracts.errors import ConfigError
from esper.evaluation.git_trees import checked_out, commit_named, content_of, is_clean, repository_of


def git(folder: Path, *words: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *words], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    root.mkdir()
    git(root, "init", "--quiet")
    for text in ("first", "second"):
        (root / "file").write_text(text)
        git(root, "add", "file")
        git(root, "commit", "--quiet", "-m", text)
    return root


def test_a_commit_is_there_while_the_context_lasts_and_nothing_of_it_is_left(repository):
    with checked_out(repository, commit_named(repository, "HEAD~1")) as folder:
        assert (folder / "file").read_text() == "first"
        assert (repository / "file").read_text() == "second"
    assert not folder.exists()
    assert len(git(repository, "worktree", "list").splitlines()) == 1
    assert is_clean(repository, repository)


def test_a_hook_of_the_repository_does_not_run(repository):
    hook = repository / ".git" / "hooks" / "post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    with checked_out(repository, commit_named(repository, "HEAD")) as folder:
        assert (folder / "file").exists()


def test_changed_and_new_files_make_it_unclean(repository):
    assert is_clean(repository, repository)
    (repository / "new").touch()
    assert not is_clean(repository, repository)


@pytest.mark.parametrize("name", ["nonsense", "", "--all", "HEAD:file"])
def test_what_is_no_commit_is_refused(repository, name):
    with pytest.raises(ConfigError, match="There is no commit"):
        commit_named(repository, name)


def test_a_folder_outside_of_any_repository_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no git repository"):
        repository_of(tmp_path)


def test_a_commit_of_no_repository_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is no git repository"):
        commit_named(tmp_path, "HEAD")


def test_content_is_the_same_where_all_files_are(repository):
    git(repository, "commit", "--quiet", "--allow-empty", "-m", "nothing new")
    contents = [content_of(repository, name) for name in ("HEAD", "HEAD~1", "HEAD~2")]
    assert contents[0] == contents[1] != contents[2]
    assert content_of(repository, "HEAD", "no/folder") is None
