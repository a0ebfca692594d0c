# SPDX-License-Identifier: Apache-2.0
"""Install, uninstall and check: a target's plan brought together with the tree and the records.

The record is written before the first change and once more after the last. The first names everything that may have
been put, and what is replaced as it was before, so that an installation cut short is finished by repeating it.
"""

from __future__ import annotations

import fcntl
import os
import re
from contextlib import contextmanager
from dataclasses import replace as replaced
from typing import TYPE_CHECKING, Final

from hauberk.install import programs
from hauberk.install.errors import InstallError, MachineError
from hauberk.install.plan import RECORDS, Directory, Edit, File, Prepared, apply, prepare, prepare_removal
from hauberk.install.record import decode
from hauberk.install.targets import NAMES, Finding, Options, recorded_options, target
from hauberk.install.tree import Kind, Tree

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hauberk.install.plan import Link, Plan
    from hauberk.install.record import Record
    from hauberk.install.targets import Target
    from hauberk.install.tree import Entry

_INTERPRETER: Final = "/usr/bin/python3"
_MINIMUM_PYTHON: Final = (3, 9)
_RECORD_MODE: Final = 0o644


def install(
    tree: Tree, name: str, options: Options, *, replace: bool = False, dry_run: bool = False
) -> tuple[Prepared, tuple[str, ...]]:
    """Put a target's files there, or only work out how. Gives the steps and what the operator has to do next.

    Raises InstallError; before the first change if anything is in the way.
    """
    chosen = target(name)
    with _exclusive(tree, dry_run=dry_run):
        plan = chosen.plan(tree, options)
        known = records(tree)
        prepared = prepare(plan, tree, known, replace=replace)
        notes = (*plan.notes, *prepared.told)
        if chosen.programs and tree.program(*chosen.programs) is None:
            where = " or ".join(map(tree.shown, chosen.programs))
            notes = (f"{name} itself was not found ({where}); this waits for it.", *notes)
        if not dry_run:
            _apply(tree, prepared, known.get(name))
    return prepared, notes


def uninstall(tree: Tree, name: str, *, dry_run: bool = False) -> tuple[Prepared, tuple[str, ...]]:
    """Take back what the record of a target says. Gives the steps, and a sentence for each thing that was kept.

    Raises InstallError if there is no record.
    """
    with _exclusive(tree, dry_run=dry_run):
        known = records(tree)
        if name not in known:
            message = (
                f"there is no record of an installation for {name} ({tree.shown(record_path(name))}); nothing to do"
            )
            raise InstallError(message)
        prepared = prepare_removal(known[name], tree, known)
        if not dry_run:
            _take_back(tree, name, prepared)
    return prepared, prepared.told


def check(tree: Tree, name: str, options: Options) -> list[Finding]:
    """Look whether what is there for a target is complete and works.

    With a record, its options count; ``options`` are those for a target that has none. Changes nothing.
    """
    chosen = target(name)
    known = records(tree).get(name)
    if known is not None:
        options = recorded_options(known.options)
    findings = list(_runtime(tree, chosen))
    if known is None:
        advice = f"hauberk install {name}"
        findings.append(Finding(well=False, what=f"{name} is not installed here by this command", advice=advice))
    plan = chosen.plan(tree, options)
    findings.extend(_complete(tree, plan))
    findings.extend(Finding(well=False, what=obstacle) for obstacle in plan.obstacles)
    findings.extend(_working(tree, plan))
    findings.extend(chosen.examine(tree, options))
    return findings


def records(tree: Tree) -> dict[str, Record]:
    """Read the records of all targets. Raises InstallError for one that cannot be read."""
    found: dict[str, Record] = {}
    for name in NAMES:
        path = record_path(name)
        content = tree.read(path)
        if content is not None:
            found[name] = decode(content, name, tree.shown(path))
    return found


def record_path(name: str) -> str:
    """Give where the record of a target lies."""
    return f"{RECORDS}/{name}.json"


def _apply(tree: Tree, prepared: Prepared, before: Record | None) -> None:
    first = [step for step in prepared.steps if f"{RECORDS}/".startswith(f"{step.path}/")]  # where the record lies
    apply(first, tree)
    path = record_path(prepared.record.target)
    content = prepared.record.encode()
    if any(step.changes for step in prepared.steps):
        tree.write(path, _until_done(prepared.record, before).encode(), _RECORD_MODE)
    apply([step for step in prepared.steps if step not in first], tree)
    if tree.read(path) != content:
        tree.write(path, content, _RECORD_MODE)


