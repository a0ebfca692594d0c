# SPDX-License-Identifier: Apache-2.0
"""containerd's configuration as containerd reads it, and the drop-in that adds to it. Pure but for reading files.

containerd merges imported files in one of two ways. Version 3 files are for containerd 2, which merges tables key by
key: a drop-in holds only what is added. Version 2 files may be read by containerd 1.x, where a file that mentions a
plugin takes the place of everything that earlier files said about it: the drop-in then repeats the CRI plugin's table,
with ours added, and says whose copy it is. Both readings of it give the same result.

A configuration file that is not ours is never rewritten. Where it does not import a directory, one line may be added,
and only if parsing the result gives what was there and the import, and nothing else.
"""

from __future__ import annotations

import copy
import fnmatch
import posixpath
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from hauberk.install import toml_reading
from hauberk.install.errors import InstallError
from hauberk.install.toml_reading import Table, within

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hauberk.install.tree import Tree

MAIN: Final = "/etc/containerd/config.toml"
DROP_INS: Final = "/etc/containerd/conf.d"
DROP_IN_NAME: Final = "zz-hauberk.toml"
PATTERN: Final = f"{DROP_INS}/*.toml"
RUNC_SHIM: Final = "io.containerd.runc.v2"
_PLUGINS: Final = {2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.runtime"}
_MAXIMUM_FILES: Final = 256


@dataclass(frozen=True, slots=True)
class Configuration:
    """What containerd reads, without our drop-in.

    ``files``: path and content in the order of reading, the main file first. ``version``: 2 or 3, for what we add.
    ``main``: the main file's bytes, None if there is none. ``plugin``: the CRI plugin's effective table.
    """

    version: int
    main: bytes | None
    files: tuple[tuple[str, Table], ...]
    plugin: Table

    @property
    def plugin_name(self) -> str:
        """The CRI runtime plugin's name in files of this version."""
        return _PLUGINS[self.version]

    @property
    def directory(self) -> str | None:
        """A directory of which containerd imports every file that ends in .toml; None if there is none."""
        for path, table in self.files:
            for pattern in imports_of(table):
                folder, _, name = _absolute(path, pattern).rpartition("/")
                if "*" in name and "*" not in folder and fnmatch.fnmatchcase(DROP_IN_NAME, name):
                    return folder
        return None

    def handlers(self) -> dict[str, Table]:
        """Give the runtime handlers by name, with the one that containerd has by default."""
        found = {name: value for name, value in within(self.plugin, "containerd", "runtimes").items() if value != {}}
        return {"runc": {}, **{name: value for name, value in found.items() if isinstance(value, dict)}}


def imports_of(table: Table) -> list[str]:
    """Give the imports of one file."""
    found = table.get("imports")
    return [entry for entry in found if isinstance(entry, str)] if isinstance(found, list) else []


def read(tree: Tree) -> Configuration:
    """Read the configuration. Raises InstallError for one that cannot be added to, with what to do."""
    main = tree.read(MAIN)
    if main is None:
        return Configuration(2, None, (), {})
    files: list[tuple[str, Table]] = []
    pending = [MAIN]
    while pending:
        path = pending.pop(0)
        if any(path == known for known, _ in files) or path.rpartition("/")[2] == DROP_IN_NAME:
            continue
        if len(files) == _MAXIMUM_FILES:
            message = f"{tree.shown(MAIN)} imports more than {_MAXIMUM_FILES} files; add Hauberk's settings by hand"
            raise InstallError(message)
        table = toml_reading.read(tree, path)
        if table is None:
            message = f"{tree.shown(path)}, which {tree.shown(MAIN)} imports, is missing; containerd would not start"
            raise InstallError(message)
        files.append((path, table))
        for pattern in imports_of(table):
            pending.extend(_matches(tree, path, pattern))
    version = _version(tree, files[0][1])
    return Configuration(version, main, tuple(files), _plugin(tree, files, version))


def _version(tree: Tree, main: Table) -> int:
    version = main.get("version", 1)
    if not isinstance(version, int) or version < 2:  # noqa: PLR2004 - the first version with plugin names
        message = (
            f"{tree.shown(MAIN)} has version {version!r}, expected 2 or later: containerd config migrate writes it anew"
        )
        raise InstallError(message)
    return min(version, 3)


def _plugin(tree: Tree, files: list[tuple[str, Table]], version: int) -> Table:
    """Give the CRI plugin's table after merging."""
    holders: list[tuple[str, Table]] = []
    for path, table in files:
        plugins = within(table, "plugins")
        for found_version, name in _PLUGINS.items():
            if name in plugins and found_version <= version:
                holders.append((path, within(plugins, name)))
    if version == 2 and len(holders) > 1:  # noqa: PLR2004 - the version that 1.x reads
        shown = " and ".join(tree.shown(path) for path, _ in holders)
        message = (
            f"{shown} both configure the CRI plugin: containerd 1 takes the last alone, containerd 2 merges them."
            " Move the settings into one file, or migrate to version 3 (containerd config migrate)"
        )
        raise InstallError(message)
    merged: Table = {}
    for _, table in holders:
        merged = merge(merged, table)
    return merged


def merge(one: Mapping[str, object], other: Mapping[str, object]) -> Table:
    """Merge two tables key by key; the other's values win."""
    merged = copy.deepcopy(dict(one))
    for name, value in other.items():
        mine = merged.get(name)
        merged[name] = (
            merge(mine, value) if isinstance(mine, dict) and isinstance(value, dict) else copy.deepcopy(value)
        )
    return merged


def _matches(tree: Tree, parent: str, pattern: str) -> list[str]:
    pattern = _absolute(parent, pattern)
    folder, _, name = pattern.rpartition("/")
    if "*" not in pattern:
        return [pattern]
    if "*" in folder:
        message = f"{tree.shown(parent)} imports {pattern}: a '*' in a directory's name is not followed; list the files"
        raise InstallError(message)
    return [f"{folder}/{found}" for found in tree.names(folder) if fnmatch.fnmatchcase(found, name)]


def _absolute(parent: str, pattern: str) -> str:
    """Give an import's path as containerd does: relative to the importing file, and simplified."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(parent), pattern))


def drop_in(configuration: Configuration, additions: Mapping[str, Table]) -> bytes:
    """Render the drop-in. ``additions``: handler's name to what is added to its table."""
    runtimes: Table = {}
    for name, added in additions.items():
        mine = configuration.handlers().get(name, {})
        kind = {} if "runtime_type" in mine else {"runtime_type": RUNC_SHIM}
        runtimes[name] = {**kind, **added}
    plugin: Table = {"containerd": {"runtimes": runtimes}}
    if configuration.version == 2:  # noqa: PLR2004 - as above
        plugin = merge(configuration.plugin, plugin)
        source = next((path for path, table in configuration.files if within(table, "plugins", _PLUGINS[2])), "")
        why = (
            f"# A copy of the CRI plugin's settings of {source}, with Hauberk's: containerd 1 takes the last file\n"
            "# that mentions a plugin. After a change there, repeat the command below.\n"
            if source
            else ""
        )
    else:
        why = ""
    head = f"# Written by `hauberk install containerd`; taken back by `hauberk uninstall containerd`.\n{why}"
    document = {"version": configuration.version, "plugins": {configuration.plugin_name: plugin}}
    return (head + toml_reading.render(document)).encode()


def main_file(version: int = 2) -> bytes:
    """Render a main file for a machine that has none: containerd's defaults, and the import."""
    head = "# Written by `hauberk install containerd`: containerd's defaults, and what the directory adds.\n"
    return (head + toml_reading.render({"version": version, "imports": [PATTERN]})).encode()


def add_import(content: bytes) -> bytes | None:
    """Add our import to a main file by one insertion; None where that cannot be done for certain."""
    before = toml_reading.parse(content, MAIN)
    wanted = {**before, "imports": [PATTERN, *imports_of(before)]}
    line = f'imports = ["{PATTERN}"]'.encode()
    for at, inserted in _candidates(content, line):
        edited = content[:at] + inserted + content[at:]
        try:
            after = toml_reading.parse(edited, MAIN)
        except InstallError:
            continue
        if after == wanted and ("imports" in before) == (b"imports = " not in inserted):
            return edited
    return None


def _candidates(content: bytes, line: bytes) -> list[tuple[int, bytes]]:
    """Give places for the insertion: an existing list's begin, else a line of its own before anything else."""
    found: list[tuple[int, bytes]] = []
    at = 0
    for text in content.splitlines(keepends=True):
        name, separator, value = text.partition(b"=")
        if separator and name.strip() == b"imports" and value.lstrip().startswith(b"["):
            place = at + text.index(b"[", len(name)) + 1
            found.append((place, f'"{PATTERN}", '.encode()))
        at += len(text)
    ending = b"\r\n" if b"\r\n" in content else b"\n"
    found.append((0, line + ending))
    return found
