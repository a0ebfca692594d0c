# SPDX-License-Identifier: Apache-2.0
"""Containers with a policy in force, registered with the kernel engine directly: no agent stands between.

A test of the engine must be able to give it any rules and any moment of registration. The order is the one a hook
gives: the runtime creates the container, the workload is registered, the program starts.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING

from guest_agent.engines.bpf_lsm.engine import cgroup_root
from guest_agent.engines.bpf_lsm.plan import compile_table, fingerprint
from guest_agent.engines.port import EnforcedWorkload, GateSettings
from hauberk.policy.rules import Action, ObjectKind, Origin, Rule, RuleSet, Section, implied_rules

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from guest_agent.engines.bpf_lsm.engine import BpfLsmEngine
    from tests.vm.containers.bundle import Bundle
    from tests.vm.containers.runtime import Runtime

DIGEST = "ab" * 32
RUNTIMES = ("/usr/sbin/runc", "/usr/bin/crun")
ORIGIN = Origin("test", "spec")
TRUSTED = ("/opt/sources/trusted", "/opt/sources/dynamic")
PROGRAMS = (
    *("/opt/attacks/attacks", "/opt/sources/other", "/opt/sources/prober-a", "/opt/sources/prober-b", *TRUSTED),
    *(f"/usr/bin/{name}" for name in ("busybox", "cat", "dash", "everyday", "ls", "prober", "sleep", "true")),
)
_numbers = itertools.count(1)


def gate(
    mode: str = "sealed", *, helpers: tuple[str, ...] = (), kernel_helpers: tuple[str, ...] = ("/sbin/modprobe",)
) -> GateSettings:
    """Give the settings of a guest without a service manager, this process being the agent."""
    assert mode in {"sealed", "host"}
    return GateSettings(
        "sealed" if mode == "sealed" else "host", RUNTIMES, helpers, kernel_helpers, ("/",), os.getpid()
    )


def file_rule(  # noqa: PLR0913 - the parts of a rule
    value: str,
    action: Action,
    *,
    sources: tuple[str, ...] = (),
    recursive: bool = True,
    read_only: bool = False,
    kind: ObjectKind | None = None,
) -> Rule:
    """Make a file rule; a value that ends with a slash is a directory."""
    directory = value.endswith("/")
    return Rule(
        Section.FILE,
        kind or (ObjectKind.DIRECTORY if directory else ObjectKind.PATH),
        value,
        action,
        ORIGIN,
        recursive=directory and recursive,
        read_only=read_only,
        sources=sources,
    )


def program_rule(value: str, action: Action) -> Rule:
    """Make a process rule for one program."""
    return Rule(Section.PROCESS, ObjectKind.PATH, value, action, ORIGIN)


def rule_set(rules: Iterable[Rule]) -> RuleSet:
    """Add the rules that follow."""
    rules = tuple(rules)
    return RuleSet(rules + implied_rules(rules))


def protect(values: Iterable[str], *, kind: ObjectKind | None = None) -> list[Rule]:
    """Deny something to all but the trusted sources."""
    rules: list[Rule] = []
    for value in values:
        rules += [
            file_rule(value, Action.BLOCK, kind=kind),
            file_rule(value, Action.ALLOW, sources=TRUSTED, kind=kind),
        ]
    return rules


def cgroup_path(pid: int) -> str:
    """Tell the cgroup of a process by its path below the hierarchy's root."""
    return next(
        line.split("::", 1)[1]
        for line in Path(f"/proc/{pid}/cgroup").read_text("utf-8").splitlines()
        if line.startswith("0::")
    )


def cgroup_id(pid: int) -> int:
    """Tell the cgroup of a process by the id the kernel knows it by."""
    return (cgroup_root() / cgroup_path(pid).lstrip("/")).stat().st_ino


def namespace_id(pid: int) -> int:
    """Tell the mount namespace of a process."""
    return Path(f"/proc/{pid}/ns/mnt").stat().st_ino


def workload(name: str, pid: int, rules: RuleSet) -> EnforcedWorkload:
    """Describe the container of a process to the engine, with an id never used before."""
    return EnforcedWorkload(
        next(_numbers), name, cgroup_id(pid), namespace_id(pid), compile_table(rules).blob, fingerprint(rules)
    )


@contextlib.contextmanager
def container(
    engine: BpfLsmEngine | None,
    runtime: Runtime,
    name: str,
    bundle: Bundle,
    rules: RuleSet = RuleSet(()),  # noqa: B008
) -> Iterator[tuple[int, int]]:
    """Create, register, start; give the pid of its init and its workload id. Without engine nobody enforces.

    At the end container, workload and bundle are gone whatever happened.
    """
    identifier = 0
    try:
        runtime.create(name, bundle).check()
        pid = int((bundle.directory / "pid").read_text("utf-8"))
        if engine is not None:
            described = workload(name, pid, rules)
            engine.register(described)
            identifier = described.workload_id
        runtime.start(name).check()
        yield pid, identifier
    finally:
        runtime.delete(name)
        if engine is not None and identifier:
            engine.release(identifier)
        bundle.remove()
