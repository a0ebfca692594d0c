# SPDX-License-Identifier: Apache-2.0
"""The small file system that generated policies and questions are about.

The same tree stands in the container's overlay (``/srv/t``) and on a volume (``/vol/t``), because path rules meet both.
Modes are wide open: what is refused must be refused by policy. Contents matter in one way only: a file of plain text
can be executed as far as the policy's word and no further (ENOEXEC), so every file is worth an exec question.

Questions leave traces where the policy forbids the prober to undo them, so the tree is put right before each use.
"""

from __future__ import annotations

import os
import shutil
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from hauberk.policy.globs import to_bytes

if TYPE_CHECKING:
    from pathlib import Path

USER: Final = 1000
TREES: Final = (b"/srv/t", b"/vol/t")
VOLUME: Final = "/vol"
SOURCES: Final = ("/usr/bin/prober", "/opt/sources/prober-a", "/opt/sources/prober-b")
SHELL: Final = b"/usr/bin/dash"
TEXT: Final = b"data\n"
SCRIPT: Final = b"#!/bin/sh\n"

Kind = Literal["directory", "file", "link", "program", "script"]


@dataclass(frozen=True, slots=True)
class Entry:
    """What stands at a path. ``target`` is set for links."""

    kind: Kind
    owner: int = 0
    target: bytes = b""


_TREE: Final[dict[bytes, Entry]] = {
    **dict.fromkeys(
        (
            b"", b"/app", b"/app/prod", b"/app/conf", b"/app/data", b"/app/data/deep", b"/app/data/deep/er",
            b"/app/empty", b"/app/prod2", b"/pub", b"/pub/lib",
        ),
        Entry("directory"),
    ),
    **dict.fromkeys((b"/own", b"/own/hollow", b"/own/sub"), Entry("directory", USER)),
    **dict.fromkeys(
        (
            b"/app/prod/key", b"/app/prod/key.bak", b"/app/prod/.hidden", b"/app/prod2/key", b"/app/conf/a.conf",
            b"/app/conf/b.conf", b"/app/data/one", b"/app/data/deep/two", b"/app/data/deep/er/file",
            b"/pub/read me.txt", "/pub/naïve-ü.txt".encode(), b"/pub/odd\xff\xfename", b"/pub/\xc3", b"/pub/star*name",
            b"/pub/what?", b"/pub/brace{x,y}", b"/pub/[abc]", b"/pub/back\\slash", b"/pub/tab\there", b"/pub/new\nline",
            b"/pub/x1", b"/pub/x2", b"/pub/xa", b"/pub/xab", b"/pub/x", b"/pub/lib/plug.so", b"/pub/lib/plug.so.1",
            b"/pub/" + b"n" * 200, b"/own/root-file",
        ),
        Entry("file"),
    ),
    **dict.fromkeys((b"/own/u1", b"/own/u2", b"/own/sub/u3", b"/app/data/mine", b"/pub/xu"), Entry("file", USER)),
    b"/pub/script": Entry("script"),
    b"/link": Entry("link", target=b"app/prod"),
    b"/pub/key-link": Entry("link", target=b"../app/prod/key"),
    b"/own/up": Entry("link", USER, target=b"../app/data"),
    b"/pub/loop/": Entry("directory"),
    b"/pub/loop/back": Entry("link", target=b"../../pub"),
}  # fmt: skip

ENTRIES: Final[dict[bytes, Entry]] = {
    **dict.fromkeys(
        (
            b"/usr", b"/usr/bin", b"/usr/lib", b"/usr/lib/x86_64", b"/usr/lib64", b"/usr/local", b"/usr/local/lib",
            b"/opt", b"/opt/sources", b"/etc", b"/srv", b"/vol",
        ),
        Entry("directory"),
    ),
    **{link: Entry("link", target=b"usr" + link) for link in (b"/bin", b"/lib", b"/lib64")},
    b"/usr/bin/sh": Entry("link", target=b"dash"),
    b"/opt/alias": Entry("link", target=b"/opt/sources/prober-a"),
    b"/srv/abs": Entry("link", target=b"/vol/t/app/conf"),
    **{to_bytes(source): Entry("program") for source in SOURCES},
    SHELL: Entry("program"),
    b"/usr/bin/tool": Entry("script"),
    **dict.fromkeys(
        (b"/usr/bin/data", b"/usr/lib/libone.so", b"/usr/lib/x86_64/libtwo.so.6", b"/usr/lib/plain",
         b"/usr/local/lib/three.so", b"/etc/hosts"),
        Entry("file"),
    ),
    b"/usr/lib/x86_64/mine.so": Entry("file", USER),
    **{tree + path.rstrip(b"/"): entry for tree in TREES for path, entry in _TREE.items()},
}  # fmt: skip
"""Everything in the container that questions may be about, by its path without links."""

_MODES: Final = {"directory": 0o777, "file": 0o777, "program": 0o755, "script": 0o777}


def repair(root: bytes, *, program: Path | None = None) -> None:
    """Put the tree below ``root`` right: what is missing is made, what should not be there removed.

    ``program`` (the prober) is only needed to build it first, in an empty directory.
    """
    for path, entry in ENTRIES.items():
        _put(root + path, entry, program)
    for tree in (*TREES, b"/usr", b"/opt"):
        for directory, directories, files in os.walk(root + tree):
            for name in (*directories, *files):
                path = os.path.join(directory, name)  # noqa: PTH118 - names that are no text
                if path[len(root) :] not in ENTRIES:
                    _remove(path)
                    if name in directories:
                        directories.remove(name)


def _put(place: bytes, entry: Entry, program: Path | None) -> None:
    try:
        found: os.stat_result | None = os.lstat(place)
    except FileNotFoundError:
        found = None
    if found is not None and not _is(found, entry, place):
        _remove(place)
        found = None
    if found is None:
        _make(place, entry, program)
        found = os.lstat(place)
    if (found.st_uid, found.st_gid) != (entry.owner, entry.owner):
        os.lchown(place, entry.owner, entry.owner)
    if entry.kind != "link" and stat.S_IMODE(found.st_mode) != _MODES[entry.kind]:
        os.chmod(place, _MODES[entry.kind])  # noqa: PTH101 - names that are no text
    content = {"file": TEXT, "script": SCRIPT}.get(entry.kind)
    if content is not None and found.st_size != len(content):
        _write(place, content)


def _is(found: os.stat_result, entry: Entry, place: bytes) -> bool:
    if entry.kind == "directory":
        return stat.S_ISDIR(found.st_mode)
    if entry.kind == "link":
        return stat.S_ISLNK(found.st_mode) and os.readlink(place) == entry.target  # noqa: PTH115 - as above
    return stat.S_ISREG(found.st_mode) and found.st_nlink == 1


def _make(place: bytes, entry: Entry, program: Path | None) -> None:
    if entry.kind == "directory":
        os.mkdir(place)  # noqa: PTH102 - as above
    elif entry.kind == "link":
        os.symlink(entry.target, place)  # noqa: PTH211 - as above
    elif entry.kind == "program":
        if program is None:
            message = f"{place!r} is missing, which no question may remove"
            raise AssertionError(message)
        shutil.copyfile(program, place)
    else:
        _write(place, SCRIPT if entry.kind == "script" else TEXT)


def _write(place: bytes, content: bytes) -> None:
    with open(place, "wb") as stream:  # noqa: PTH123 - as above
        stream.write(content)


def _remove(place: bytes) -> None:
    if stat.S_ISDIR(os.lstat(place).st_mode):
        shutil.rmtree(place)
    else:
        os.unlink(place)  # noqa: PTH108 - as above
