# SPDX-License-Identifier: Apache-2.0
"""A directory that stands for an image, and ways to look at all of it."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from hauberk.install.tree import Tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Snapshot = dict[str, tuple[int, bytes | str]]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.mkdir()
    return path


@pytest.fixture
def tree(image: Path) -> Iterator[Tree]:
    with Tree(image) as opened:
        yield opened


@pytest.fixture
def put(image: Path) -> Callable[..., Path]:
    """Put a file into the image."""

    def put_file(path: str, content: str | bytes = "", mode: int = 0o644) -> Path:
        place = image / path.removeprefix("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content.encode() if isinstance(content, str) else content)
        place.chmod(mode)
        return place

    return put_file


def snapshot(root: Path) -> Snapshot:
    """Give everything below a directory: type and mode, and content or target."""
    found: Snapshot = {}
    for directory, directories, files in os.walk(root):
        for name in (*directories, *files):
            path = os.path.join(directory, name)  # noqa: PTH118 - os.walk's own strings
            status = os.lstat(path)
            content: bytes | str = ""
            if stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:  # noqa: PTH123 - as above
                    content = file.read()
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)  # noqa: PTH115 - as above
            found[os.path.relpath(path, root)] = (status.st_mode, content)
    return found
