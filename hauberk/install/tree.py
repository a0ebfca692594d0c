# SPDX-License-Identifier: Apache-2.0
"""The files below a root directory, and nothing outside of it.

An image's tree is somebody else's work: a symbolic link in it may point to ``/etc`` and mean the image's, or be there
to catch an installer that runs as root. Paths are therefore walked one component at a time from the root's own
descriptor, without ever letting the kernel follow a link; where a link leads is worked out here, as ``chroot`` would.
Every operation then works on an open directory and one name, so that a directory exchanged meanwhile does not matter.

A directory that others may write is refused: whoever owns a name in the way owns what is put there.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final, Self

from hauberk.install.errors import InstallError, MachineError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAXIMUM_BYTES: Final = 8 << 20
_MAXIMUM_LINKS: Final = 40
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Kind(Enum):
    """What a name stands for."""

    MISSING = "nothing"
    FILE = "a regular file"
    DIRECTORY = "a directory"
    LINK = "a symbolic link"
    OTHER = "a special file"


@dataclass(frozen=True, slots=True)
class Entry:
    """What lies at a path; the last component is not followed. ``content`` of files, ``target`` of links."""

    kind: Kind
    mode: int = 0  # permission bits
    uid: int = 0
    gid: int = 0
    content: bytes = b""
    target: str = ""

    @property
    def sha256(self) -> str:
        """Hexadecimal digest of a file's content."""
        return digest(self.content)


MISSING: Final = Entry(Kind.MISSING)


