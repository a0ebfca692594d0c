# SPDX-License-Identifier: Apache-2.0
"""The engine puts a successor's rules in force under running tasks: at one instant, and each task keeps its source.

Tasks are asked through a pipe, so that the very same task answers before and after: a prober that was started under the
old rules is never executed again. Source numbers of the two tables differ on purpose.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from guest_agent.engines.bpf_lsm.engine import BpfLsmEngine, cgroup_root
from guest_agent.engines.bpf_lsm.plan import compile_table, fingerprint, source_of
from guest_agent.engines.port import EnforcedWorkload, EngineError, SuccessorRecord
from hauberk.policy.rules import Action, RuleSet, Section
from tests.vm.containers import bundle as oci
from tests.vm.containers import enforced, rootfs
from tests.vm.containers.asker import DENIED, Asker
from tests.vm.containers.enforced import cgroup_path, file_rule
from tests.vm.containers.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.vm.containers.bundle import Bundle

PROGRAMS = Path(".cache/containers")
A, B, PLAIN = "/opt/sources/prober-a", "/opt/sources/prober-b", "/usr/bin/prober"
LONG_NAME = "/srv/" + "/".join("n" * 200 for _ in range(2)) + "/prober"
SECRET, HOSTS, PASSWD = "/srv/secrets/app/prod/key", "/etc/hosts", "/etc/passwd"
OPEN = file_rule("/", Action.ALLOW)

# A alone reads the secret. In the table of the first rules A is source 1, in that of the second source 2.
FIRST = enforced.rule_set(
    [OPEN, file_rule("/srv/secrets/", Action.BLOCK), file_rule("/srv/secrets/", Action.ALLOW, sources=(A,))]
)
SECOND = enforced.rule_set(
    [
        *FIRST.rules,
        file_rule(HOSTS, Action.BLOCK),
        file_rule(PASSWD, Action.BLOCK, sources=(B,)),
        file_rule(PASSWD, Action.BLOCK, sources=("/opt/another",)),
    ]
)
NOTHING = RuleSet((file_rule("/", Action.BLOCK), replace(file_rule("/", Action.BLOCK), section=Section.PROCESS)))
THIRD = enforced.rule_set([OPEN, file_rule(PASSWD, Action.BLOCK, sources=(PLAIN,))])

# What `network` tries and a packet filter has nothing against, and how the rest is told.
INNOCENT = (
    "tcp", "udp6", "local", "netlink", "listing", "other-cgroup-local", "cgroup-below", "received-own",
    "local-file-system",
)  # fmt: skip
HAND_OVER = """\
import socket, sys
listener, given = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_INET)
listener.bind(sys.argv[1])
listener.listen()
print("ready", flush=True)
while True:
    with listener.accept()[0] as connection:
        socket.send_fds(connection, [b"."], [given.fileno()])