def _until_done(record: Record, before: Record | None) -> Record:
    """Give the record that holds while the steps are done: by it the next start knows a file not replaced yet."""
    if before is None:
        return record
    paths = {item.path for item in record.items}
    items = (before.item(item.path) or item for item in record.items)
    gone = (item for item in before.items if item.path not in paths)
    return replaced(record, items=(*items, *gone))


def _take_back(tree: Tree, name: str, prepared: Prepared) -> None:
    path = record_path(name)
    apply([step for step in prepared.steps if step.action != "rmdir"], tree)
    if prepared.record.items:
        tree.write(path, prepared.record.encode(), _RECORD_MODE)
    else:
        tree.remove(path)
    apply([step for step in prepared.steps if step.action == "rmdir"], tree)


@contextmanager
def _exclusive(tree: Tree, *, dry_run: bool) -> Iterator[None]:
    """Let one installation at a time work on a tree: by a lock on its root, which leaves no file behind."""
    if dry_run:
        yield
        return
    if tree.is_machine and os.geteuid() != 0:
        message = "installing on this machine needs root; run as root, or name an image's directory with --root"
        raise MachineError(message)
    with tree.locked(fcntl.LOCK_EX | fcntl.LOCK_NB):
        yield


def _runtime(tree: Tree, chosen: Target) -> Iterator[Finding]:
    if not chosen.programs:
        return
    found = tree.program(*chosen.programs)
    if found:
        yield Finding(well=True, what=f"{tree.shown(found)} is there")
    else:
        where = " or ".join(map(tree.shown, chosen.programs))
        yield Finding(well=False, what=f"{chosen.name} was not found ({where})", advice="Install it", no_runtime=True)


def _complete(tree: Tree, plan: Plan) -> Iterator[Finding]:
    """Compare what is there with the plan, one finding for each file."""
    again = f"hauberk install {plan.target} puts it right, or says why it cannot"
    for wanted in plan.wanted:
        if isinstance(wanted, Edit):
            continue  # the target says itself what the configuration lacks
        wrong = _difference(tree, wanted)
        shown = tree.shown(wanted.path)
        if wrong:
            yield Finding(well=False, what=f"{shown} {wrong}", advice=again)
        else:
            yield Finding(well=True, what=f"{shown} is as it was put")


def _difference(tree: Tree, wanted: File | Link | Directory) -> str:
    if isinstance(wanted, Directory):
        return "" if tree.is_directory(wanted.path) else "is missing"
    found = tree.entry(wanted.path)
    if found.kind is Kind.MISSING:
        return "is missing"
    if isinstance(wanted, File):
        return _file_difference(found, wanted, tree.owner)
    if found.kind is not Kind.LINK or found.target != wanted.target:
        return f"is no symbolic link to {wanted.target}"
    return ""


def _file_difference(found: Entry, wanted: File, owner: int) -> str:
    if found.kind is not Kind.FILE:
        return f"is {found.kind.value}, expected a regular file"
    if found.content != wanted.content:
        return "has another content than this version of Hauberk gives it"
    if (found.mode, found.uid) != (wanted.mode, owner):
        return f"has mode {found.mode:04o} and uid {found.uid}, expected {wanted.mode:04o} and {owner}"
    return ""


def _working(tree: Tree, plan: Plan) -> Iterator[Finding]:
    """Look whether the hook can run: its interpreter, and on the machine itself the hook's own answer."""
    files = [wanted.path for wanted in plan.wanted if isinstance(wanted, File)]
    copies = [path for path in files if path.endswith("/hauberk-hook")]
    version = _python(tree)
    if version is None or version < _MINIMUM_PYTHON:
        shown = (
            "is missing, does not run or does not tell its version"
            if version is None
            else f"is {version[0]}.{version[1]}"
        )
        yield Finding(
            well=False,
            what=f"{tree.shown(_INTERPRETER)}, the hook's interpreter, {shown}",
            advice="Install Python 3.9 or later there; without it every container is refused",
        )
        return
    yield Finding(well=True, what=f"{tree.shown(_INTERPRETER)} is {version[0]}.{version[1]}")
    if tree.is_machine:
        for path in copies:
            if tree.program(path):
                well, what = programs.ask_hook(path)
                advice = "" if well else "Run it by hand: every container is refused while it fails"
                yield Finding(well=well, what=what, advice=advice)


def _python(tree: Tree) -> tuple[int, int] | None:
    """Tell the interpreter's version: by asking it on the machine, by its file's name in an image."""
    if tree.is_machine:
        return programs.python_version(_INTERPRETER)
    found = tree.resolve(_INTERPRETER)
    named = re.search(r"/python3\.([0-9]{1,3})$", found[0]) if found and tree.program(_INTERPRETER) else None
    return (3, int(named[1])) if named else None