def digest(content: bytes) -> str:
    """Give the SHA-256 of a content, hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def parts_of(path: str) -> tuple[str, ...]:
    """Split an absolute path into its components. Raises InstallError for one that is not plain."""
    parts = path.split("/")
    if not path.startswith("/") or "\0" in path or any(part in ("", ".", "..") for part in parts[1:]):
        message = f"path {path!r}: expected an absolute path without empty, '.' and '..' components"
        raise InstallError(message)
    return tuple(parts[1:])


class Tree:
    """Files below ``root``. Raises MachineError if that is no directory or cannot be opened."""

    def __init__(self, root: Path) -> None:
        """Open the root; ``close`` lets it go."""
        self.root = root
        try:
            self._descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            message = (
                f"--root {root} cannot be opened ({error.strerror}); name a directory that holds a machine's files"
            )
            raise MachineError(message) from error

    def close(self) -> None:
        """Let the root go."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let the root go."""
        self.close()

    @property
    def is_machine(self) -> bool:
        """Whether this is the running machine's own root."""
        return os.path.samestat(os.fstat(self._descriptor), os.stat("/"))  # noqa: PTH116 - beside fstat

    @property
    def owner(self) -> int:
        """The uid that everything put here belongs to: root, or who makes an image without being root."""
        return os.geteuid()

    @contextmanager
    def locked(self, operation: int) -> Iterator[None]:
        """Hold a lock (flock(2)) on the root. Raises MachineError if another process holds it."""
        descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._descriptor)
        try:
            fcntl.flock(descriptor, operation)
            yield
        except BlockingIOError as error:
            message = f"another installation works on {self.root}; wait for its end"
            raise MachineError(message) from error
        finally:
            os.close(descriptor)

    # ---- looking -------------------------------------------------------------------------------------------------

    def entry(self, path: str) -> Entry:
        """Tell what lies at a path. Raises InstallError for a way that is refused, or a file above 8 MiB."""
        with suppress(FileNotFoundError), self._parent(path) as (directory, name):
            return self._entry(directory, name, path)
        return MISSING

    def read(self, path: str, maximum: int = MAXIMUM_BYTES) -> bytes | None:
        """Read a file, following links within the root; None if there is none.

        Raises InstallError for what is no regular file, or larger than ``maximum`` bytes.
        """
        resolved = self.resolve(path)
        if resolved is None:
            return None
        path, _ = resolved
        with self._opened(tuple(path.split("/")[:-1])) as directory:
            found = self._entry(directory, path.rpartition("/")[2], path)
        if found.kind is not Kind.FILE:
            message = f"{self.shown(path)} is {found.kind.value}, expected a regular file"
            raise InstallError(message)
        if len(found.content) > maximum:
            message = f"{self.shown(path)} has {len(found.content)} bytes, expected at most {maximum}"
            raise InstallError(message)
        return found.content

    def resolve(self, path: str) -> tuple[str, Kind] | None:
        """Give where a path leads, links within the root followed, and what is there; None if nothing is.

        Raises InstallError for links that do not end.
        """
        place = path
        for _ in range(_MAXIMUM_LINKS):
            found = self._look(place)
            if found is None:
                return None
            kind, target = found
            if kind is not Kind.LINK:
                return place, kind
            place = _joined(place, target)
        message = f"{self.shown(path)}: more than {_MAXIMUM_LINKS} symbolic links in a row; expected a file"
        raise InstallError(message)

    def names(self, path: str) -> list[str]:
        """List a directory in alphabetical order; empty if there is none."""
        try:
            with self._opened(parts_of(path)) as directory:
                return sorted(os.listdir(directory))  # noqa: PTH208 - of an open directory
        except FileNotFoundError:
            return []

    def is_directory(self, path: str) -> bool:
        """Whether a path leads to a directory, links followed within the root."""
        try:
            with self._opened(parts_of(path)):
                return True
        except FileNotFoundError:
            return False

    def is_a_directory(self, path: str) -> bool:
        """Whether a directory itself, no link to one, lies at a path."""
        return self.entry(path).kind is Kind.DIRECTORY

    def program(self, *paths: str) -> str | None:
        """Give the first of some paths at which an executable file lies, links within the root followed."""
        for path in paths:
            found = self.resolve(path)
            if found is not None and found[1] is Kind.FILE and self._is_executable(found[0]):
                return path
        return None

    def shown(self, path: str) -> str:
        """Give a path as the person who runs the command can open it."""
        return path if self.is_machine else str(self.root).rstrip("/") + path

    # ---- changing ------------------------------------------------------------------------------------------------

    def make_directory(self, path: str, mode: int) -> None:
        """Make one directory; its parent must exist."""
        with self._parent(path) as (directory, name), self._telling(path):
            os.mkdir(name, 0o700, dir_fd=directory)
            made = os.open(name, _DIRECTORY, dir_fd=directory)
            try:
                self._own(made)
                os.fchmod(made, mode)
            finally:
                os.close(made)

    def write(self, path: str, content: bytes, mode: int, owner: tuple[int, int] | None = None) -> None:
        """Put a file there whole, replacing a regular file: at no moment is it missing or half written.

        ``owner``: uid and gid, by default root's (or those of who makes the image).
        """
        with self._parent(path) as (directory, name), self._telling(path):
            draft = f".{name[:200]}.{os.getpid()}.hauberk-new"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with suppress(FileNotFoundError):
                os.unlink(draft, dir_fd=directory)
            descriptor = os.open(draft, flags, 0o600, dir_fd=directory)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(content)
                    file.flush()
                    self._own(file.fileno(), owner)
                    os.fchmod(file.fileno(), mode)
                    os.fsync(file.fileno())
                os.rename(draft, name, src_dir_fd=directory, dst_dir_fd=directory)
            except BaseException:
                with suppress(FileNotFoundError):
                    os.unlink(draft, dir_fd=directory)
                raise
            os.fsync(directory)

    def link(self, path: str, target: str) -> None:
        """Make a symbolic link where nothing is."""
        with self._parent(path) as (directory, name), self._telling(path):
            os.symlink(target, name, dir_fd=directory)

    def rename(self, path: str, new: str) -> None:
        """Rename within one directory, replacing a regular file."""
        with self._parent(path) as (directory, name), self._telling(path):
            os.rename(name, parts_of(new)[-1], src_dir_fd=directory, dst_dir_fd=directory)

    def set_mode(self, path: str, mode: int) -> None:
        """Correct owner and permission bits of a regular file."""
        with self._parent(path) as (directory, name), self._telling(path):
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
            try:
                self._own(descriptor)
                os.fchmod(descriptor, mode)
            finally:
                os.close(descriptor)

    def remove(self, path: str) -> None:
        """Remove a file or a link."""
        with self._parent(path) as (directory, name), self._telling(path):
            os.unlink(name, dir_fd=directory)

    def remove_directory(self, path: str) -> bool:
        """Remove a directory that is empty; False if it is not, or is not there."""
        try:
            with self._parent(path) as (directory, name):
                os.rmdir(name, dir_fd=directory)
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY, errno.ENOTDIR):
                return False
            raise
        return True

    # ---- walking -------------------------------------------------------------------------------------------------

    @contextmanager
    def _parent(self, path: str) -> Iterator[tuple[int, str]]:
        parts = parts_of(path)
        with self._opened(parts[:-1]) as directory:
            yield directory, parts[-1]

    @contextmanager
    def _opened(self, parts: tuple[str, ...]) -> Iterator[int]:
        """Open the directory that a path leads to, links followed within the root. Raises FileNotFoundError."""
        stack = [os.dup(self._descriptor)]
        pending = list(reversed(parts))
        links = 0
        try:
            while pending:
                name = pending.pop()
                if name in ("", "."):
                    continue
                if name == "..":  # above the root is the root, as for a process confined there
                    if len(stack) > 1:
                        os.close(stack.pop())
                    continue
                target = self._enter(stack, name, parts)
                if target is None:
                    continue
                links += 1
                if links > _MAXIMUM_LINKS:
                    message = (
                        f"{self.shown('/' + '/'.join(parts))}: its symbolic links go round in a circle; remove them"
                    )
                    raise InstallError(message)
                if target.startswith("/"):
                    while len(stack) > 1:
                        os.close(stack.pop())
                pending.extend(reversed(target.split("/")))
            yield stack[-1]
        finally:
            for descriptor in stack:
                os.close(descriptor)

    def _enter(self, stack: list[int], name: str, parts: tuple[str, ...]) -> str | None:
        """Go one directory down; or give the target of the link that lies there instead."""
        shown = f"{self.shown('/' + '/'.join(parts))}: {name!r} on the way"
        try:
            descriptor = os.open(name, _DIRECTORY, dir_fd=stack[-1])
        except NotADirectoryError:
            try:
                return os.readlink(name, dir_fd=stack[-1])
            except OSError as error:
                message = f"{shown} is no directory; move it away"
                raise InstallError(message) from error
        except PermissionError as error:
            message = f"{shown} cannot be entered; run as root"
            raise MachineError(message) from error
        stack.append(descriptor)
        found = os.fstat(descriptor)
        others = found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX
        if others or found.st_uid not in (0, self.owner):
            message = (
                f"{shown} belongs to uid {found.st_uid} and has mode {found.st_mode & 0o7777:04o}: others could"
                " exchange what is put there; it must be root's and not writable by everybody"
            )
            raise InstallError(message)
        return None

    def _look(self, path: str) -> tuple[Kind, str] | None:
        """Tell kind and link target without reading a content."""
        with suppress(FileNotFoundError), self._opened(tuple(path.split("/")[:-1])) as directory:
            name = path.rpartition("/")[2]
            if name in ("", ".", ".."):
                return Kind.DIRECTORY, ""
            kind = _kind(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)
            return kind, os.readlink(name, dir_fd=directory) if kind is Kind.LINK else ""
        return None

    def _is_executable(self, path: str) -> bool:
        with self._opened(tuple(path.split("/")[:-1])) as directory:
            found = os.stat(path.rpartition("/")[2], dir_fd=directory, follow_symlinks=False)
        return bool(found.st_mode & 0o111)

    def _entry(self, directory: int, name: str, path: str) -> Entry:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        kind = _kind(found.st_mode)
        mode, uid, gid = found.st_mode & 0o7777, found.st_uid, found.st_gid
        if kind is Kind.LINK:
            return Entry(kind, mode, uid, gid, target=os.readlink(name, dir_fd=directory))
        if kind is not Kind.FILE:
            return Entry(kind, mode, uid, gid)
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        except PermissionError as error:
            message = f"{self.shown(path)} cannot be read; run as root"
            raise MachineError(message) from error
        with os.fdopen(descriptor, "rb") as file:
            content = file.read(MAXIMUM_BYTES + 1)
        if len(content) > MAXIMUM_BYTES:
            message = f"{self.shown(path)} is larger than {MAXIMUM_BYTES} bytes, expected a configuration or a program"
            raise InstallError(message)
        return Entry(kind, mode, uid, gid, content)

    def _own(self, descriptor: int, owner: tuple[int, int] | None = None) -> None:
        if self.owner == 0:
            os.fchown(descriptor, *(owner or (0, 0)))

    @contextmanager
    def _telling(self, path: str) -> Iterator[None]:
        """Turn an error of the system into one that names the file."""
        try:
            yield
        except OSError as error:
            advice = "run as root" if isinstance(error, PermissionError) else "nothing half written was left"
            message = f"{self.shown(path)} cannot be changed ({error.strerror}); {advice}"
            raise MachineError(message) from error


def _kind(mode: int) -> Kind:
    if stat.S_ISREG(mode):
        return Kind.FILE
    if stat.S_ISDIR(mode):
        return Kind.DIRECTORY
    return Kind.LINK if stat.S_ISLNK(mode) else Kind.OTHER


def _joined(path: str, target: str) -> str:
    """Give the path that a link's target means; not simplified, since its components may be links again."""
    return target if target.startswith("/") else path.rpartition("/")[0] + "/" + target
