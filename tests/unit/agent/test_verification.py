# SPDX-License-Identifier: Apache-2.0
"""What the agent finds out about an announced process by itself, and each reason to refuse it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from guest_agent.workloads import verification
from guest_agent.workloads.verification import VerificationError, observe, recheck, verify
from tests.unit.agent.machine import AGENT_NAMESPACE, RUNTIME, Container, FakeMachine

if TYPE_CHECKING:
    from collections.abc import Callable


def refuse(fake: FakeMachine, container: Container, reason: str) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - counted, not looked at
    with pytest.raises(VerificationError, match=reason):
        verify(container.pid, fake.machine, (str(fake.runtime),))
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_parked_init_is_what_it_says(fake: FakeMachine) -> None:
    container = fake.container()
    with verify(container.pid, fake.machine, (str(fake.runtime),)) as found:
        assert found.identity.pid == container.pid
        assert found.identity.start_time == container.start_time
        assert found.identity.cgroup_path == "/machine.slice/c1"
        assert found.identity.cgroup_id == container.cgroup.stat().st_ino
        assert found.identity.mount_namespace == 4026532000 + container.pid
        assert found.uid == 0
        assert found.running()
        recheck(found, fake.machine, (str(fake.runtime),))


def test_a_copy_of_the_runtime_in_memory_is_the_runtime(fake: FakeMachine) -> None:
    container = fake.container()
    copy = fake.root / "sealed-copy"
    copy.write_bytes(RUNTIME)
    exe = fake.proc / str(container.pid) / "exe"
    exe.unlink()
    exe.symlink_to(copy)
    verify(container.pid, fake.machine, (str(fake.runtime), "/no/such/manager")).close()
    copy.write_bytes(b"X" + RUNTIME[1:])
    refuse(fake, container, "expected a parked init that still runs")
    copy.write_bytes(RUNTIME + b"X")
    refuse(fake, container, "expected a parked init that still runs")


def _namespace(namespace: int) -> Callable[[FakeMachine, Container], None]:
    def change(fake: FakeMachine, container: Container) -> None:
        link = fake.proc / str(container.pid) / "ns" / "mnt"
        link.unlink()
        link.symlink_to(f"mnt:[{namespace}]")

    return change


def _cgroup(text: str) -> Callable[[FakeMachine, Container], None]:
    def change(fake: FakeMachine, container: Container) -> None:
        (fake.proc / str(container.pid) / "cgroup").write_text(text)

    return change


def _members(text: str) -> Callable[[FakeMachine, Container], None]:
    def change(_: FakeMachine, container: Container) -> None:
        (container.cgroup / "cgroup.procs").write_text(text)

    return change


def _populated_child(_: FakeMachine, container: Container) -> None:
    (container.cgroup / "below").mkdir()
    FakeMachine.populate(container.cgroup / "below", populated=True)


def _exec(fake: FakeMachine, container: Container) -> None:
    program = fake.root / "program"
    program.write_bytes(b"the user's program")
    exe = fake.proc / str(container.pid) / "exe"
    exe.unlink()
    exe.symlink_to(program)


def _zombie(fake: FakeMachine, container: Container) -> None:
    fake.write_stat(str(container.pid), container.start_time, "Z")


def _ended(fake: FakeMachine, container: Container) -> None:
    os.write(fake.ends[container.pid], b"x")


REFUSALS = {
    "shares the agent's mounts": (_namespace(AGENT_NAMESPACE), "shares the mount namespace of the agent"),
    "in the root cgroup": (_cgroup("0::/\n"), "root cgroup"),
    "in the agent's cgroup": (_cgroup("0::/system.slice/hauberk-agent.service\n"), "the agent's own cgroup"),
    "above the agent": (_cgroup("0::/system.slice\n"), "holds the agent itself"),
    "no unified hierarchy": (_cgroup("1:cpu:/x\n"), "no cgroup v2 entry"),
    "cgroup removed": (_cgroup("0::/gone (deleted)\n"), "was removed"),
    "outside the agent's cgroup namespace": (_cgroup("0::/../x\n"), "outside the agent's cgroup namespace"),
    "cgroup that is not there": (_cgroup("0::/nowhere\n"), "cannot be read"),
    "somebody else in the cgroup": (_members("100\n101\n"), "also 1 other process"),
    "process of another pid namespace in it": (_members("0\n100\n"), "also 1 other process"),
    "not in its cgroup": (_members(""), "not the process itself"),
    "populated child cgroup": (_populated_child, "populated children"),
    "runs a program already": (_exec, "still runs"),
    "a zombie": (_zombie, "has ended already"),
    "ended meanwhile": (_ended, "ended while it was verified"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_is_no_parked_init_is_refused(fake: FakeMachine, case: str) -> None:
    container = fake.container()
    change, reason = REFUSALS[case]
    change(fake, container)
    refuse(fake, container, reason)


def test_no_pid_and_no_process_are_refused(fake: FakeMachine) -> None:
    with pytest.raises(VerificationError, match="carries no pid"):
        verify(0, fake.machine, ())
    with pytest.raises(VerificationError, match="does not exist"):
        verify(4711, fake.machine, ())


def test_a_container_in_its_announcers_namespace_is_refused(fake: FakeMachine) -> None:
    container = fake.container()
    foreign = frozenset({4026532000 + container.pid})
    with pytest.raises(VerificationError, match="that announced it"):
        verify(container.pid, fake.machine, (str(fake.runtime),), foreign_namespaces=foreign)


def _moved(fake: FakeMachine, container: Container) -> None:
    other = fake.cgroups / "machine.slice" / "other"
    other.mkdir()
    (other / "cgroup.procs").write_text(f"{container.pid}\n")
    fake.populate(other, populated=True)
    (fake.proc / str(container.pid) / "cgroup").write_text("0::/machine.slice/other\n")


def _recycled(fake: FakeMachine, container: Container) -> None:
    fake.write_stat(str(container.pid), container.start_time + 1)


def _new_namespace(fake: FakeMachine, container: Container) -> None:
    _namespace(4026539999)(fake, container)


@pytest.mark.parametrize("change", [_moved, _recycled, _new_namespace, _exec, _ended])
def test_what_changes_during_a_registration_is_noticed(
    fake: FakeMachine, change: Callable[[FakeMachine, Container], None]
) -> None:
    container = fake.container()
    with verify(container.pid, fake.machine, (str(fake.runtime),)) as found:
        change(fake, container)
        with pytest.raises(VerificationError):
            recheck(found, fake.machine, (str(fake.runtime),))


def test_a_container_is_over_when_its_init_is_gone_and_its_cgroup_empty(fake: FakeMachine) -> None:
    container = fake.container()
    with verify(container.pid, fake.machine, (str(fake.runtime),)) as found:
        identity = found.identity
    assert not observe(identity, fake.machine).over
    fake.end_init(container)
    assert not observe(identity, fake.machine).init_alive
    assert not observe(identity, fake.machine).over
    fake.populate(container.cgroup, populated=False)
    assert observe(identity, fake.machine).over


def test_a_process_with_the_inits_number_is_not_the_init(fake: FakeMachine) -> None:
    container = fake.container()
    with verify(container.pid, fake.machine, (str(fake.runtime),)) as found:
        identity = found.identity
    _recycled(fake, container)
    assert not observe(identity, fake.machine).init_alive


def test_a_cgroup_made_again_is_not_the_old_one(fake: FakeMachine) -> None:
    container = fake.container()
    with verify(container.pid, fake.machine, (str(fake.runtime),)) as found:
        identity = found.identity
    container.cgroup.rename(fake.cgroups / "kept")  # keeps the inode number from being given out again
    container.cgroup.mkdir()
    fake.populate(container.cgroup, populated=True)
    assert not observe(identity, fake.machine).cgroup_populated
    assert verification.cgroup_path_of(identity.cgroup_id, fake.machine) == "/kept"
    assert verification.cgroup_path_of(1, fake.machine) == ""


@pytest.mark.parametrize(
    ("mountinfo", "found"),
    [
        ("30 1 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw\n", "/sys/fs/cgroup"),
        (
            "30 1 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 c rw\n",
            "/sys/fs/cgroup/unified",
        ),
        ("30 1 0:26 /sub /elsewhere rw - cgroup2 c rw\n31 1 0:26 / /a\\040b rw - cgroup2 c rw\n", "/a b"),
    ],
)
def test_the_hierarchy_is_found_where_it_is_mounted(mountinfo: str, found: str) -> None:
    assert verification.find_cgroup_mount(mountinfo)[0] == Path(found)


def test_a_mount_over_the_hierarchy_is_noticed(fake: FakeMachine) -> None:
    mount = fake.root / "elsewhere"
    mount.mkdir()
    (fake.proc / "self" / "mountinfo").write_text(f"30 1 999:99 / {mount} rw - cgroup2 cgroup2 rw\n")
    with pytest.raises(VerificationError, match="something else is mounted over"):
        verification.Machine(fake.proc).cgroup_mount()
    status = mount.stat()
    device = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    (fake.proc / "self" / "mountinfo").write_text(f"30 1 {device} / {mount} rw - cgroup2 cgroup2 rw\n")
    assert verification.Machine(fake.proc).cgroup_mount() == mount


def test_a_machine_without_the_hierarchy_is_refused() -> None:
    with pytest.raises(VerificationError, match="no mount of cgroup v2"):
        verification.find_cgroup_mount("30 1 0:26 /sub /sys/fs/cgroup rw - cgroup2 c rw\n")