"""
TOLD = {
    ("network", "net_admin"), ("network", "net_raw"), ("network", "socket"), ("network", "receive"),
    ("mount", "file_system"),
}  # fmt: skip

_numbers = itertools.count(1)


class Container(NamedTuple):
    """A running container under the engine, and how it is registered."""

    name: str
    bundle: Bundle
    workload: EnforcedWorkload


def described(container: Container, rules: RuleSet, network_namespace: int = 0) -> EnforcedWorkload:
    """Describe a container with other rules."""
    return replace(
        container.workload,
        table=compile_table(rules).blob,
        table_digest=fingerprint(rules),
        network_namespace=network_namespace,
    )


class Guest:
    """Engine, runtime and root file system."""

    def __init__(self, base: Path) -> None:
        """Build the root file system and load the engine, unsealed: nothing here is about the gate."""
        self.base = base
        subprocess.run(["/bin/mount", "-t", "tmpfs", "-o", "size=256m,mode=755", "test", str(base)], check=True)
        rootfs.build(base / "rootfs", PROGRAMS, deep=False)
        (base / "rootfs" / LONG_NAME.lstrip("/")).parent.mkdir(parents=True)
        (base / "rootfs" / LONG_NAME.lstrip("/")).write_bytes((PROGRAMS / "prober").read_bytes())
        (base / "rootfs" / LONG_NAME.lstrip("/")).chmod(0o755)
        self.engine = BpfLsmEngine()
        self.engine.seal(enforced.DIGEST, enforced.gate("host"))
        self.runtime = Runtime(base / "states", "runc")
        self.running: dict[int, Container] = {}
        self.askers: list[Asker] = []

    def start(self, rules: RuleSet, options: oci.Options | None = None) -> Container:
        """Create, register and start a container."""
        name = f"running-{next(_numbers)}"
        bundle = oci.write(self.base / "bundles" / name, self.base / "rootfs", options or oci.Options())
        self.runtime.create(name, bundle).check()
        pid = int((bundle.directory / "pid").read_text("utf-8"))
        container = Container(name, bundle, enforced.workload(name, pid, rules))
        self.engine.register(container.workload)
        self.running[container.workload.workload_id] = container
        self.runtime.start(name).check()
        return container

    def asker(self, container: Container, program: str) -> Asker:
        """Start a prober in it."""
        made = Asker(self.runtime, container.name, container.bundle, program)
        self.askers.append(made)
        return made

    def advance(
        self,
        rules: Sequence[tuple[Container, RuleSet]],
        free: Sequence[Container] = (),
        *,
        network_namespace: int = 0,
    ) -> SuccessorRecord:
        """Put rules in force for all containers, with a packet filter's confinement in one namespace but for some."""
        present = self.engine.successor()
        number = present.number + 1 if present else 1
        successor = SuccessorRecord(f"{number:064x}", number * 10, number)
        new = [described(container, one, network_namespace) for container, one in rules]
        self.engine.advance(successor, [*new, *(container.workload for container in free)])
        return successor

    def remove(self, container: Container) -> None:
        """End it."""
        self.runtime.delete(container.name)
        self.engine.release(container.workload.workload_id)
        container.bundle.remove()
        del self.running[container.workload.workload_id]


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    guest = Guest(tmp_path_factory.mktemp("successor"))
    yield guest
    guest.engine.close()


@pytest.fixture
def guest(module: Guest) -> Iterator[Guest]:
    """Leave no container behind."""
    yield module
    for asker in module.askers:
        asker.close()
    module.askers.clear()
    for container in list(module.running.values()):
        module.remove(container)


def test_the_kernel_waits_for_the_programs_that_run(guest: Guest) -> None:
    """Told by the kernel's own function, also on a machine with one CPU, where membarrier(2) waits for nothing."""
    container = guest.start(FIRST)
    tracing = Path("/sys/kernel/tracing")
    if not (tracing / "kprobe_events").exists():
        subprocess.run(["/bin/mount", "-t", "tracefs", "tracefs", str(tracing)], check=True)
    probes, switch = tracing / "kprobe_events", tracing / "events/hauberk_test/enable"
    probes.write_text("p:hauberk_test/waited synchronize_rcu\n", "ascii")
    try:
        switch.write_text("1", "ascii")
        (tracing / "trace").write_text("", "ascii")
        guest.advance([(container, SECOND)])
        switch.write_text("0", "ascii")
        mine = [line for line in (tracing / "trace").read_text("utf-8").splitlines() if f"-{os.getpid()} " in line]
    finally:
        switch.write_text("0", "ascii")
        probes.write_text("", "ascii")
    assert len([line for line in mine if "waited:" in line]) == 1


def test_the_numbers_of_a_source_differ_between_the_tables() -> None:
    first, second = (source_of(compile_table(rules).blob, A.encode()) for rules in (FIRST, SECOND))
    assert 0 not in {first, second}
    assert first != second


def test_running_tasks_are_held_to_the_new_rules_and_keep_their_source(guest: Guest) -> None:
    container = guest.start(FIRST)
    a, b, plain = (guest.asker(container, program) for program in (A, B, PLAIN))
    paths = (SECRET, HOSTS, PASSWD)
    assert a.answers(*paths) == [True, True, True]
    assert b.answers(*paths) == [False, True, True]
    assert plain.answers(*paths) == [False, True, True]
    successor = guest.advance([(container, SECOND)])
    assert guest.engine.successor() == successor
    assert a.answers(*paths) == [True, False, True]
    assert b.answers(*paths) == [False, False, False]  # only now a source of its own
    assert plain.answers(*paths) == [False, False, True]
    guest.advance([(container, THIRD)])  # what was refused opens
    assert a.answers(*paths) == [True, True, True]
    assert b.answers(*paths) == [True, True, True]
    assert plain.answers(*paths) == [True, True, False]
    later = guest.asker(container, B)
    assert later.answers(*paths) == [True, True, True]


