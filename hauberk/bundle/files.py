# SPDX-License-Identifier: Apache-2.0
"""Reading with a bound, writing whole or not at all.

A reader of an output file sees the old content or the new, never half of it, also after a power cut. A private key is
created where nothing is, readable by its owner alone from the first moment on, and removed again if it could not be
written whole.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path


def read_bounded(path: str | Path, maximum_bytes: int) -> bytes:
    """Read at most one byte more than ``maximum_bytes``, so that the caller can refuse what is too long.

    Raises ``OSError``.
    """
    with Path(path).open("rb") as file:
        return file.read(maximum_bytes + 1)


def write_atomically(path: str | Path, data: bytes, mode: int = 0o644) -> None:
    """Replace a file's content in one step: temporary file beside it, fsync, rename, fsync of the directory.

    The file's mode is ``mode`` less the umask. A symbolic link is followed. Raises ``OSError``, among others if
    something else than a regular file is there.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise FileExistsError(None, "is not a regular file and will not be replaced", str(path))
    try:
        _replace(target, data, mode)
    except OSError as error:
        error.filename, error.filename2 = str(path), None  # the temporary file's name says nothing to anybody
        raise


def create_exclusively(path: str | Path, data: bytes, mode: int) -> None:
    """Create a file that must not exist yet, with exactly this mode. Raises ``OSError`` (``FileExistsError``)."""
    target = Path(path)
    _create(target, data, mode)
    target.chmod(mode)  # whatever the umask took away; it never added anything
    _sync_directory(target.parent)


def is_private(path: str | Path) -> bool:
    """Whether nobody but a file's owner may read or write it, as far as its mode tells. Raises ``OSError``."""
    status = Path(path).stat()
    return not stat.S_ISREG(status.st_mode) or not status.st_mode & (stat.S_IRWXG | stat.S_IRWXO)


def is_same(path: str | Path, other: str | Path) -> bool:
    """Whether both names are there and lead to one file."""
    first, second = Path(path), Path(other)
    return first.exists() and second.exists() and first.samefile(second)


def _replace(target: Path, data: bytes, mode: int) -> None:
    temporary = target.with_name(f".{target.name[:200]}.{secrets.token_hex(8)}")
    try:
        _create(temporary, data, mode)
        temporary.rename(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(target.parent)


def _create(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
