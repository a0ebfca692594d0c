# SPDX-License-Identifier: Apache-2.0
"""podman, started by root. It reads its hook files at every command; nothing is restarted.

Rootless podman reads the same directory and cannot reach the agent, which belongs to root: its containers are then
refused, with a line that says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hauberk.install import toml_reading
from hauberk.install.targets import Finding, hooks_directory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hauberk.install.plan import Plan
    from hauberk.install.targets import Options
    from hauberk.install.tree import Tree

_VENDOR: Final = "/usr/share/containers/containers.conf"
_MACHINE: Final = "/etc/containers/containers.conf"
_ROOT_USER: Final = "/root/.config/containers/containers.conf"


class Podman:
    """The target."""

    name = "podman"
    accepts = frozenset({"fail_open", "directory"})
    programs = ("/usr/bin/podman", "/usr/local/bin/podman")

    def plan(self, tree: Tree, options: Options) -> Plan:
        """Say what should be there."""
        notes = ["Containers that were created before keep the hooks they had: create them again."]
        notes.append("Rootless podman is not supported: its containers are refused as long as these files are there.")
        if options.directory and options.directory not in hooks_directories(tree):
            notes.append(f"podman needs --hooks-dir {options.directory}, or hooks_dir in {_MACHINE}.")
        return hooks_directory.plan(self.name, options, tuple(notes))

    def examine(self, tree: Tree, options: Options) -> Iterator[Finding]:
        """Look which directories podman reads."""
        ours = options.directory or hooks_directory.DIRECTORY
        yield from hooks_directory.examine_directories(
            tree,
            options,
            hooks_directories(tree),
            "podman",
            f'Add "{ours}" to hooks_dir in the [engine] table of {_MACHINE}, or start podman with --hooks-dir {ours}',
        )


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


TARGET: Final = Podman()