def test_a_rename_and_a_new_program_obey_the_new_rules(guest: Guest) -> None:
    container = guest.start(FIRST)
    asker = guest.asker(container, PLAIN)
    new = enforced.rule_set([OPEN, file_rule(HOSTS, Action.BLOCK), enforced.program_rule("/usr/bin/ls", Action.BLOCK)])
    assert asker.ask(f"{HOSTS}\t/etc/other", "rename") == "0"
    assert asker.ask("/usr/bin/ls", "exec") == "0"
    guest.advance([(container, new)])
    assert asker.ask(f"{HOSTS}\t/etc/other", "rename") == DENIED
    assert asker.ask("/usr/bin/ls", "exec") == DENIED
    assert guest.runtime.execute(container.name, container.bundle, ["/usr/bin/ls"]).status != 0
    assert guest.runtime.execute(container.name, container.bundle, ["/usr/bin/cat", "/etc/passwd"]).status == 0


def test_a_task_whose_path_is_too_long_to_be_told_gets_nothing(guest: Guest) -> None:
    container = guest.start(FIRST)
    asker = guest.asker(container, LONG_NAME)
    assert asker.answers(PASSWD, SECRET) == [True, False]
    guest.advance([(container, THIRD)])
    list(guest.engine.drain())
    assert asker.answers(PASSWD, SECRET) == [False, False]
    assert [(event.verdict, event.path) for event in guest.engine.drain()] == [("deny", PASSWD), ("deny", SECRET)]
    assert guest.asker(container, LONG_NAME).answers(PASSWD, SECRET) == [True, True]  # an exec tells it anew


def test_two_tasks_that_cannot_be_told_are_not_the_same_source(guest: Guest) -> None:
    container = guest.start(FIRST)
    asker = guest.asker(container, LONG_NAME)
    assert asker.ask("/", "trace-parent") == "0"
    guest.advance([(container, THIRD)])
    assert asker.ask("/", "trace-parent") == str(errno.EPERM)
    guest.advance([(container, RuleSet(()))])  # where no source has rights of its own there is nothing to borrow
    assert asker.ask("/", "trace-parent") == "0"


