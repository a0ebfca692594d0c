# SPDX-License-Identifier: Apache-2.0
"""What the agent reads of a container itself: its configuration, and where each rule's path leads in its root.

The announcement names a bundle directory; its ``config.json`` is opened once and judged by that descriptor. From it
come the annotations and the root's path. The root is then opened through ``/proc/PID/root``: the parked init has its
own mount namespace but has not pivoted yet, so the container's root stands at its configured path, as a mount. From
that descriptor on no path is looked up from outside again.

A container that runs already is looked at once more when a new bundle comes (:func:`gather_running`): by then what is
found there may be the workload's own work, and is used only for rules that refuse
(:mod:`guest_agent.workloads.succession`). Where its root stood is remembered as it was resolved then: in the
container's own root the configured path could lead anywhere, through links the container made.

A protected file may have more names than a policy says: a symbolic link (``hauberk.policy.resolution``), a second
mount of the same file system, a hard link. Each of these becomes one more form of the rules that limit it. What would
take too long to establish refuses the container, because a rule on a guessed name would be a hole.
"""

from __future__ import annotations

import json
import os
import posixpath
import stat
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, NoReturn

from guest_agent.workloads.verification import Machine, VerificationError, is_parked, mount_namespace, unescape
from hauberk.errors import FactsError
from hauberk.policy import globs
from hauberk.policy.resolution import RootResolver, expand
from hauberk.policy.rules import Action, ObjectKind, Rule, RuleSet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from guest_agent.workloads.registry import Identity

MAXIMUM_CONFIG_BYTES: Final = 8 << 20
NETWORK_CAPABILITIES: Final = ("CAP_NET_ADMIN", "CAP_NET_RAW")
"""With the first a workload changes the tables of its namespace, with the second it sends what has no socket of IP."""
MAXIMUM_SEARCHED_ENTRIES: Final = 200_000
"""Most directory entries looked at while searching for the other names of hard-linked files."""
MAXIMUM_ADDED_RULES: Final = 2000
"""Most rules that second names may add in a container that runs: it could make names until no table holds them."""
_USUAL_LINKS: Final = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/var/run", "/var/lock")
"""Directories that images make links of: recorded for bundles to come, whose paths nobody knows yet."""
_WRITABLE_BY_OTHERS: Final = 0o022
_PSEUDO_DIRECTORIES: Final = ("/proc", "/sys", "/dev")
_DIRECTORY_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_DEVICE, _ROOT, _POINT = 2, 3, 4  # fields of /proc/PID/mountinfo, counted from 0


class ConfigError(Exception):
    """The bundle's config.json cannot be used. The message says what was found and expected, never a value of it."""


