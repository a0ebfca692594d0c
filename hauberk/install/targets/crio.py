# SPDX-License-Identifier: Apache-2.0
"""CRI-O. It watches its hook directories; nothing is restarted. Its pause containers run without hooks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hauberk.install import toml_reading
from hauberk.install.targets import hooks_directory

if TYPE_CHECKING:
    from hauberk.install.tree import Tree

_MAIN: Final = "/etc/crio/crio.conf"
_DROP_INS: Final = "/etc/crio/crio.conf.d"


def hooks_directories(tree: Tree) -> list[str]:
    """Give the directories that CRI-O reads for hooks: the last file that sets them counts (crio.conf(5))."""
    directories = [hooks_directory.DIRECTORY]
    for path in (_MAIN, *(f"{_DROP_INS}/{name}" for name in tree.names(_DROP_INS))):
        table = None if tree.is_a_directory(path) else toml_reading.read(tree, path)
        found = toml_reading.within(table or {}, "crio", "runtime").get("hooks_dir")
        if isinstance(found, list):
            directories = [entry for entry in found if isinstance(entry, str)]
    return directories


TARGET: Final = hooks_directory.HooksDirectoryTarget(
    name="crio",
    shown="CRI-O",
    programs=("/usr/bin/crio", "/usr/local/bin/crio"),
    directories=hooks_directories,
    notes=("CRI-O takes the files up by itself; containers that were created before keep the hooks they had.",),
    elsewhere="CRI-O needs {directory} in hooks_dir ([crio.runtime]) and a restart.",
    advice=f'Add "{{directory}}" to hooks_dir in the [crio.runtime] table of a file in {_DROP_INS}, and restart CRI-O',
)
