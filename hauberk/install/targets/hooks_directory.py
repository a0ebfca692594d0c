# SPDX-License-Identifier: Apache-2.0
"""What podman and CRI-O share: a directory of hook files (oci-hooks(5), schema 1.0.0) and the hook they name.

Both look into ``/usr/share/containers/oci/hooks.d`` unless their configuration names other directories, so the files
go there and no configuration is touched. ``/etc/containers/oci/hooks.d`` is in neither's default. The file names sort
behind what vendors ship: hooks run in that order, and the agent must see the mounts that others add.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from hauberk.install.material import FAIL_OPEN_PROGRAM, HOOK, hook_file, material
from hauberk.install.plan import EXECUTABLE, Directory, File, Plan
from hauberk.install.targets import Finding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from hauberk.install.targets import Options
    from hauberk.install.tree import Tree

DIRECTORY: Final = "/usr/share/containers/oci/hooks.d"
FILES: Final = ("zz-hauberk-create.json", "zz-hauberk-poststop.json")


@dataclass(frozen=True, slots=True)
class HooksDirectoryTarget:
    """A target that only needs the files: ``shown`` is its name in sentences, ``directories`` what it reads.

    ``elsewhere`` is the note for a directory of the operator's own that it does not read yet, ``advice`` how to make it
    read one; both with the directory as ``{directory}``.
    """

    name: str
    shown: str
    programs: tuple[str, ...]
    directories: Callable[[Tree], list[str]]
    notes: tuple[str, ...]
    elsewhere: str
    advice: str
    accepts: frozenset[str] = frozenset({"fail_open", "directory"})

    def plan(self, tree: Tree, options: Options) -> Plan:
        """Say what should be there."""
        notes = self.notes
        if options.directory and options.directory not in self.directories(tree):
            notes = (*notes, self.elsewhere.format(directory=options.directory))
        return plan(self.name, options, notes)

    def examine(self, tree: Tree, options: Options) -> Iterator[Finding]:
        """Look which directories the runtime reads."""
        advice = self.advice.format(directory=options.directory or DIRECTORY)
        yield from examine_directories(tree, options, self.directories(tree), self.shown, advice)


def plan(target: str, options: Options, notes: tuple[str, ...] = ()) -> Plan:
    """Say what should be there: the hook, then the files that name it."""
    directory = options.directory or DIRECTORY
    files = tuple(File(f"{directory}/{name}", hook_file(name, fail_open=options.fail_open)) for name in reversed(FILES))
    return Plan(
        target,
        (*programs(fail_open=options.fail_open), Directory(directory), *files),
        options.recorded(),
        notes,
    )


def programs(*, fail_open: bool) -> tuple[File, ...]:
    """Give the hook, and the program that may let a container through where that was asked for."""
    hook = File(HOOK, material("hooks/hauberk-hook"), EXECUTABLE)
    if not fail_open:
        return (hook,)
    return File(FAIL_OPEN_PROGRAM, material("hooks/hauberk-fail-open"), EXECUTABLE), hook


def examine_directories(
    tree: Tree, options: Options, directories: Sequence[str], source: str, advice: str
) -> Iterator[Finding]:
    """Look whether the directory is among those in use (in rising precedence), and nothing masks our files."""
    ours = options.directory or DIRECTORY
    if ours not in directories:
        shown = ", ".join(directories) or "none"
        yield Finding(well=False, what=f"{source} looks for hooks in {shown}, not in {ours}", advice=advice)
        return
    yield Finding(well=True, what=f"{source} looks for hooks in {ours}")
    for later in directories[directories.index(ours) + 1 :]:
        for name in set(FILES) & set(tree.names(later)):
            yield Finding(
                well=False,
                what=f"{tree.shown(later)}/{name} takes the place of the file in {ours}",
                advice="Remove it: a file of that name in a later directory wins",
            )
