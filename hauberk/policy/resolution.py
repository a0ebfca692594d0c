# SPDX-License-Identifier: Apache-2.0
"""What the paths of a policy lead to in one root file system.

A policy says ``/bin/sh``; the kernel sees ``/usr/bin/dash``. Before a plan is made, each rule is therefore copied to
every path it may stand for: as written, each step of its chain of symbolic links, and where the chain ends. All
copies keep the rule's origin.

:class:`RootResolver` walks the file system itself, one component at a time, holding directories by descriptors that
do not follow links (``O_PATH | O_NOFOLLOW``): a link in an image, absolute or full of ``..``, never leads out of that
image's root, and a directory exchanged for a link meanwhile is noticed. Links inside ``/proc`` are not followed:
where they lead depends on who asks.

Whatever cannot be established raises :class:`hauberk.errors.FactsError`; a rule on a guessed path would be a hole.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import stat
from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple, Self

from hauberk.errors import FactsError
from hauberk.policy import globs
from hauberk.policy.rules import PATH_KINDS, Action, ObjectKind, Rule, RuleSet, SyscallMatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from hauberk.policy.rules import DeviceMatch, PeerMatch

    Match = DeviceMatch | PeerMatch | SyscallMatch | None

MAXIMUM_LINKS = 40
"""Most symbolic links followed for one path, as in the kernel."""
MAXIMUM_ENTRIES = 100_000
"""Most directory entries looked at when searching for hard links of one rule set."""
_MAXIMUM_OPEN_DIRECTORIES = 128
_MAXIMUM_CACHED_ENTRIES = 65_536
_DIRECTORY_FLAGS = os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC
_PSEUDO_FILE_SYSTEMS = (b"/proc/", b"/sys/")


class HardLink(NamedTuple):
    """A regular file that has more than one name, found at a path some rule limits."""

    device: int
    inode: int
    path: str


def _unique(paths: Iterator[str] | list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(paths))


def expand(rule_set: RuleSet, resolve: Callable[[str], tuple[str, ...]]) -> RuleSet:
    """Copy each rule to every path its object may stand for, and widen its sources likewise.

    ``resolve`` gives all forms of an absolute path (see :meth:`RootResolver.resolve`). Of a pattern, the directory
    before the first wildcard is resolved; what a wildcard matches is compared with the kernel's path as it is. So are
    the paths and directories of rules about system calls. What names no file by its path stays as it is.
    """
    known: dict[str, tuple[str, ...]] = {}

    def forms(path: str) -> tuple[str, ...]:
        if path not in known:
            known[path] = resolve(path)
        return known[path]

    expanded: dict[Rule, None] = {}
    for rule in rule_set.rules:
        sources = _unique([form for source in rule.sources for form in forms(source)])
        for value in _values(rule, forms):
            for match in _matches(rule, forms):
                same = value == rule.value and sources == rule.sources and match == rule.match
                expanded[rule if same else dataclasses.replace(rule, value=value, sources=sources, match=match)] = None
    return dataclasses.replace(rule_set, rules=tuple(expanded))


def _values(rule: Rule, forms: Callable[[str], tuple[str, ...]]) -> tuple[str, ...]:
    match rule.kind:
        case ObjectKind.PATH:
            return _unique([rule.value, *forms(rule.value)])
        case ObjectKind.DIRECTORY:
            directory = rule.value.rstrip("/") or "/"
            return _unique([rule.value, *(form.rstrip("/") + "/" for form in forms(directory))])
        case ObjectKind.PATTERN:
            directory, rest = globs.literal_directory(rule.value)
            if directory in ("", "/"):
                return (rule.value,)
            others = (form for form in forms(directory) if form != directory)
            return _unique([rule.value, *(globs.escape(form.rstrip("/")) + "/" + rest for form in others)])
        case _:
            return (rule.value,)


def _matches(rule: Rule, forms: Callable[[str], tuple[str, ...]]) -> tuple[Match, ...]:
    """Give a rule's match once for each form of the path that system calls are about."""
    match = rule.match
    if not isinstance(match, SyscallMatch):
        return (match,)
    directories = tuple(
        dict.fromkeys(
            (form.rstrip("/") + "/", recursive)
            for directory, recursive in match.source_directories
            for form in (directory, *forms(directory.rstrip("/") or "/"))
        )
    )
    if match.path is None:
        return (dataclasses.replace(match, source_directories=directories),)
    slash = "/" if match.path.endswith("/") else ""
    paths = _unique([match.path, *(form.rstrip("/") + slash for form in forms(match.path.rstrip("/") or "/"))])
    return tuple(dataclasses.replace(match, path=path, source_directories=directories) for path in paths)