@dataclass(frozen=True, slots=True)
class BundleConfig:
    """The three things of config.json the agent wants. Arguments and environment are not kept.

    ``root_path`` is absolute, as seen from the runtime's mount namespace. ``network_capabilities`` are those the
    container may have that change a network namespace or pass its rules by.
    """

    root_path: str
    annotations: Mapping[str, str]
    network_capabilities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount: ``root`` is the path within its file system, ``point`` the path within the container."""

    device: str  # "major:minor"
    root: str
    point: str


@dataclass(frozen=True, slots=True)
class WorkloadFacts:
    """The rules as this container's kernel paths need them, and the second names that were found on the way.

    ``forms`` has every path that leads elsewhere than it says, with all it leads to; ``root_path`` is where the
    container's root stands, without a link on the way.
    """

    rule_set: RuleSet
    aliases: tuple[str, ...] = ()
    forms: tuple[tuple[str, tuple[str, ...]], ...] = ()
    root_path: str = ""


def read_config(bundle: str) -> BundleConfig:
    """Read ``config.json`` of a bundle directory.

    Bundle and file must belong to the agent's own user (root) and must not be writable by anybody else. Raises
    ConfigError.
    """
    owner = os.geteuid()
    try:
        directory = os.open(bundle, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        message = f"bundle {bundle} cannot be opened ({error.strerror}), expected a directory the agent can see"
        raise ConfigError(message) from error
    try:
        _check_owner(os.fstat(directory), f"bundle {bundle}", owner)
        data = _read_file(directory, bundle, owner)
    finally:
        os.close(directory)
    return parse_config(data, bundle)


def parse_config(data: bytes, bundle: str) -> BundleConfig:
    """Parse config.json strictly: UTF-8, no duplicate keys, no NaN. Raises ConfigError."""
    try:
        document = json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        problem = str(error) if isinstance(error, json.JSONDecodeError) else type(error).__name__
        message = f"config.json of bundle {bundle} is no strict JSON: {problem}; expected the manager's own"
        raise ConfigError(message) from error
    if not isinstance(document, dict):
        message = f"config.json of bundle {bundle}: found no object, expected one"
        raise ConfigError(message)
    root = document.get("root")
    path = root.get("path") if isinstance(root, dict) else None
    if not isinstance(path, str) or not path or "\0" in path:
        message = f"config.json of bundle {bundle}: root.path is missing or no path, expected one"
        raise ConfigError(message)
    annotations = document.get("annotations")
    if annotations is None:
        annotations = {}
    if not isinstance(annotations, dict) or not all(isinstance(value, str) for value in annotations.values()):
        message = f"config.json of bundle {bundle}: annotations are no object of strings, expected one"
        raise ConfigError(message)
    if not all(map(_whole, (path, *annotations, *annotations.values()))):
        message = f"config.json of bundle {bundle}: half a surrogate pair in root.path or annotations, expected text"
        raise ConfigError(message)
    root_path = posixpath.normpath(posixpath.join(bundle, path))
    return BundleConfig(root_path, annotations, _network_capabilities(document.get("process")))


def _network_capabilities(process: object) -> tuple[str, ...]:
    """Give those of the two capabilities that a process may have; both where the configuration does not say."""
    capabilities = process.get("capabilities") if isinstance(process, dict) else None
    if not isinstance(capabilities, dict):
        return NETWORK_CAPABILITIES
    granted = {str(name).upper() for listed in capabilities.values() if isinstance(listed, list) for name in listed}
    return tuple(name for name in NETWORK_CAPABILITIES if name in granted)


def gather(pid: int, config: BundleConfig, rule_set: RuleSet, machine: Machine) -> WorkloadFacts:
    """Expand a workload's rules to every name their objects have in the container of the parked init ``pid``.

    Raises FactsError, ConfigError or VerificationError; the container must then be refused.
    """
    path = _resolved_root(pid, config.root_path, machine)
    with _container_root(pid, path, machine) as (root, mounts):
        found = _gather(root, mounts, rule_set, lambda _: (), _USUAL_LINKS if rule_set.rules else ())
    return replace(found, root_path=path)


def gather_running(  # noqa: PLR0913, PLR0917 - what is known of the container
    identity: Identity,
    root_path: str,
    rule_set: RuleSet,
    recorded: Callable[[str], tuple[str, ...]],
    machine: Machine,
    managers: tuple[str, ...],
) -> WorkloadFacts:
    """Expand rules that only refuse to every name their objects have now in a container that was registered before.

    ``recorded`` gives the names of the time of registration, which are kept beside those found. ``root_path`` is where
    the root stood then (:attr:`WorkloadFacts.root_path`), which is where it still stands if the container was not
    started yet. Raises FactsError or VerificationError; the container must then be refused everything.
    """
    with _present_root(identity, root_path, machine, managers) as (root, mounts):
        found = _gather(root, mounts, rule_set, recorded)
    if len(found.rule_set.rules) > len(rule_set.rules) + MAXIMUM_ADDED_RULES:
        message = (
            f"found {len(found.rule_set.rules)} forms of {len(rule_set.rules)} rules, expected at most "
            f"{MAXIMUM_ADDED_RULES} more: the container made many second names; start it again"
        )
        raise FactsError(message)
    return found


def _gather(
    root: int,
    mounts: MountTable,
    rule_set: RuleSet,
    recorded: Callable[[str], tuple[str, ...]],
    remembered: tuple[str, ...] = (),
) -> WorkloadFacts:
    with RootResolver(root) as resolver:
        aliases: dict[str, None] = {}
        known: dict[str, tuple[str, ...]] = {}

        def every_form(path: str) -> tuple[str, ...]:
            result = dict.fromkeys((*recorded(path), *resolver.resolve(path)))
            for form in tuple(result):
                result.update(dict.fromkeys(mounts.aliases(form)))
            return tuple(result)

        def forms(path: str) -> tuple[str, ...]:
            result = known[path] = every_form(path)
            for form in result:
                aliases.update(dict.fromkeys(mounts.aliases(form)))
            return result

        expanded = expand(rule_set, forms)
        extra = mounts.rules_below(expanded)
        expanded = _with(expanded, extra)
        linked = [(entry.device, entry.inode, entry.path) for entry in resolver.hard_links(expanded)]
        names = _other_names(root, {(device, inode) for device, inode, _ in linked}) if linked else {}
        links = _link_rules(expanded, linked, names)
        aliases.update(dict.fromkeys(rule.value for rule in (*extra, *links)))
        known |= {path: every_form(path) for path in remembered if path not in known}
    elsewhere = tuple((path, found) for path, found in known.items() if found != (path,))
    return WorkloadFacts(_with(expanded, links), tuple(aliases), elsewhere)


def _with(rule_set: RuleSet, more: tuple[Rule, ...]) -> RuleSet:
    """Add rules, each once. Mostly there are none, and hashing a thousand rules is not free."""
    return replace(rule_set, rules=tuple(dict.fromkeys((*rule_set.rules, *more)))) if more else rule_set


class MountTable:
    """The mounts of one container, by the names they have inside it."""

    def __init__(self, mounts: tuple[Mount, ...]) -> None:
        """Take mounts in the order of mountinfo: a later one at the same point hides the earlier."""
        self.mounts = mounts
        self._at = {mount.point: mount for mount in mounts}
        devices = [mount.device for mount in mounts]
        self._shared = frozenset(device for device in devices if devices.count(device) > 1)

    @classmethod
    def parse(cls, mountinfo: str, root_path: str) -> MountTable:
        """Read the mounts at and below ``root_path`` from a parked init's mountinfo.

        Raises FactsError when nothing is mounted at ``root_path``: then it is not the container's root.
        """
        found: list[Mount] = []
        for line in mountinfo.splitlines():
            columns = line.partition(" - ")[0].split(" ")
            if len(columns) <= _POINT:
                continue
            point = _inside(unescape(columns[_POINT]), root_path)
            if point is not None:
                found.append(Mount(columns[_DEVICE], unescape(columns[_ROOT]), point))
        if not any(mount.point == "/" for mount in found):
            message = (
                f"nothing is mounted at {root_path} in the mount namespace of the container's init, expected its root "
                "file system; the bundle's root.path is not what the runtime uses, or the init is elsewhere"
            )
            raise FactsError(message)
        return cls(tuple(found))

    def aliases(self, path: str) -> tuple[str, ...]:
        """Give the other names of ``path`` that further mounts of the same file system make."""
        cover = self._covering(path)
        if cover is None or cover.device not in self._shared:
            return ()
        within = _join(cover.root, _below(path, cover.point) or "")
        found: dict[str, None] = {}
        for mount in self.mounts:
            rest = _below(within, mount.root) if mount.device == cover.device else None
            if rest is not None and (name := _join(mount.point, rest)) != path:
                found[name] = None
        return tuple(found)

    def rules_below(self, rule_set: RuleSet) -> tuple[Rule, ...]:
        """Give rules for mounts that show a part of a ruled directory under a second name.

        Raises FactsError for a limiting pattern whose second form cannot be written as one.
        """
        found: dict[Rule, None] = {}
        for rule in rule_set.rules:
            if rule.kind is ObjectKind.DIRECTORY:
                top, rest = rule.value.rstrip("/") or "/", ""
            elif rule.kind is ObjectKind.PATTERN:
                top, rest = globs.literal_directory(rule.value)
            else:
                continue
            for point, part in self._parts(top or "/"):
                covered = _below(point, top or "/") is not None
                found.update(dict.fromkeys(_second_form(rule, rest, point, part, covered=covered)))
        return tuple(found)

    def _covering(self, path: str) -> Mount | None:
        """Find the mount that shows ``path``: the deepest point above it, the last of several at one point."""
        while path not in self._at and path not in ("/", ""):
            path = path.rpartition("/")[0] or "/"
        return self._at.get(path)

    def _parts(self, path: str) -> Iterator[tuple[str, str]]:
        """Give (mount point, path of it below ``path``) of mounts that show only a part of ``path``, elsewhere."""
        cover = self._covering(path)
        if cover is None:
            return
        within = _join(cover.root, _below(path, cover.point) or "")
        for mount in self.mounts:
            part = _below(mount.root, within) if mount.device == cover.device else None
            if part and mount.point != _join(path, part):
                yield mount.point, part


def _second_form(rule: Rule, rest: str, point: str, part: str, *, covered: bool) -> Iterator[Rule]:
    """Write a directory's or pattern's rule for a mount at ``point`` that shows ``part`` of what lies below it."""
    if rule.kind is ObjectKind.DIRECTORY:
        if rule.recursive:
            if not covered:
                yield replace(rule, value=point.rstrip("/") + "/")
        elif "/" not in part and _limiting(rule):
            yield replace(rule, kind=ObjectKind.PATH, value=point)
        return
    if not _limiting(rule):
        return  # without a second form an Allow rule grants less, not more
    if rest.startswith("**"):
        if not covered:
            yield replace(rule, value=f"{globs.escape(point.rstrip('/'))}/{{**,}}{rest[2:]}")
        return
    message = (
        f"a mount at {point} shows part of what {rule.origin.policy} {rule.origin.field} protects by the pattern "
        f"{rule.value}, under a second name; name the directory, or end the literal part of the pattern with **"
    )
    raise FactsError(message)


def _link_rules(
    rule_set: RuleSet, linked: list[tuple[int, int, str]], names: Mapping[tuple[int, int], tuple[str, ...]]
) -> tuple[Rule, ...]:
    """Copy the limiting rules of each hard-linked file to its other names."""
    found: dict[Rule, None] = {}
    for device, inode, path in linked:
        for rule in rule_set.rules:
            if rule.kind is ObjectKind.EXECNAME or not _limiting(rule) or not globs.matches(rule, os.fsencode(path)):
                continue
            for name in names[device, inode]:
                if not globs.matches(rule, os.fsencode(name)):
                    found[replace(rule, kind=ObjectKind.PATH, value=name, recursive=False)] = None
    return tuple(found)


def _other_names(root: int, wanted: set[tuple[int, int]]) -> dict[tuple[int, int], tuple[str, ...]]:
    """Search a container's root for every name of some files. Raises FactsError beyond 200,000 entries."""
    found: dict[tuple[int, int], list[str]] = {key: [] for key in wanted}
    budget = MAXIMUM_SEARCHED_ENTRIES
    pending = [""]
    while pending:
        directory = pending.pop()
        budget -= directory.count("/")  # each is opened anew from the root: depth costs as much as breadth
        for entry in _entries(root, directory):
            budget -= 1
            if budget < 0:
                message = (
                    f"found more than {MAXIMUM_SEARCHED_ENTRIES} directory entries while searching for other names "
                    f"of {len(wanted)} hard-linked files that rules limit, expected fewer"
                )
                raise FactsError(message)
            path = f"{directory}/{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                if path not in _PSEUDO_DIRECTORIES:
                    pending.append(path)
            elif entry.is_file(follow_symlinks=False):
                status = entry.stat(follow_symlinks=False)
                if status.st_nlink > 1 and (status.st_dev, status.st_ino) in found:
                    found[status.st_dev, status.st_ino].append(path)
    return {key: tuple(names) for key, names in found.items()}


