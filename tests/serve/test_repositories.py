"""The vault's models as repositories: commits, merging, git and LFS identities."""

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serve_hub import NEW, OLD, QUANTS, FolderShelf, fill, git_blob

from modelvault.artifact import Algorithm, Digest, FileSpec, Origin
from modelvault.serve.repositories import (
    LARGEST_PLAIN,
    FileViews,
    Models,
    at_revision,
    git_hash,
    is_lfs,
    lfs_pointer,
    repositories,
    repository_ids,
    snapshots,
    tree_hashes,
)

SHA = Digest.of_bytes(b"x")


def test_a_commit_that_is_not_gits(shelf: FolderShelf) -> None:
    """Breaks if clients, which know 40 hex digits, are given the SHA-256 of an Ollama manifest for a commit."""
    origin = Origin("ollama", "registry.ollama.ai/library/tiny", "d" * 64)
    stored = shelf.add("ollama:tiny:q8_0", origin, {"model.gguf": b"x"})
    assert repository_ids(stored) == ("ollama/tiny-q8_0",)
    (found,) = snapshots(Models(shelf).by_age(), "ollama/tiny-q8_0")
    assert found.commit == stored.manifest.hex[:40]


def test_newest_commit_is_main(shelf: FolderShelf) -> None:
    """A second pull at a later commit must not be hidden by the first."""
    fill(shelf)
    found = snapshots(Models(shelf).by_age(), "org/tiny")
    assert [snapshot.commit for snapshot in found] == [OLD, NEW]
    main, old = at_revision(found, "main"), at_revision(found, OLD)
    assert main is not None
    assert main.commit == NEW
    assert old is not None
    assert list(old.files) == ["README.md"]
    assert at_revision(found, NEW[:7]) is None
    assert at_revision([], "main") is None


def test_commit_is_as_new_as_its_newest_model(shelf: FolderShelf) -> None:
    """Another quantization pulled at an old commit makes that commit the one that was touched last."""
    fill(shelf)
    shelf.add("again", Origin("hub", "org/tiny", OLD), {"more.gguf": b"more"})
    found = snapshots(Models(shelf).by_age(), "org/tiny")
    assert [snapshot.commit for snapshot in found] == [NEW, OLD]
    assert list(found[-1].files) == ["README.md", "more.gguf"]
    assert found[-1].tags == ("gguf", "safetensors", "license:apache-2.0")


def test_models_answer_to_both_names(shelf: FolderShelf) -> None:
    """A catalog model is found by its short name and by the repository that it came from."""
    fill(shelf)
    ids = {stored.model.name.text: repository_ids(stored) for stored in shelf.stored}
    assert ids["tiny-q4"] == ("org/tiny-GGUF", "tiny-q4")
    assert ids["org/tiny-GGUF:Q8_0"] == ("org/tiny-GGUF",)
    assert ids["local"] == ("local",)
    assert repositories(shelf.stored) == ["local", "old-tiny", "org/tiny", "org/tiny-GGUF", "tiny-q4"]
    assert [snapshot.commit for snapshot in snapshots(Models(shelf).by_age(), "tiny-q4")] == [QUANTS]
    assert list(snapshots(Models(shelf).by_age(), "tiny-q4")[0].files) == ["README.md", "tiny-Q4_K_M.gguf"]


def test_other_sources_do_not_pose_as_hub_repositories(shelf: FolderShelf) -> None:
    """``library/llama3`` of an Ollama registry is not the Hub's repository of that name."""
    shelf.add("mine", Origin("ollama", "library/llama3"), {"a.gguf": b"a"})
    assert repositories(shelf.stored) == ["mine"]


def test_models_are_read_once_and_followed(shelf: FolderShelf) -> None:
    """Reading every manifest for every range would make a large download crawl; what changes must be seen all the same."""
    fill(shelf)
    models = Models(shelf)
    before = models.by_age()
    assert models.by_age() == before
    assert shelf.loads == len(shelf.stored) == 5
    gone = shelf.stored.pop(0)
    late = shelf.add("late", Origin("folder"), {"a.json": b"{}"})
    after = models.by_age()
    assert late in after
    assert gone not in after
    assert shelf.loads == 6


