# SPDX-License-Identifier: Apache-2.0
"""What a command line names, read: policy files, directories of them, bundles.

Reading is kept to the system calls it takes: a question to a directory of a thousand policies is answered in less
time than looking at each file twice would cost.
"""

from __future__ import annotations

import os
import stat
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from hauberk.errors import HauberkError, visible
from hauberk.policy import documents

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from hauberk.policy.cache import Cache
    from hauberk.policy.rules import Section, Verdict

_SUFFIXES = (".yaml", ".yml")
_BUNDLE_START = b'{"apiVersion":"hauberk/'
"""How the one canonical form of a bundle begins."""
_PART = 64 * 1024
_MAXIMUM_BYTES = documents.MAXIMUM_BYTES
"""Largest file that is read whole: what a policy file may have, and more than a bundle may. Their readers refuse what
is longer, so nothing is ever taken for the whole of a file that is not.
"""


class UsageError(HauberkError):
    """The command line asks for something that cannot be done."""

    exit_code = 2


class Inputs(NamedTuple):
    """What was read. The rest is what a bundle says beside its policies, and None where the files are no bundle."""

    files: list[tuple[str, bytes]]  # name as shown in messages, content
    default: str | None = None
    posture: str | None = None
    postures: tuple[tuple[Section, Verdict], ...] = ()
    target: Mapping[str, Any] | None = None


def read(names: Iterable[str]) -> Inputs:
    """Read policy files, directories, or one bundle.

    Raises :class:`UsageError`, and :class:`hauberk.bundle.errors.BundleError` for a bundle that is none.
    """
    files = policy_files(names)
    bundles = [name for name, content in files if content.startswith(_BUNDLE_START)]
    if not bundles:
        return Inputs(files)
    if len(files) > 1:
        message = f"found the bundle {bundles[0]} beside other files, expected a bundle alone. Name one or the others"
        raise UsageError(message)
    return _unpacked(*files[0])


def _unpacked(name: str, content: bytes) -> Inputs:
    from hauberk.bundle import document  # noqa: PLC0415 - few command lines name a bundle
    from hauberk.policy.annotations import POSTURES as CLASSES  # noqa: PLC0415
    from hauberk.policy.rules import POSTURES, Section  # noqa: PLC0415

    bundle = document.parse(content)
    sections = {name.removeprefix("kubearmor-").removesuffix("-posture"): of for name, of in CLASSES.items()}
    sections["device"] = (Section.DEVICE,)
    return Inputs(
        [(f"{name}:{policy.file}", policy.text.encode()) for policy in bundle.policies],
        bundle.default.value,
        bundle.posture.value,
        tuple((section, POSTURES[posture.value]) for of, posture in bundle.terms.postures for section in sections[of]),
        None if bundle.terms.target is None else bundle.terms.target.as_json(),
    )


def policy_files(names: Iterable[str]) -> list[tuple[str, bytes]]:
    """Read files, and the ``*.yaml`` and ``*.yml`` files of directories (with all below, in order of their paths).

    Gives (path as shown in messages, content). Raises :class:`UsageError` where there is nothing to read; it names all
    that cannot be read, a line each.
    """
    found: dict[str, bytes] = {}
    unreadable: list[str] = []
    for name in names:
        if os.path.isdir(name):  # noqa: PTH112 - pathlib takes its time to import
            paths = sorted(_below(name), key=lambda path: path.split("/"))
            if not paths:
                message = (
                    f"found no *.yaml or *.yml file in {name}, expected at least one policy. Name another directory"
                )
                raise UsageError(message)
        else:
            paths = [name]
        for path in paths:
            try:
                found[path] = _read_bounded(path)
            except UsageError as error:
                unreadable.append(str(error))
    if unreadable:
        raise UsageError("\n".join(map(visible, unreadable)))
    return list(found.items())


def _below(top: str) -> Iterator[str]:
    """Give the policy files of a directory: what a bundle made of it would hold, or refuse for its name's case."""
    pending = [top]
    while pending:
        directory = pending.pop()
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    elif entry.name.lower().endswith(_SUFFIXES) and _holds_text(entry):
                        yield entry.path
        except OSError as error:
            message = f"found {directory} unreadable ({error.strerror}), expected a directory. Check its name and mode"
            raise UsageError(message) from error


def _holds_text(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is to be read. A link that leads nowhere is: leaving it out would lose a policy in silence."""
    return entry.is_symlink() or entry.is_file()


def _read_bounded(path: str) -> bytes:
    """Read a file up to one byte more than the longest that is of use. Raises :class:`UsageError`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            parts = [os.read(descriptor, _PART)]
            length = len(parts[0])
            # less than asked for is the end of a file, but not of a pipe
            while length <= _MAXIMUM_BYTES and (len(parts[-1]) == _PART or not _is_regular(descriptor)):
                parts.append(os.read(descriptor, _PART))
                length += len(parts[-1])
                if not parts[-1]:
                    break
        finally:
            os.close(descriptor)
    except OSError as error:
        why = error.strerror
        if isinstance(error, FileNotFoundError) and os.path.islink(path):  # noqa: PTH114 - as above
            why = "a symbolic link that leads nowhere"
        message = f"found {path} unreadable ({why}), expected a policy file. Check its name and mode"
        raise UsageError(message) from error
    return parts[0] if len(parts) == 1 else b"".join(parts)[: _MAXIMUM_BYTES + 1]


def _is_regular(descriptor: int) -> bool:
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


def cache(*, wanted: bool) -> Cache | None:
    """Give the user's cache of policies, or None where it is not wanted or has no place."""
    if not wanted:
        return None
    from hauberk.policy.cache import Cache, user_directory  # noqa: PLC0415

    directory = user_directory()
    return None if directory is None else Cache(directory)


def pairs(texts: Iterable[str], what: str) -> dict[str, str]:
    """Read ``KEY=VALUE`` texts. Raises :class:`UsageError`."""
    found: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            message = f"found the {what} {text!r}, expected KEY=VALUE. Write its name, '=' and its value"
            raise UsageError(message)
        if found.get(key, value) != value:
            message = f"found the {what} {key!r} with two values, expected one. Leave out the other"
            raise UsageError(message)
        found[key] = value
    return found


def write(text: str) -> None:
    """Print a line or several, without anything that a terminal obeys."""
    sys.stdout.write("\n".join(map(visible, text.split("\n"))) + "\n")