@pytest.fixture
def handover(tmp_path: Path) -> Iterator[Path]:
    """Give a directory with a socket ``socket`` that hands a network socket to whoever connects.

    Of another process than this one: no workload talks to the agent.
    """
    path = tmp_path / "handover"
    path.mkdir()
    with subprocess.Popen([sys.executable, "-c", HAND_OVER, path / "socket"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield path
        process.kill()


def attempts(guest: Guest, container: Container, *names: str) -> dict[str, int]:
    """Try every way round a packet filter in the container, or those named; give the errnos."""
    source = Path("tests/vm/containers/src/network.c").read_text("utf-8")
    names = names or tuple(re.findall(r'^\t\{ "([^"]+)"', source, re.MULTILINE))
    inside = cgroup_path(int((container.bundle.directory / "pid").read_text("utf-8")))
    environment = (
        "OUTSIDE=/mnt/cgroup/outside", f"INSIDE=/mnt/cgroup{inside}", "NAMESPACE=/mnt/namespace",
        "HANDOVER=/mnt/handover/socket",
    )  # fmt: skip
    command = ["/opt/attacks/network", *names]
    done = guest.runtime.execute(container.name, container.bundle, command, environment=environment).check()
    return {name: int(number) for name, number in map(str.split, done.output.splitlines())}


def test_a_workload_with_network_rules_has_only_sockets_of_its_own(guest: Guest, handover: Path) -> None:
    """Each way round works while there are no network rules, and again when a successor has taken them away."""
    outside = cgroup_root() / "outside"
    outside.mkdir(exist_ok=True)
    subprocess.run(["ip", "netns", "add", "another"], check=True)
    options = oci.Options(
        capabilities=oci.grantable(),
        mask_paths=False,
        resources={"devices": [{"allow": True, "access": "rwm"}]},
        namespaces=tuple(kind for kind in oci.NAMESPACES if kind not in {"cgroup", "network"}),
        volumes=(
            oci.Volume(cgroup_root(), "/mnt/cgroup"),
            oci.Volume(Path("/run/netns/another"), "/mnt/namespace"),
            oci.Volume(handover, "/mnt/handover"),
        ),
    )
    container, neighbour = guest.start(RuleSet(()), options), guest.start(RuleSet(()), options)
    own = Path("/proc/self/ns/net").stat().st_ino
    free = attempts(guest, container)
    assert free == dict.fromkeys(free, 0)
    for number in (own, 0, own):  # in both epochs, and away again
        guest.advance([(container, RuleSet(()))], [neighbour], network_namespace=number)
        # who has no network rules keeps his rights, but those over the filter that holds others in his namespace
        tried = attempts(guest, neighbour, "link-up", "flush-ruleset", "raw", "packet", "own-user-namespace")
        assert list(tried.values()) == [errno.EPERM if number else 0] * 2 + [0] * 3
        list(guest.engine.drain())
        expected = dict.fromkeys(free, errno.EPERM if number else 0) | dict.fromkeys(INNOCENT, 0)
        assert attempts(guest, container) == expected
        told = {(event.operation, event.detail) for event in guest.engine.drain() if event.verdict == "deny"}
        assert told == (TOLD if number else set())
    subprocess.run(["ip", "netns", "del", "another"], check=True)


def test_a_table_that_refuses_everything_does(guest: Guest) -> None:
    container = guest.start(FIRST)
    asker = guest.asker(container, A)
    assert asker.answers(SECRET, PASSWD) == [True, True]
    guest.advance([(container, NOTHING)])
    assert asker.answers(SECRET, PASSWD, "/", "/etc") == [False, False, False, False]
    assert guest.runtime.execute(container.name, container.bundle, ["/usr/bin/true"]).status != 0


def test_all_workloads_change_together_and_others_are_refused(guest: Guest) -> None:
    one, two = guest.start(FIRST), guest.start(THIRD)
    askers = [guest.asker(container, PLAIN) for container in (one, two)]
    present = guest.engine.successor()
    with pytest.raises(EngineError, match="tables for workloads"):
        guest.advance([(one, SECOND)])
    assert guest.engine.successor() == present
    assert [asker.answers(SECRET, HOSTS) for asker in askers] == [[False, True], [True, True]]
    guest.advance([(one, THIRD), (two, SECOND)])
    assert [asker.answers(SECRET, HOSTS) for asker in askers] == [[True, True], [False, False]]


def test_an_engine_that_starts_again_finds_the_epoch(guest: Guest) -> None:
    one = guest.start(FIRST)
    asker = guest.asker(one, B)
    successor = guest.advance([(one, SECOND)])
    guest.engine.close()
    assert guest.engine.successor() == successor  # also before it is taken up
    guest.engine.seal(enforced.DIGEST, enforced.gate("host"))
    assert guest.engine.successor() == successor
    [held] = guest.engine.registered()
    assert (held.workload_id, held.table_digest) == (one.workload.workload_id, fingerprint(SECOND))
    assert asker.answers(SECRET, HOSTS, PASSWD) == [False, False, False]
    another = guest.start(FIRST)
    assert guest.asker(another, A).answers(SECRET, HOSTS) == [True, True]
    assert guest.engine.statistics()["workloads"] == 2


def test_many_successors_run_out_of_no_room(guest: Guest) -> None:
    one, two = guest.start(FIRST), guest.start(SECOND)
    asker = guest.asker(one, A)
    for turn in range(30):
        new = (FIRST, SECOND, THIRD)[turn % 3]
        guest.advance([(one, new), (two, SECOND)])
        assert asker.answers(HOSTS) == [new is not SECOND]