def test_damaged_model_does_not_hide_the_others(shelf: FolderShelf, caplog: pytest.LogCaptureFixture) -> None:
    """One lost manifest must not take the whole hub down; whoever runs it is told once, and a repair is noticed."""
    fill(shelf)
    manifest = shelf.blob_path(shelf.stored[0].manifest)
    data = manifest.read_bytes()
    manifest.unlink()
    models = Models(shelf)
    assert [stored.model.name.text for stored in models.by_age()] == [
        "org/tiny",
        "tiny-q4",
        "org/tiny-GGUF:Q8_0",
        "local",
    ]
    assert len(models.by_age()) == 4
    assert len(caplog.records) == 1
    assert "old-tiny is not served" in caplog.text
    manifest.write_bytes(data)
    assert len(models.by_age()) == 5


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (FileSpec("model.gguf", 10, SHA, git_blob(b"x")), False),
        (FileSpec("tokenizer.json", 10, SHA, SHA), True),
        (FileSpec("tokenizer.json", 10, SHA), False),
        (FileSpec("tokenizer.json", LARGEST_PLAIN, SHA), False),
        (FileSpec("tokenizer.json", LARGEST_PLAIN + 1, SHA), True),
        (FileSpec("model.gguf", 10, SHA), True),
    ],
)
def test_lfs_is_what_the_source_said(file: FileSpec, expected: bool) -> None:
    """A file shown as LFS has another name in the client's cache than one that is not."""
    assert is_lfs(file) is expected


def test_pointer_is_the_one_that_git_lfs_writes() -> None:
    """The hash of the pointer is the file's id on the Hub. This pointer is the example of the LFS specification."""
    digest = Digest.sha256("4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393")
    assert lfs_pointer(digest, 12345) == (
        b"version https://git-lfs.github.com/spec/v1\n"
        b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
    )


def test_missing_git_hashes_are_computed_once(shelf: FolderShelf) -> None:
    """A folder's files have no git hash; reading them again for every request would be slow."""
    stored = shelf.add("local", Origin("folder"), {"config.json": b"{}"})
    file = stored.model.files[0]
    views = FileViews(shelf)
    first = views.view(file)
    assert first.oid == git_blob(b"{}").hex
    assert first.etag == first.oid
    shelf.blob_path(file.digest).unlink()
    assert views.view(file) == first


PART = st.text("ab-.0", min_size=1, max_size=3).filter(lambda part: part not in {".", ".."})


@given(st.lists(st.lists(PART, min_size=1, max_size=3).map("/".join), min_size=1, max_size=6, unique=True))
def test_hash_of_a_tree_depends_on_names_and_contents_only(paths: list[str]) -> None:
    """Two servers over the same files must show the same directory."""
    whole = [path for path in paths if not any(other.startswith(f"{path}/") for other in paths)]
    files = {path: git_blob(path.encode()).hex for path in whole}
    assert tree_hashes(files) == tree_hashes(dict(reversed(files.items())))
    changed = files | {whole[0]: git_blob(b"changed").hex}
    assert tree_hashes(files)[""] != tree_hashes(changed)[""]


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_hashes_agree_with_git(tmp_path: Path) -> None:
    """They are git's own, so that a checkout of the real repository shows the same ids."""
    files = {"a.txt": b"a", "a/b": b"b", "a-b": b"", "a0": b"0", "z/y/x": b"deep"}
    del files["a.txt"]
    files["a.b"] = b"dot"
    for path, data in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(data)

    def git(*arguments: str) -> str:
        environment = {"PATH": "/usr/bin:/bin:/usr/local/bin", "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"}
        done = subprocess.run(
            ["git", *arguments], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    git("init", "--quiet")
    git("add", "--all")
    hashes = tree_hashes({path: git_blob(data).hex for path, data in files.items()})
    root = git("write-tree")
    assert hashes == {"": root} | {folder: git("rev-parse", f"{root}:{folder}") for folder in ("a", "z", "z/y")}
    assert git_hash("blob", b"deep").hex() == git("hash-object", "z/y/x")
    assert Digest(Algorithm.GIT_SHA1, git_hash("blob", b"").hex()) == git_blob(b"")