class _Entry(NamedTuple):
    """What stands at a path whose directory is fully resolved. ``target`` is set for a symbolic link."""

    kind: str  # "directory", "link", "other", "missing"
    target: bytes = b""
    device: int = 0
    inode: int = 0
    links: int = 0


class RootResolver:
    """Resolves paths inside one root file system and never outside of it.

    ``root`` is a path, or the descriptor of an open directory (duplicated; the caller keeps its own). The view is
    taken while the resolver lives and cached, so that a thousand rules cost few system calls: make one per
    registration. Use it as a context manager.
    """

    def __init__(self, root: str | os.PathLike[str] | int) -> None:
        """Open the root. Raises :class:`FactsError` where there is no directory."""
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            if isinstance(root, int):
                self._root = os.open(".", flags, dir_fd=root)
            else:
                self._root = os.open(root, flags)
        except OSError as error:
            message = (
                f"found no directory to use as root file system at {root!r} ({error.strerror}), expected one. "
                "Check the bundle's root path"
            )
            raise FactsError(message) from error
        self._open: OrderedDict[bytes, int] = OrderedDict()
        self._entries: dict[bytes, _Entry] = {}

    def __enter__(self) -> Self:
        """Give the resolver itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close every descriptor."""
        self.close()

    def close(self) -> None:
        """Close every descriptor. May be called more than once."""
        while self._open:
            os.close(self._open.popitem()[1])
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    def resolve(self, path: str) -> tuple[str, ...]:
        """Give every path the kernel may see for ``path``: first as written, then after each link, last the target.

        What does not exist (yet) is taken literally below the part that does. Raises :class:`FactsError` for more
        than 40 links, or when something cannot be looked at.
        """
        octets = globs.to_bytes(path)
        if not octets.startswith(b"/"):
            message = f"found the relative path {path!r}, expected an absolute one. Write it from the root"
            raise FactsError(message)
        pending = _components(octets)[::-1]
        forms = [b"/" + b"/".join(reversed(pending))]
        resolved: list[bytes] = []
        links = 0
        known = 0  # so many components of ``resolved`` are directories that exist
        while pending:
            component = pending.pop()
            if component == b"..":
                del resolved[-1:]
                known = min(known, len(resolved))
                continue
            entry = self._entry(resolved, component) if known == len(resolved) else _Entry("missing")
            if entry.kind != "link":
                known += entry.kind == "directory"
                resolved.append(component)
                if known < len(resolved) and b".." not in pending:
                    resolved += reversed(pending)  # below what does not exist there is nothing to look at
                    break
                continue
            links += 1
            if links > MAXIMUM_LINKS:
                message = (
                    f"found more than {MAXIMUM_LINKS} symbolic links on the way of {path!r}, expected a path that "
                    "leads somewhere. Remove the loop from the image, or the rule from the policy"
                )
                raise FactsError(message)
            if entry.target.startswith(b"/"):
                resolved, known = [], 0
            pending += _components(entry.target)[::-1]
            form = _lexical(resolved, pending)
            if form is not None:
                forms.append(form)
        forms.append(b"/" + b"/".join(resolved))
        if not links and forms[0] == forms[1]:
            return (globs.to_text(forms[0]),)
        return tuple(dict.fromkeys(globs.to_text(form) for form in forms))

    def hard_links(self, rule_set: RuleSet) -> tuple[HardLink, ...]:
        """Find files that have another name although a rule of ``rule_set`` (expanded) limits their path.

        Looked at: FILE and PROCESS rules that deny or limit, with a path, directory or pattern below "/". Rules on
        "/" itself, executable names and the implied rules on library directories are not: they would mean reading the
        whole image. ``/proc`` and ``/sys`` have no hard links. Raises :class:`FactsError` naming the rule at which
        more than 100,000 entries would have to be looked at.
        """
        found: dict[HardLink, None] = {}
        search = _Search(self)
        for rule in rule_set.rules:
            if not _limits(rule):
                continue
            if rule.kind is ObjectKind.PATH:
                entry = self._entry_at(globs.to_bytes(rule.value))
                if entry.kind == "other" and entry.links > 1:
                    found[HardLink(entry.device, entry.inode, rule.value)] = None
            elif not rule.implied:
                found.update(dict.fromkeys(search.below(rule)))
        return tuple(found)

    def owner_of(self, path: str) -> int | None:
        """Give the uid of the owner of a resolved path; None where there is nothing.

        Raises :class:`FactsError` when it cannot be looked at.
        """
        octets = globs.to_bytes(path)
        if self._entry_at(octets).kind == "missing":
            return None
        parent, _, name = octets.rstrip(b"/").rpartition(b"/")
        try:
            return os.stat(name or b".", dir_fd=self._directory(parent or b"/"), follow_symlinks=False).st_uid
        except OSError as error:
            raise _unreadable(octets, error) from error

    def listing(self, directory: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
        """Give path and status of each entry of a resolved directory; nothing where there is none."""
        if self._entry_at(directory).kind != "directory":
            return
        descriptor = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._directory(directory))
        try:
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    yield directory + b"/" + globs.to_bytes(entry.name), entry.stat(follow_symlinks=False)
        except OSError as error:
            raise _unreadable(directory, error) from error
        finally:
            os.close(descriptor)

    def _entry_at(self, path: bytes) -> _Entry:
        """Look at a path none of whose directories may be a link.

        Anything else counts as missing, as another form covers it.
        """
        resolved: list[bytes] = []
        components = _components(path)
        if not components:
            return _Entry("directory")
        for component in components[:-1]:
            if self._entry(resolved, component).kind != "directory":
                return _Entry("missing")
            resolved.append(component)
        return self._entry(resolved, components[-1])

    def _entry(self, parents: list[bytes], name: bytes) -> _Entry:
        directory = b"/" + b"/".join(parents)
        path = directory.rstrip(b"/") + b"/" + name
        cached = self._entries.get(path)
        if cached is None:
            cached = self._look(directory, name, path)
            if len(self._entries) < _MAXIMUM_CACHED_ENTRIES:
                self._entries[path] = cached
        return cached

    def _look(self, directory: bytes, name: bytes, path: bytes) -> _Entry:
        parent = self._directory(directory)
        try:
            descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
                return _Entry("missing")
            raise _unreadable(path, error) from error
        keep = False
        try:
            status = os.fstat(descriptor)
            if stat.S_ISDIR(status.st_mode):
                self._remember(path, descriptor)
                keep = True
                return _Entry("directory")
            if stat.S_ISLNK(status.st_mode) and not (path + b"/").startswith(b"/proc/"):
                return _Entry("link", os.readlink(b"", dir_fd=descriptor))
            links = status.st_nlink if stat.S_ISREG(status.st_mode) else 0
            return _Entry("other", b"", status.st_dev, status.st_ino, links)
        except OSError as error:
            raise _unreadable(path, error) from error
        finally:
            if not keep:
                os.close(descriptor)

    def _directory(self, path: bytes) -> int:
        """Give a descriptor of a directory that was found to be one; valid until the next call."""
        if path == b"/":
            return self._root
        descriptor = self._open.get(path)
        if descriptor is not None:
            self._open.move_to_end(path)
            return descriptor
        descriptor = self._root
        owned = False
        try:
            for component in _components(path):
                following = os.open(component, _DIRECTORY_FLAGS, dir_fd=descriptor)
                if owned:
                    os.close(descriptor)
                descriptor, owned = following, True
        except OSError as error:
            if owned:
                os.close(descriptor)
            raise _unreadable(path, error) from error
        self._remember(path, descriptor)
        return descriptor

    def _remember(self, path: bytes, descriptor: int) -> None:
        previous = self._open.pop(path, None)
        if previous is not None:
            os.close(previous)
        self._open[path] = descriptor
        while len(self._open) > _MAXIMUM_OPEN_DIRECTORIES:
            os.close(self._open.popitem(last=False)[1])


