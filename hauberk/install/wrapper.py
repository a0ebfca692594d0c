# SPDX-License-Identifier: Apache-2.0
"""The wrapper runtime, as the targets that use it install it: see ``hooks/hauberk-runtime`` and docs/adr/0009.

One copy of the program for each runtime it stands for: its own file name tells it which line to read. Nothing is
searched for when a container starts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hauberk.install.errors import InstallError
from hauberk.install.material import encoded, hooks, material
from hauberk.install.plan import EXECUTABLE, Directory, File

if TYPE_CHECKING:
    from hauberk.install.tree import Tree

PROGRAMS: Final = "/usr/libexec/hauberk"
SETTINGS: Final = "/etc/hauberk"
HOOKS: Final = f"{SETTINGS}/runtime-hooks.json"
LISTED: Final = frozenset({"runc", "crun", "docker"})
"""Names whose wrappers the agent's configuration lists by itself."""
_PLACES: Final = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")


def common(*, fail_open: bool) -> tuple[File | Directory, ...]:
    """Give what all wrappers share: the program that adds hooks, and the hooks."""
    return (
        Directory(SETTINGS, 0o700),
        File(f"{PROGRAMS}/hauberk-add-hooks", material("hooks/hauberk-add-hooks"), EXECUTABLE),
        File(HOOKS, encoded(hooks(fail_open=fail_open))),
    )


def checked(name: str) -> str:
    """Give a handler's name. Raises InstallError for one that cannot be part of a file's name."""
    if not name.strip(".") or not all(c.isascii() and (c.isalnum() or c in "-_.") for c in name):
        message = f"handler {name!r}: expected a name of letters, digits, '-', '_' and '.'; leave it out with --runtime"
        raise InstallError(message)
    return name


def path(name: str) -> str:
    """Give where the wrapper of a handler lies."""
    return f"{PROGRAMS}/hauberk-runtime-{checked(name)}"


def files(name: str, real: str) -> list[File]:
    """Give the wrapper of one handler, and the line that says what it stands for."""
    return [
        File(f"{SETTINGS}/runtimes/{checked(name)}", f"{real}\n".encode()),
        File(path(name), material("hooks/hauberk-runtime"), EXECUTABLE),
    ]


def find(tree: Tree, named: str) -> str | None:
    """Give the runtime's program: a path as it is, a name where a runtime usually is. None if there is none."""
    if named.startswith("/"):
        return tree.program(named)
    return tree.program(*(f"{place}/{named}" for place in _PLACES))
