# SPDX-License-Identifier: Apache-2.0
"""What a target wants to be there, as data, and the steps from what is there to that.

``prepare`` takes all decisions: what may be written, what is left alone because it is somebody else's, what is shared
between targets. It looks and changes nothing; ``apply`` does what the steps say, in their order, and ``--dry-run``
prints them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from hauberk.install.errors import InstallError, ObstaclesError
from hauberk.install.record import Item, Record
from hauberk.install.tree import MISSING, Entry, Kind, digest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from hauberk.install.tree import Tree

SAVED_SUFFIX: Final = ".before-hauberk"
EXECUTABLE: Final = 0o755
READABLE: Final = 0o644
RECORDS: Final = "/var/lib/hauberk/install"


@dataclass(frozen=True, slots=True)
class File:
    """A file of ours."""

    path: str
    content: bytes
    mode: int = READABLE


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link of ours."""

    path: str
    target: str


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory that must be there; one that is keeps its mode."""

    path: str
    mode: int = 0o755


@dataclass(frozen=True, slots=True)
class Edit:
    """A change of somebody else's file, from exactly this content to that.

    ``detail`` says what is changed, ``advice`` how to take it back by hand.
    """

    path: str
    before: bytes
    after: bytes
    detail: str
    advice: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that a target wants to be there, programs before the configuration that names them.

    ``obstacles`` are reasons of the target's own not to begin; ``notes`` what the operator has to do afterwards.
    """

    target: str
    wanted: tuple[File | Link | Directory | Edit, ...]
    options: Mapping[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    obstacles: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """One change, or the statement that none is needed. ``action`` is a word for scripts."""

    action: str  # directory, write, replace, save, mode, link, edit, keep; remove, restore, left
    path: str
    detail: str
    changes: bool = True
    content: bytes = b""
    mode: int = 0
    owner: tuple[int, int] | None = None
    other: str = ""  # the second path of save and restore, the target of link

    def __str__(self) -> str:
        """Render as one line."""
        return f"{self.action:<9} {self.path}{'  (' + self.detail + ')' if self.detail else ''}"


@dataclass(frozen=True, slots=True)
class Prepared:
    """The steps, the record that will be true after them, and a sentence for each thing that stays other than hoped."""

    steps: tuple[Step, ...]
    record: Record
    told: tuple[str, ...] = ()


def prepare(plan: Plan, tree: Tree, records: Mapping[str, Record], *, replace: bool = False) -> Prepared:
    """Work out the steps from what lies in the tree to what the plan wants.

    ``records``: of every target installed here, by name. ``replace``: somebody else's file in the way is kept under
    another name instead of being an obstacle. Raises ObstaclesError.
    """
    work = _Preparation(plan, tree, records, replace)
    for wanted in plan.wanted:
        if isinstance(wanted, Directory):
            work.directory(wanted.path, wanted.mode)
        else:
            work.directories_above(wanted.path)
            if isinstance(wanted, File):
                work.file(wanted)
            elif isinstance(wanted, Link):
                work.link(wanted)
            else:
                work.edit(wanted)
    work.directories_above(f"{RECORDS}/record")
    work.superseded()
    obstacles = [*plan.obstacles, *work.obstacles]
    if obstacles:
        raise ObstaclesError(obstacles)
    directories = tuple(sorted(work.directories, key=lambda path: path.count("/")))
    record = Record(plan.target, dict(plan.options), tuple(work.items), directories)
    return Prepared(tuple(work.steps), record, tuple(work.told))


class _Preparation:
    """Steps, items of the record and obstacles as they accumulate."""

    def __init__(self, plan: Plan, tree: Tree, records: Mapping[str, Record], replace: bool) -> None:  # noqa: FBT001 - ours
        self._plan = plan
        self._tree = tree
        self._replace = replace
        self._own = records.get(plan.target)
        self._others = {name: record for name, record in records.items() if name != plan.target}
        self._made_by_us = {path for record in records.values() for path in record.directories}
        self._known: set[str] = set()
        self.steps: list[Step] = []
        self.items: list[Item] = []
        self.directories: list[str] = []
        self.obstacles: list[str] = []
        self.told: list[str] = []

    def directories_above(self, path: str) -> None:
        parts = path.split("/")[1:-1]
        for count in range(1, len(parts) + 1):
            self.directory("/" + "/".join(parts[:count]), 0o755)

    def directory(self, path: str, mode: int) -> None:
        if path in self._known:
            return
        self._known.add(path)
        parts = path.split("/")[1:-1]
        if parts:
            self.directory("/" + "/".join(parts), 0o755)
        # a link to a directory counts as one: what is below is found through it
        if self._tree.is_directory(path):
            if path in self._made_by_us:
                self.directories.append(path)
            return
        found = self._tree.entry(path)
        if found.kind is not Kind.MISSING:
            self.obstacles.append(f"{self._tree.shown(path)} is {found.kind.value}, expected a directory; move it away")
            return
        self.directories.append(path)
        self.steps.append(Step("directory", path, f"mode {mode:04o}", mode=mode))

    def file(self, wanted: File) -> None:
        found = self._tree.entry(wanted.path)
        detail = f"{len(wanted.content)} bytes, mode {wanted.mode:04o}, sha256 {digest(wanted.content)}"
        known = self._recorded(wanted.path, found)
        made, saved = bool(known and known.made), known.saved if known else ""
        if found.kind is Kind.MISSING:
            self.steps.append(Step("write", wanted.path, detail, content=wanted.content, mode=wanted.mode))
            made = True
        elif found.kind is not Kind.FILE:
            self._obstacle(wanted.path, found, "move it away")
            return
        elif found.content == wanted.content and found.mode == wanted.mode and found.uid == self._tree.owner:
            self.steps.append(Step("keep", wanted.path, "is as it should be", changes=False))
        elif known and known.made and known.sha256 == found.sha256:
            self._check_shared_options(wanted.path)
            action = "replace" if found.content != wanted.content else "mode"
            self.steps.append(Step(action, wanted.path, detail, content=wanted.content, mode=wanted.mode))
        elif self._replace:
            if not self._save(wanted.path, found):
                return
            saved, made = wanted.path + SAVED_SUFFIX, True
            self.steps.append(Step("write", wanted.path, detail, content=wanted.content, mode=wanted.mode))
        else:
            self._obstacle(wanted.path, found, "compare it; --replace keeps it as " + wanted.path + SAVED_SUFFIX)
            return
        self.items.append(
            Item("file", wanted.path, made=made, sha256=digest(wanted.content), mode=wanted.mode, saved=saved)
        )

    def link(self, wanted: Link) -> None:
        found = self._tree.entry(wanted.path)
        known = self._recorded(wanted.path, found)
        made = bool(known and known.made)
        if found.kind is Kind.MISSING:
            self.steps.append(Step("link", wanted.path, f"to {wanted.target}", other=wanted.target))
            made = True
        elif found.kind is Kind.LINK and found.target == wanted.target:
            self.steps.append(Step("keep", wanted.path, "is as it should be", changes=False))
        else:
            shown = f"a symbolic link to {found.target}" if found.kind is Kind.LINK else found.kind.value
            self.obstacles.append(
                f"{self._tree.shown(wanted.path)} is {shown}, expected nothing or a link to {wanted.target}; remove it"
            )
            return
        self.items.append(Item("link", wanted.path, made=made, target=wanted.target))

    def edit(self, wanted: Edit) -> None:
        found = self._tree.entry(wanted.path)
        if found.kind is not Kind.FILE:
            self._obstacle(wanted.path, found, "name the file itself, not a link to it, or change it by hand")
            return
        if found.content != wanted.before:
            self._obstacle(wanted.path, found, "it has just been changed; try again")
        elif self._save(wanted.path, found):
            owner = (found.uid, found.gid)
            self.steps.append(
                Step("edit", wanted.path, wanted.detail, content=wanted.after, mode=found.mode, owner=owner)
            )
            known = Item(
                "edit", wanted.path, made=True, sha256=digest(wanted.after), mode=found.mode,
                saved=wanted.path + SAVED_SUFFIX, advice=wanted.advice,
            )  # fmt: skip
            self.items.append(known)

    def superseded(self) -> None:
        """Take away what an earlier installation with other options put and this one does not want.

        What was added to somebody else's file stays recorded: the plan no longer asks for what is there.
        """
        wanted = {entry.path for entry in self._plan.wanted}
        for item in self._own.items if self._own else ():
            if item.path in wanted:
                continue
            reason = _why_keep(item, self._tree.entry(item.path))
            if item.kind == "edit" or (reason and reason != "gone"):
                self.items.append(item)
            elif item.made and not reason and not any(other.item(item.path) for other in self._others.values()):
                self.steps.extend(_removal(item, self._tree, self.told))
        for path in reversed(self._own.directories if self._own else ()):
            if path not in self._known and self._tree.is_directory(path):
                self.steps.append(Step("rmdir", path, "if empty"))
                self.directories.append(path)

    def _recorded(self, path: str, found: Entry) -> Item | None:
        """Give what a record says of a path: the one that knows the file as it lies there, else this target's own.

        Of a file that several targets share, the one that was installed last knows the present version.
        """
        every = [record.item(path) for record in (self._own, *self._others.values()) if record]
        items = [item for item in every if item is not None]
        present = (item for item in items if item.made and item.sha256 == found.sha256)
        return next(present, items[0] if items else None)

    def _check_shared_options(self, path: str) -> None:
        """Two targets that share a file must agree on what it says."""
        for name, record in self._others.items():
            if record.item(path) and record.options.get("failOpen") != self._plan.options.get("failOpen"):
                self.obstacles.append(
                    f"{self._tree.shown(path)} is shared with {name}, which was installed with another choice of"
                    f" --fail-open; run hauberk uninstall {name} first"
                )

    def _save(self, path: str, found: Entry) -> bool:
        saved = self._tree.entry(path + SAVED_SUFFIX)
        if saved.kind is not Kind.MISSING and (saved.kind is not Kind.FILE or saved.content != found.content):
            self._obstacle(path + SAVED_SUFFIX, saved, "it was saved before; move it away if it is no longer needed")
            return False
        if saved == MISSING:
            self.steps.append(
                Step(
                    "save",
                    path + SAVED_SUFFIX,
                    f"copy of {path}",
                    content=found.content,
                    mode=found.mode,
                    owner=(found.uid, found.gid),
                    other=path,
                )
            )
        return True

    def _obstacle(self, path: str, found: Entry, advice: str) -> None:
        what = found.kind.value
        if found.kind is Kind.FILE:
            what += f" that is not ours (mode {found.mode:04o}, uid {found.uid}, sha256 {found.sha256})"
        self.obstacles.append(f"{self._tree.shown(path)} is {what}; {advice}")


def prepare_removal(record: Record, tree: Tree, records: Mapping[str, Record]) -> Prepared:
    """Work out how to take back exactly what the record says.

    The record is that of what stays (empty when everything goes); told is each file that was changed since and is
    therefore kept.
    """
    others = [other for name, other in records.items() if name != record.target]
    steps: list[Step] = []
    kept: list[Item] = []
    told: list[str] = []
    for item in reversed(record.items):
        reason = _why_keep(item, tree.entry(item.path))
        if not item.made or any(other.item(item.path) for other in others):
            why = "was there before" if not item.made else "another target uses it"
            steps.append(Step("left", item.path, why, changes=False))
        elif reason == "gone":
            steps.append(Step("left", item.path, "is gone already", changes=False))
        elif reason:
            kept.append(item)
            told.append(f"{tree.shown(item.path)} {reason}")
            steps.append(Step("left", item.path, reason, changes=False))
        else:
            steps.extend(_removal(item, tree, told))
    steps.extend(Step("rmdir", path, "if empty") for path in reversed(record.directories))
    left = Record(record.target, record.options, tuple(reversed(kept)), record.directories if kept else ())
    return Prepared(tuple(steps), left, tuple(told))


def _why_keep(item: Item, found: Entry) -> str:
    """Say why something recorded is not to be taken away; empty if it may, "gone" if it is not there."""
    if found.kind is Kind.MISSING:
        return "gone"
    if item.kind == "link":
        return "" if found.target == item.target else "leads elsewhere now; remove it by hand if it is not wanted"
    if found.kind is not Kind.FILE or found.sha256 != item.sha256:
        advice = item.advice or "remove it by hand if it is not wanted"
        return f"was changed since; {advice}"
    return ""


def _removal(item: Item, tree: Tree, told: list[str]) -> Iterator[Step]:
    if not item.saved:
        yield Step("remove", item.path, "")
        return
    if tree.entry(item.saved).kind is Kind.FILE:
        yield Step("restore", item.path, f"from {item.saved}", other=item.saved)
        return
    told.append(f"{tree.shown(item.saved)} is gone: {tree.shown(item.path)} cannot be put back as it was")
    if item.kind == "file":
        yield Step("remove", item.path, "")


def apply(steps: Sequence[Step], tree: Tree) -> None:
    """Do what the steps say, in their order. Raises InstallError."""
    for step in steps:
        try:
            _apply(step, tree)
        except FileNotFoundError as error:
            message = f"{tree.shown(step.path)}: what leads there was removed meanwhile; try again"
            raise InstallError(message) from error


def _apply(step: Step, tree: Tree) -> None:
    if step.action == "directory":
        tree.make_directory(step.path, step.mode)
    elif step.action in ("write", "replace", "edit", "save"):
        tree.write(step.path, step.content, step.mode, step.owner)
    elif step.action == "mode":
        tree.set_mode(step.path, step.mode)
    elif step.action == "link":
        tree.link(step.path, step.other)
    elif step.action == "remove":
        tree.remove(step.path)
    elif step.action == "restore":
        tree.rename(step.other, step.path)
    elif step.action == "rmdir":
        tree.remove_directory(step.path)
