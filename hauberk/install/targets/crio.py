# SPDX-License-Identifier: Apache-2.0
"""CRI-O. It watches its hook directories; nothing is restarted. Its pause containers run without hooks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hauberk.install import toml_reading
from hauberk.install.targets import Finding, hooks_directory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hauberk.install.plan import Plan
    from hauberk.install.targets import Options
    from hauberk.install.tree import Tree

_MAIN: Final = "/etc/crio/crio.conf"
_DROP_INS: Final = "/etc/crio/crio.conf.d"


class Crio:
    """The target."""

    name = "crio"
    accepts = frozenset({"fail_open", "directory"})
    programs = ("/usr/bin/crio", "/usr/local/bin/crio")

    def plan(self, tree: Tree, options: Options) -> Plan:
        """Say what should be there."""
        notes = ["CRI-O takes the files up by itself; containers that were created before keep the hooks they had."]
        if options.directory and options.directory not in hooks_directories(tree):
            notes.append(f"CRI-O needs {options.directory} in hooks_dir ([crio.runtime]) and a restart.")
        return hooks_directory.plan(self.name, options, tuple(notes))

    def examine(self, tree: Tree, options: Options) -> Iterator[Finding]:
        """Look which directories CRI-O reads."""
        ours = options.directory or hooks_directory.DIRECTORY
        yield from hooks_directory.examine_directories(
            tree,
            options,
            hooks_directories(tree),
            "CRI-O",
            f'Add "{ours}" to hooks_dir in the [crio.runtime] table of a file in {_DROP_INS}, and restart CRI-O',
        )


def hooks_directories(tree: Tree) -> list[str]:
    """Give the directories that CRI-O reads for hooks: the last file that sets them counts (crio.conf(5))."""
    directories = [hooks_directory.DIRECTORY]
    for path in (_MAIN, *(f"{_DROP_INS}/{name}" for name in tree.names(_DROP_INS))):
        table = None if tree.is_a_directory(path) else toml_reading.read(tree, path)
        found = toml_reading.within(table or {}, "crio", "runtime").get("hooks_dir")
        if isinstance(found, list):
            directories = [entry for entry in found if isinstance(entry, str)]
    return directories


TARGET: Final = Crio()
