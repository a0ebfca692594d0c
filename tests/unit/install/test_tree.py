# SPDX-License-Identifier: Apache-2.0
"""Nothing outside of the root is touched, whatever lies inside it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hauberk.install.errors import InstallError, MachineError
from hauberk.install.tree import Kind, Tree

from .conftest import snapshot

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Put = Callable[..., Path]


def test_a_file_is_written_with_content_and_mode(tree: Tree, image: Path) -> None:
    tree.write("/file", b"content", 0o640)
    assert (image / "file").read_bytes() == b"content"
    assert (image / "file").stat().st_mode & 0o7777 == 0o640
    assert [path.name for path in image.iterdir()] == ["file"]


def test_a_link_to_a_directory_is_followed_within_the_root(tree: Tree, image: Path) -> None:
    (image / "usr" / "lib").mkdir(parents=True)
    (image / "lib").symlink_to("usr/lib")
    (image / "absolute").symlink_to("/usr/lib")
    (image / "usr" / "up").symlink_to("../../../../../lib")
    for name in ("lib", "absolute", "usr/up"):
        tree.write(f"/{name}/file", name.encode(), 0o644)
        assert (image / "usr" / "lib" / "file").read_text() == name


def test_a_link_out_of_the_root_leads_into_it(tree: Tree, image: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (image / "etc").symlink_to(outside)
    with pytest.raises(FileNotFoundError):
        tree.write("/etc/file", b"", 0o644)
    inside = image / str(outside).removeprefix("/")
    inside.mkdir(parents=True)
    tree.write("/etc/file", b"inside", 0o644)
    assert list(outside.iterdir()) == []
    assert (inside / "file").read_bytes() == b"inside"


@pytest.mark.parametrize("target", [".", "self", "/self", "../self", "other/self"])
def test_links_in_a_circle_are_refused(tree: Tree, image: Path, target: str) -> None:
    (image / "other").symlink_to("/self")
    (image / "self").symlink_to(target)
    if target == ".":
        tree.write("/self/file", b"", 0o644)
        return
    with pytest.raises(InstallError, match="circle"):
        tree.write("/self/file", b"", 0o644)


def test_the_last_component_is_never_followed(tree: Tree, image: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("precious")
    (image / "file").symlink_to(tmp_path / "outside")
    (image / "dangling").symlink_to("nowhere")
    assert tree.entry("/file").kind is Kind.LINK
    tree.write("/file", b"ours", 0o644)
    assert (tmp_path / "outside").read_text() == "precious"
    assert not (image / "file").is_symlink()
    tree.remove("/dangling")
    assert not (image / "dangling").is_symlink()


def test_reading_follows_links_within_the_root(tree: Tree, image: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (image / "real").write_text("real")
    (image / "etc").mkdir()
    (image / "etc" / "file").symlink_to("../../../real")
    (image / "out").symlink_to(tmp_path / "secret")
    (image / "loop").symlink_to("loop")
    assert tree.read("/etc/file") == b"real"
    assert tree.read("/out") is None
    assert tree.read("/none") is None
    with pytest.raises(InstallError, match="symbolic links"):
        tree.read("/loop")
    with pytest.raises(InstallError, match="expected a regular file"):
        tree.read("/etc")


def test_what_is_too_large_is_not_read(tree: Tree, image: Path) -> None:
    (image / "file").write_bytes(b"x" * 100)
    with pytest.raises(InstallError, match="at most 99"):
        tree.read("/file", 99)
    with (image / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InstallError, match="larger than"):
        tree.entry("/sparse")


def test_a_fifo_does_not_block(tree: Tree, image: Path) -> None:
    os.mkfifo(image / "fifo")
    assert tree.entry("/fifo").kind is Kind.OTHER
    with pytest.raises(InstallError, match="special file"):
        tree.read("/fifo")


def test_a_directory_that_everybody_may_write_is_refused(tree: Tree, image: Path) -> None:
    (image / "etc").mkdir()
    (image / "etc").chmod(0o777)
    with pytest.raises(InstallError, match="others could exchange"):
        tree.write("/etc/file", b"", 0o644)
    (image / "etc").chmod(0o1777)
    tree.write("/etc/file", b"", 0o644)


def test_a_file_in_a_directorys_place_is_told(tree: Tree, put: Put) -> None:
    put("/etc/hauberk")
    with pytest.raises(InstallError, match="'hauberk' on the way is no directory"):
        tree.entry("/etc/hauberk/agent.yaml")


@pytest.mark.parametrize("path", ["", "relative", "/", "/a/../b", "/a//b", "/a/./b", "/a/", "/a\0b"])
def test_paths_that_are_not_plain_are_refused(tree: Tree, path: str) -> None:
    with pytest.raises(InstallError, match="expected an absolute path"):
        tree.entry(path)


def test_a_root_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="cannot be opened"):
        Tree(tmp_path / "none")


def test_a_program_is_found_through_links(tree: Tree, put: Put, image: Path) -> None:
    put("/usr/bin/python3.11", "", 0o755)
    put("/usr/bin/data", "", 0o644)
    (image / "usr" / "bin" / "python3").symlink_to("python3.11")
    (image / "usr" / "bin" / "broken").symlink_to("gone")
    assert tree.program("/usr/bin/none", "/usr/bin/data", "/usr/bin/broken", "/usr/bin/python3") == "/usr/bin/python3"
    assert tree.program("/usr/bin/none") is None


def test_a_failed_write_leaves_the_old_file_and_no_draft(
    tree: Tree, put: Put, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put("/file", "old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(MachineError, match="No space left"):
        tree.write("/file", b"new", 0o644)
    assert {path.name: path.read_text() for path in image.iterdir()} == {"file": "old"}


def test_a_lock_keeps_a_second_installation_out(tree: Tree, image: Path) -> None:
    import fcntl  # noqa: PLC0415 - used here alone

    operation = fcntl.LOCK_EX | fcntl.LOCK_NB
    refused = pytest.raises(MachineError, match="another installation")
    with tree.locked(operation), Tree(image) as other, refused, other.locked(operation):
        pass
    with tree.locked(operation):
        pass


NAMES = st.sampled_from(["a", "b", "c"])
TARGETS = st.lists(st.sampled_from(["a", "b", "c", "..", ".", "outside"]), min_size=1, max_size=5).map("/".join)


@given(
    links=st.dictionaries(
        st.lists(NAMES, min_size=1, max_size=2).map("/".join), TARGETS | TARGETS.map(lambda t: "/" + t), max_size=6
    ),
    directories=st.lists(st.lists(NAMES, min_size=1, max_size=3).map("/".join), max_size=4),
    path=st.lists(NAMES, min_size=1, max_size=4).map("/".join),
)
@settings(max_examples=300, deadline=None)
def test_no_arrangement_of_links_leads_out(
    tmp_path_factory: pytest.TempPathFactory, links: dict[str, str], directories: list[str], path: str
) -> None:
    base = tmp_path_factory.mktemp("links")
    (base / "outside").mkdir()
    image = base / "image"
    image.mkdir()
    for directory in directories:
        (image / directory).mkdir(parents=True, exist_ok=True)
    for name, target in links.items():
        place = image / name
        if place.parent.is_dir() and not place.parent.is_symlink() and not place.exists() and not place.is_symlink():
            place.symlink_to(target)
    before = {name: entry for name, entry in snapshot(base).items() if not name.startswith("image")}
    with Tree(image) as tree:
        try:
            tree.write(f"/{path}", b"ours", 0o644)
            written = True
        except (InstallError, FileNotFoundError):
            written = False
    # not read through its path: what was written may have taken the place of a link on the way
    assert [content for _, content in snapshot(image).values() if content == b"ours"] == [b"ours"] * written
    assert {name: entry for name, entry in snapshot(base).items() if not name.startswith("image")} == before