class _Search:
    """One search for hard links: what was listed already, and how much more may be."""

    def __init__(self, resolver: RootResolver) -> None:
        self.resolver = resolver
        self.visited = 0
        self.listings: dict[bytes, tuple[list[bytes], list[HardLink]]] = {}

    def below(self, rule: Rule) -> Iterator[HardLink]:
        top, recursive = _walk_of(rule)
        pending = [] if top == b"/" else [top]
        while pending:
            directory = pending.pop()
            if any((directory + b"/").startswith(pseudo) for pseudo in _PSEUDO_FILE_SYSTEMS):
                continue
            directories, linked = self.listing(directory, rule)
            if recursive:
                pending += directories
            yield from (link for link in linked if globs.matches(rule, link.path))

    def listing(self, directory: bytes, rule: Rule) -> tuple[list[bytes], list[HardLink]]:
        """Read one directory once: its directories, and its regular files with more than one name."""
        if directory in self.listings:
            return self.listings[directory]
        directories: list[bytes] = []
        linked: list[HardLink] = []
        for path, status in self.resolver.listing(directory):
            self.visited += 1
            if self.visited > MAXIMUM_ENTRIES:
                message = (
                    f"found more than {MAXIMUM_ENTRIES} directory entries below {rule.value!r} and the rules before, "
                    f"expected fewer: rule {rule.origin.policy} {rule.origin.field} cannot be checked for hard links. "
                    "Name a smaller directory"
                )
                raise FactsError(message)
            if stat.S_ISDIR(status.st_mode):
                directories.append(path)
            elif stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
                linked.append(HardLink(status.st_dev, status.st_ino, globs.to_text(path)))
        self.listings[directory] = directories, linked
        return directories, linked