def _entries(root: int, directory: str) -> Iterator[os.DirEntry[str]]:
    descriptor = _open_below(root, directory)
    try:
        with os.scandir(descriptor) as entries:
            yield from entries
    finally:
        os.close(descriptor)


def _open_below(root: int, path: str) -> int:
    """Open a directory below ``root`` without following a link anywhere. Raises FactsError."""
    descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)
    try:
        for component in filter(None, path.split("/")):
            following = os.open(component, _DIRECTORY_FLAGS, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = following
    except OSError as error:
        os.close(descriptor)
        message = f"directory {path} cannot be opened ({error.strerror}), expected to look into it; try again"
        raise FactsError(message) from error
    return descriptor


def _resolved_root(pid: int, root_path: str, machine: Machine) -> str:
    """Tell where a configured root path leads for the parked init, whose own root is its runtime's."""
    outer = _process_root(pid, machine)
    try:
        with RootResolver(outer) as resolver:
            return resolver.resolve(root_path)[-1]
    finally:
        os.close(outer)


@contextmanager
def _container_root(pid: int, path: str, machine: Machine) -> Iterator[tuple[int, MountTable]]:
    """Open the container's root as the parked init sees it, following no link, and read the mounts below it."""
    outer = _process_root(pid, machine)
    try:
        root = _open_below(outer, path)
    finally:
        os.close(outer)
    try:
        yield root, MountTable.parse(_mountinfo(pid, machine), path)
    finally:
        os.close(root)


def _process_root(pid: int, machine: Machine) -> int:
    try:
        return os.open(machine.proc_root / str(pid) / "root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        message = (
            f"the root of process {pid} cannot be opened ({error.strerror}); the container may have ended, or the "
            "agent lacks CAP_SYS_PTRACE"
        )
        raise VerificationError(message) from error


@contextmanager
def _present_root(
    identity: Identity, root_path: str, machine: Machine, managers: tuple[str, ...]
) -> Iterator[tuple[int, MountTable]]:
    """Open a registered container's root, whether its init has gone there yet or not.

    A workload with rules can neither mount nor chroot, so its init's root is that of the mount namespace. Should the
    init go there between the question and the opening, ``root_path`` names something in the container: following no
    link, that is a directory of the container's without a mount, or none at all, and is not taken.
    """
    pid = identity.pid
    if pid == 0:
        message = "the container's init is not known any more, expected to look at its root; start the container again"
        raise VerificationError(message)
    with ExitStack() as stack:
        found: tuple[int, MountTable] | None = None
        if is_parked(pid, machine, managers):
            with suppress(FactsError):  # it went there meanwhile
                found = stack.enter_context(_container_root(pid, root_path, machine))
        if found is None:
            root = _process_root(pid, machine)
            stack.callback(os.close, root)
            found = root, MountTable.parse(_mountinfo(pid, machine), "/")
        if mount_namespace(pid, machine) != identity.mount_namespace:
            message = f"process {pid} is in another mount namespace than was registered; the container has ended"
            raise VerificationError(message)
        yield found


def _mountinfo(pid: int, machine: Machine) -> str:
    try:
        return os.fsdecode((machine.proc_root / str(pid) / "mountinfo").read_bytes())
    except OSError as error:
        message = f"the mounts of process {pid} cannot be read ({error.strerror}); the process may have ended"
        raise VerificationError(message) from error


def _read_file(directory: int, bundle: str, owner: int) -> bytes:
    try:
        descriptor = os.open(
            "config.json", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory
        )
    except OSError as error:
        message = f"config.json of bundle {bundle} cannot be opened ({error.strerror}), expected a regular file"
        raise ConfigError(message) from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            message = f"config.json of bundle {bundle} is no regular file, expected one"
            raise ConfigError(message)
        _check_owner(status, f"config.json of bundle {bundle}", owner)
        data = file.read(MAXIMUM_CONFIG_BYTES + 1)
    if len(data) > MAXIMUM_CONFIG_BYTES:
        message = f"config.json of bundle {bundle} is larger than {MAXIMUM_CONFIG_BYTES} bytes, expected less"
        raise ConfigError(message)
    return data


def _check_owner(status: os.stat_result, what: str, owner: int) -> None:
    if status.st_uid != owner:
        message = f"{what} belongs to uid {status.st_uid}, expected {owner}: whoever owns it could choose the policy"
        raise ConfigError(message)
    if stat.S_IMODE(status.st_mode) & _WRITABLE_BY_OTHERS:
        message = f"{what} has mode {stat.S_IMODE(status.st_mode):04o}, expected one that only its owner can write"
        raise ConfigError(message)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _duplicate()
    return members


def _whole(text: str) -> bool:
    """Whether text can be written as UTF-8: as a path, in a record, in an alert."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _duplicate() -> ValueError:
    return json.JSONDecodeError("a key stands twice in one object", "", 0)


def _constant(name: str) -> NoReturn:
    message = f"{name} is no JSON"
    raise json.JSONDecodeError(message, "", 0)


def _limiting(rule: Rule) -> bool:
    """Whether the rule denies, audits or narrows, so that a second name would be a way round it."""
    return rule.action is not Action.ALLOW or bool(rule.sources) or rule.read_only or rule.owner_only


def _below(path: str, top: str) -> str | None:
    """Give ``path`` relative to ``top`` ("" for itself), None when it lies elsewhere."""
    if path == top:
        return ""
    prefix = top.rstrip("/") + "/"
    return path[len(prefix) :] if path.startswith(prefix) else None


def _inside(point: str, root_path: str) -> str | None:
    rest = _below(point, root_path)
    return None if rest is None else "/" + rest


def _join(top: str, rest: str) -> str:
    return f"{top.rstrip('/')}/{rest}" if rest else top
