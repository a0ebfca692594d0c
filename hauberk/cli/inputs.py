# SPDX-License-Identifier: Apache-2.0
"""What a command line names, read: policy files, directories of them, bundles.

Reading is kept to the system calls it takes: a question to a directory of a thousand policies is answered in less
time than looking at each file twice would cost.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, NamedTuple

from hauberk.errors import HauberkError

if TYPE_CHECKING:
    from collections.abc import Iterable

_SUFFIXES = (".yaml", ".yml")
_BUNDLE_START = b"{"


class UsageError(HauberkError):
    """The command line asks for something that cannot be done."""

    exit_code = 2


class Inputs(NamedTuple):
    """What was read. ``default`` and ``posture`` are a bundle's own; None where the files are no bundle."""

    files: list[tuple[str, bytes]]  # name as shown in messages, content
    default: str | None = None
    posture: str | None = None


def policy_files(names: Iterable[str]) -> list[tuple[str, bytes]]:
    """Read files, and the ``*.yaml`` and ``*.yml`` files of directories (with all below, in order of their paths).

    Gives (path as shown in messages, content). Raises :class:`UsageError` where there is nothing to read.
    """
    from hauberk.policy.documents import MAXIMUM_BYTES  # noqa: PLC0415

    found: dict[str, bytes] = {}
    for name in names:
        if os.path.isdir(name):  # noqa: PTH112 - pathlib takes its time to import
            paths = _below(name)
            if not paths:
                message = (
                    f"found no *.yaml or *.yml file in {name}, expected at least one policy. Name another directory"
                )
                raise UsageError(message)
        else:
            paths = [name]
        for path in paths:
            found[path] = read_bounded(path, MAXIMUM_BYTES, "a policy file")
    return list(found.items())


def _below(top: str) -> list[str]:
    """Give the policy files of a directory, sorted by the components of their paths."""
    found: list[str] = []
    for directory, _, names in os.walk(top, onerror=_refuse_directory):
        for name in names:
            path = os.path.join(directory, name)  # noqa: PTH118 - see policy_files
            if name.endswith(_SUFFIXES) and name not in _SUFFIXES and stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116
                found.append(path)
    return sorted(found, key=lambda path: path.split("/"))


def _refuse_directory(error: OSError) -> None:
    message = f"found {error.filename} unreadable ({error.strerror}), expected a directory. Check its name and mode"
    raise UsageError(message) from error


def read_bounded(path: str, maximum_bytes: int, expected: str) -> bytes:
    """Read at most one byte more than ``maximum_bytes``. Raises :class:`UsageError` naming what was ``expected``."""
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - see policy_files
            parts = []
            remaining = maximum_bytes + 1
            while remaining and (part := file.read(min(remaining, 65536))):
                parts.append(part)
                remaining -= len(part)
            return b"".join(parts)
    except OSError as error:
        message = f"found {path} unreadable ({error.strerror}), expected {expected}. Check its name and mode"
        raise UsageError(message) from error