def _components(path: bytes) -> list[bytes]:
    return [component for component in path.split(b"/") if component not in (b"", b".")]


def _lexical(resolved: list[bytes], pending: list[bytes]) -> bytes | None:
    """Join a resolved directory and what remains (last first); None where ``..`` follows a name that may be a link."""
    result = list(resolved)
    named = False
    for component in reversed(pending):
        if component != b"..":
            result.append(component)
            named = True
        elif named:
            return None
        else:
            del result[-1:]
    return b"/" + b"/".join(result)


def _limits(rule: Rule) -> bool:
    """Whether the rule denies, audits or narrows something, so that a second name of the file would matter."""
    if rule.kind is ObjectKind.EXECNAME or rule.kind not in PATH_KINDS:
        return False
    return rule.action is not Action.ALLOW or rule.sourced or rule.conditional


def _walk_of(rule: Rule) -> tuple[bytes, bool]:
    """Give the directory below which a DIRECTORY or PATTERN rule matches, and whether below its children too."""
    if rule.kind is ObjectKind.DIRECTORY:
        return globs.to_bytes(rule.value.rstrip("/") or "/"), rule.recursive
    directory, rest = globs.literal_directory(rule.value)
    return globs.to_bytes(directory or "/"), "/" in rest or "**" in rest


def _unreadable(path: bytes, error: OSError) -> FactsError:
    return FactsError(
        f"found {globs.to_text(path)!r} unreadable or changed meanwhile ({error.strerror}), expected to look at it. "
        "Give the agent access to the root file system, and start the container again"
    )
