# SPDX-License-Identifier: Apache-2.0
"""podman, started by root. It reads its hook files at every command; nothing is restarted.

Rootless podman reads the same directory and cannot reach the agent, which belongs to root: its containers are then
refused, with a line that says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hauberk.install import toml_reading
from hauberk.install.targets import hooks_directory

if TYPE_CHECKING:
    from hauberk.install.tree import Tree

_VENDOR: Final = "/usr/share/containers/containers.conf"
_MACHINE: Final = "/etc/containers/containers.conf"
_ROOT_USER: Final = "/root/.config/containers/containers.conf"


def hooks_directories(tree: Tree) -> list[str]:
    """Give the directories that podman, as root, reads for hooks: the last setting counts (containers.conf(5))."""
    files = [_VENDOR, _MACHINE, *_drop_ins(tree, _MACHINE), _ROOT_USER, *_drop_ins(tree, _ROOT_USER)]
    directories = [hooks_directory.DIRECTORY]
    append = False
    for path in files:
        found = toml_reading.within(toml_reading.read(tree, path) or {}, "engine").get("hooks_dir")
        if not isinstance(found, list):
            continue
        for entry in found:  # {append = true} among the strings holds from there on
            if isinstance(entry, dict) and isinstance(entry.get("append"), bool):
                append = entry["append"]
        named = [entry for entry in found if isinstance(entry, str)]
        directories = [*directories, *named] if append else named
    return directories


def _drop_ins(tree: Tree, path: str) -> list[str]:
    return [f"{path}.d/{name}" for name in tree.names(f"{path}.d") if name.endswith(".conf")]


TARGET: Final = hooks_directory.HooksDirectoryTarget(
    name="podman",
    shown="podman",
    programs=("/usr/bin/podman", "/usr/local/bin/podman"),
    directories=hooks_directories,
    notes=(
        "Containers that were created before keep the hooks they had: create them again.",
        "Rootless podman is not supported: its containers are refused as long as these files are there.",
    ),
    elsewhere=f"podman needs --hooks-dir {{directory}}, or hooks_dir in {_MACHINE}.",
    advice=(
        f'Add "{{directory}}" to hooks_dir in the [engine] table of {_MACHINE}, or start podman with'
        " --hooks-dir {directory}"
    ),
)
