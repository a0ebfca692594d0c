# SPDX-License-Identifier: Apache-2.0
"""The sealed guest: what was never registered executes nothing, and what holds the gate cannot be taken away.

Everything that must be refused is first shown to work in the same guest before the seal. The engine is sealed by a
process of its own, which is killed: what comes after it finds the kernel as a crash leaves it.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from guest_agent.engines.bpf_lsm import layout
from guest_agent.engines.bpf_lsm.engine import BpfLsmEngine
from guest_agent.engines.bpf_lsm.libbpf import Libbpf, LibbpfError, Map
from guest_agent.engines.bpf_lsm.plan import compile_table, fingerprint
from guest_agent.engines.port import EnforcedWorkload, EngineError, SealError
from hauberk.policy.rules import Action, RuleSet
from tests.vm.containers import bundle as oci
from tests.vm.containers import enforced, rootfs
from tests.vm.containers.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Iterator

    from guest_agent.engines.port import KernelEvent

PROGRAMS = Path(".cache/containers")
PINS = Path("/sys/fs/bpf/hauberk")
PLACE = Path("/run/containers-under-test")
HELPER = Path("/usr/local/lib/test-helper")
PLAIN_HELPER = Path("/usr/local/lib/test-helper-without-options")
BROKEN_HELPER = Path("/usr/local/lib/test-helper-without-interpreter")
HELPERS = (str(HELPER), str(PLAIN_HELPER), str(BROKEN_HELPER))
LISTED, UNLISTED = Path("/usr/local/bin/touch"), Path("/usr/local/bin/unlisted")
SERVICES = Path("/sys/fs/cgroup/services")
RAN = "HAS-RUN"

# A hook of ours, as far as the gate is concerned: a script that the runtime starts. It does what its arguments say,
# which are the host's choice as much as its environment is, and reports to a file.
HELPER_SOURCE = r"""#!/usr/bin/python3 -I
import ctypes, errno, os, struct, sys

libc = ctypes.CDLL(None, use_errno=True)
action, report = sys.argv[1], open(sys.argv[2], "w")
pins = "/sys/fs/bpf/hauberk"


def tried(name, function, *arguments):
    try:
        function(*arguments)
        print(name, "DONE", file=report)
    except OSError as error:
        print(name, errno.errorcode[error.errno], file=report)


def checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return result


def bpf(command, *fields):
    attributes = ctypes.create_string_buffer(b"".join(fields).ljust(128, b"\0"))
    return checked(libc.syscall(321, command, attributes, 128))


def opened(path):
    name = ctypes.create_string_buffer(path.encode())
    return bpf(7, struct.pack("<QII", ctypes.addressof(name), 0, 0))


def update(path):
    key, value = (ctypes.create_string_buffer(8192) for _ in range(2))
    descriptor = opened(path)
    bpf(2, struct.pack("<IIQQQ", descriptor, 0, ctypes.addressof(key), ctypes.addressof(value), 0))


def by_number(path):
    for number in range(1, 4096):
        try:
            descriptor = bpf(14, struct.pack("<III", number, 0, 0))
        except OSError as error:
            if error.errno == errno.ENOENT:
                continue
            raise


def detach(path):
    bpf(34, struct.pack("<I", opened(path)))


def mount(source, target, kind, flags):
    checked(libc.mount(source.encode(), target.encode(), kind and kind.encode(), flags, None))


def umount(target, flags):
    checked(libc.umount2(target.encode(), flags))


if action == "maps":
    report.write(open("/proc/self/maps").read())
if action == "shell":
    tried("shell", os.execv, "/bin/sh", ["sh", "-c", "echo HAS-RUN"])
if action == "again":
    for turn in range(20):  # the kernel gives the next exec the memory of the one that failed
        tried("broken", os.execv, sys.argv[3], [sys.argv[3]])
        tried("shell", os.execv, "/bin/sh", ["sh", "-c", "echo HAS-RUN"])
if action == "pins":
    name = sorted(entry for entry in os.listdir(pins) if "check_exec" in entry or "exec" in entry)[0]
    tried("unlink", os.unlink, pins + "/" + name)
    tried("unlink-map", os.unlink, pins + "/cgroups")
    tried("rename", os.rename, pins + "/" + name, "/sys/fs/bpf/elsewhere")
    tried("rename-inside", os.rename, pins + "/" + name, pins + "/other")
    tried("rename-directory", os.rename, pins, "/sys/fs/bpf/elsewhere")
    tried("rmdir", os.rmdir, pins)
    tried("umount", umount, "/sys/fs/bpf", 0)
    tried("umount-lazy", umount, "/sys/fs/bpf", 2)
    tried("umount-force", umount, "/sys/fs/bpf", 1)
    tried("umount-sys", umount, "/sys", 2)
    tried("mount-over", mount, "none", pins, "tmpfs", 0)
    tried("mount-over-bpffs", mount, "none", "/sys/fs/bpf", "tmpfs", 0)
    tried("bind-over", mount, "/tmp", pins, None, 4096)
    tried("move", mount, "/sys/fs/bpf", "/mnt", None, 8192)
    for entry in sys.argv[3:]:
        tried("update-" + entry, update, pins + "/" + entry)
    tried("by-number", by_number, "")
    for entry in sorted(os.listdir(pins)):
        if entry.startswith("check_"):
            tried("detach-" + entry, detach, pins + "/" + entry)
report.close()
"""

LOADER = """
import os, sys
from guest_agent.engines.bpf_lsm.engine import BpfLsmEngine
from tests.vm.containers import enforced
engine = BpfLsmEngine()
engine.seal(enforced.DIGEST, enforced.gate(helpers={helpers!r}, kernel_helpers=({listed!r},)))
print("sealed", flush=True)
for line in sys.stdin:
    name, pid = line.split()
    rules = enforced.rule_set([
        *enforced.protect(["/srv/secrets/app/"]), enforced.file_rule("/", enforced.Action.ALLOW),
    ])
    engine.register(enforced.workload(name, int(pid), rules))
    print("registered", flush=True)
"""


class Attempt(NamedTuple):
    """What came of trying to run something in a container."""

    status: int
    output: str
    errors: str


def variants() -> dict[str, tuple[oci.Options, Path | None]]:
    """Give the ways to start a container that nobody announced; None for a root is the guest's own."""
    plain = oci.Options(arguments=("/bin/busybox", "echo", RAN))
    root = PLACE / "rootfs"
    proc = ({"destination": "/proc", "type": "none", "source": "/proc", "options": ["rbind"]},)
    return {
        "all-namespaces": (plain, root),
        "no-namespaces": (replace(plain, namespaces=(), standard_mounts=False, mounts=proc), root),
        "guest-root": (replace(plain, namespaces=(), standard_mounts=False), None),
        "guest-shell": (
            replace(plain, namespaces=(), standard_mounts=False, arguments=("/bin/sh", "-c", f"echo {RAN}")),
            None,
        ),
        "guest-root-own-mounts": (
            replace(
                plain,
                namespaces=("mount",),
                standard_mounts=False,
                mask_paths=False,
                arguments=("/bin/echo", RAN),
                mounts=proc,
            ),
            PLACE / "guest",
        ),
        "guest-mounts": (
            replace(
                plain,
                namespaces=tuple(kind for kind in oci.NAMESPACES if kind != "mount"),
                standard_mounts=False,
                mounts=proc,
            ),
            root,
        ),
        "no-cgroup": (replace(plain, resources=None, namespaces=("mount", "pid")), root),
        "service-cgroup": (
            replace(plain, resources=None, cgroup_path="/services", namespaces=("mount", "pid")),
            root,
        ),
    }


VARIANTS = (
    "all-namespaces", "no-namespaces", "guest-root", "guest-shell", "guest-root-own-mounts", "guest-mounts",
    "no-cgroup", "service-cgroup",
)  # fmt: skip
RUNTIMES = ("runc", "crun")
_names = (f"attempt-{number}" for number in range(10**6))


def roots() -> int:
    """Count what is mounted at the guest's root."""
    return sum(row.split()[4] == "/" for row in Path("/proc/self/mountinfo").read_text("utf-8").splitlines())


def attempt(executable: str, options: oci.Options, root: Path | None) -> Attempt:
    """Run a container to its end and give what it wrote."""
    runtime, name, before = Runtime(PLACE / f"state-{executable}", executable), next(_names), roots()
    if root in {None, PLACE / "guest"}:
        bundle = oci.write(PLACE / name, root or Path("/"), options, overlay=False)
    else:
        bundle = oci.write(PLACE / name, root, options)
    if options.cgroup_path is not None:
        SERVICES.mkdir(exist_ok=True)  # a runtime removes the cgroup with the container
    try:
        done = runtime.run(name, bundle)
        runtime.wait_stopped(name)
        output = (bundle.directory / "container.stdout").read_text("utf-8", errors="replace")
        errors = (bundle.directory / "container.stderr").read_text("utf-8", errors="replace")
    finally:
        runtime.delete(name)
        bundle.remove()
        # without a mount namespace a runtime leaves its mounts in the guest's, where they mislead every later setns
        while roots() > before:
            subprocess.run(["umount", "--lazy", "/"], check=True)
    return Attempt(done.status, output, errors)


def helper_options(
    action: str, report: Path, environment: tuple[str, ...] = (), more: tuple[str, ...] = ()
) -> oci.Options:
    """Give a container whose createRuntime hook is the helper; its program need not run."""
    hook = oci.Hook(str(HELPER), (action, str(report), *more), environment)
    return oci.Options(arguments=("/bin/true",), hooks={"createRuntime": (hook,)})


def reported(path: Path) -> dict[str, str]:
    """Read what the helper reported."""
    return dict(line.split() for line in path.read_text("utf-8").splitlines())


def executable_mappings(maps: str) -> list[str]:
    """Give the executable mappings of the library that is to be borrowed."""
    return [line for line in maps.splitlines() if "preload.so" in line and "x" in line.split()[1]]


def crash_with(pattern: str) -> None:
    """Let a process of the guest crash, with this core pattern."""
    setting = Path("/proc/sys/kernel/core_pattern")
    before = setting.read_text("utf-8")
    setting.write_text(pattern, "utf-8")
    try:
        crashed = subprocess.run([sys.executable, "-c", "import os; os.abort()"], check=False, capture_output=True)
        assert crashed.returncode == -signal.SIGABRT
    finally:
        setting.write_text(before, "utf-8")


class Guest(NamedTuple):
    """The guest after the seal: what worked before it, and the engine as taken up by this process."""

    before: dict[tuple[str, str], Attempt]
    engine: BpfLsmEngine
    gap: dict[str, list[str]]


def _prepare() -> None:
    PLACE.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0755,size=1g", "tmpfs", str(PLACE)], check=True)
    rootfs.build(PLACE / "rootfs", PROGRAMS, deep=False)
    shutil.copyfile(PROGRAMS / "preload.so", PLACE / "preload.so")
    (PLACE / "evil.sh").write_text("echo x > $EVIL\n", "utf-8")
    PLAIN_HELPER.write_text("#!/usr/bin/python3\n", "utf-8")
    BROKEN_HELPER.write_text("#!/nowhere/interpreter\n", "utf-8")
    (PLACE / "guest").mkdir()
    subprocess.run(["mount", "--bind", "/", str(PLACE / "guest")], check=True)
    HELPER.write_text(HELPER_SOURCE, "utf-8")
    for target in (LISTED, UNLISTED):
        shutil.copyfile("/bin/busybox", target)
    for path in (HELPER, PLAIN_HELPER, BROKEN_HELPER, LISTED, UNLISTED):
        path.chmod(0o755)


def _works_before_the_seal() -> dict[tuple[str, str], Attempt]:
    before = {
        (executable, name): attempt(executable, *variants()[name]) for executable in RUNTIMES for name in VARIANTS
    }
    for executable in RUNTIMES:
        report = PLACE / f"before-maps-{executable}"
        attempt(executable, helper_options("maps", report, (f"LD_PRELOAD={PLACE}/preload.so",)), PLACE / "rootfs")
        assert executable_mappings(report.read_text("utf-8")), f"{executable}: LD_PRELOAD means nothing here"
        attempt(executable, evil_options(PLACE / f"evil-before-{executable}"), PLACE / "guest")
        assert (PLACE / f"evil-before-{executable}").exists()
    crash_with(f"|{LISTED} {PLACE}/core-before")
    assert (PLACE / "core-before").exists()
    return before


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    """Seal by a process that is killed, and take up while refused attempts go on all the time."""
    _prepare()
    before = _works_before_the_seal()
    loader = subprocess.Popen(
        [sys.executable, "-c", LOADER.format(helpers=HELPERS, listed=str(LISTED))],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
    )  # fmt: skip
    assert loader.stdin is not None
    assert loader.stdout is not None
    assert loader.stdout.readline() == "sealed\n"
    runtime = Runtime(PLACE / "state")
    looping = oci.write(
        PLACE / "looping", PLACE / "rootfs",
        oci.Options(
            arguments=("/opt/attacks/attacks", "open-loop", "/srv/secrets/app/prod/key", "seconds=8", "limit=60")
        ),
    )  # fmt: skip
    runtime.create("looping", looping).check()
    loader.stdin.write(f"looping {(looping.directory / 'pid').read_text('utf-8')}\n")
    assert loader.stdout.readline() == "registered\n"
    runtime.start("looping").check()
    gap: dict[str, list[str]] = {"unregistered": []}
    stopped = threading.Event()

    def knock() -> None:
        while not stopped.is_set():
            gap["unregistered"].append(attempt("runc", *variants()["all-namespaces"]).output)

    knocking = threading.Thread(target=knock)
    knocking.start()
    loader.kill()
    loader.wait()
    loader.stdin.close()
    loader.stdout.close()
    time.sleep(1)  # with no agent at all
    with pytest.raises(SealError, match="sealed with bundle abab"):
        BpfLsmEngine().seal("cd" * 32, enforced.gate())
    engine = BpfLsmEngine()
    engine.seal(enforced.DIGEST, enforced.gate())
    assert [held.container_id for held in engine.registered()] == ["looping"]
    runtime.wait_stopped("looping")
    stopped.set()
    knocking.join()
    gap["looping"] = (looping.directory / "container.stdout").read_text("utf-8").splitlines()
    runtime.delete("looping")
    engine.release(engine.registered()[0].workload_id)
    looping.remove()
    yield Guest(before, engine, gap)
    engine.close()


def events(guest: Guest) -> list[KernelEvent]:
    return list(guest.engine.drain())


def test_nothing_got_through_while_the_engine_changed_hands(guest: Guest) -> None:
    assert len(guest.gap["unregistered"]) >= 2
    assert set(guest.gap["unregistered"]) == {""}
    assert guest.gap["looping"][0].startswith("open-loop note: ")
    assert guest.gap["looping"][1].startswith("open-loop refused errno=13"), guest.gap["looping"]


@pytest.mark.parametrize("executable", RUNTIMES)
@pytest.mark.parametrize("name", VARIANTS)
def test_an_unregistered_container_executes_nothing(guest: Guest, executable: str, name: str) -> None:
    assert guest.before[executable, name].output == f"{RAN}\n", guest.before[executable, name]
    events(guest)
    after = attempt(executable, *variants()[name])
    assert RAN not in after.output, after
    told = events(guest)
    # the program is not executed; or its runtime is stopped earlier, at a mount over the guest's own root
    assert [
        event for event in told if (event.operation == "gate" and event.path_known) or event.operation == "mount"
    ], (after, told)


@pytest.mark.parametrize(
    "command",
    [
        ["/bin/echo", "plain"],
        ["unshare", "-m", "/bin/echo", "own mounts"],
        ["unshare", "-m", "-p", "-f", "/bin/sh", "-c", "/bin/echo in a shell"],
        ["setsid", "-w", "/bin/echo", "own session"],
        ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "/bin/echo", "other user"],
        ["/bin/sh", "-c", "echo pipe | cat | cat"],
        ["runc", "--version"],
    ],
    ids=lambda command: " ".join(command)[:40],
)
def test_the_guests_own_services_work(guest: Guest, command: list[str]) -> None:
    assert guest.engine.statistics()["untold"] == 0
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done
    assert done.stdout


def test_a_service_in_a_listed_cgroup_works(guest: Guest) -> None:
    SERVICES.mkdir(exist_ok=True)
    assert guest.engine.statistics()["untold"] == 0
    script = f"echo 0 > {SERVICES}/cgroup.procs && exec /bin/echo below"
    assert subprocess.run(["/bin/sh", "-c", script], check=True, capture_output=True, text=True).stdout == "below\n"


def test_programs_that_are_not_of_the_measured_root_do_not_run(guest: Guest) -> None:
    events(guest)
    with pytest.raises(PermissionError):
        subprocess.run([str(PLACE / "rootfs/usr/bin/busybox"), "true"], check=False)
    assert [event.operation for event in events(guest)] == ["gate"]


def test_the_kernel_starts_only_listed_helpers(guest: Guest) -> None:
    """Written to core_pattern by whoever could: the program runs in the guest's own root, as root."""
    script = Path("/usr/local/bin/core-script")
    script.write_text(f"#!/bin/sh\n/bin/echo x > {PLACE}/core-script\n", "utf-8")
    script.chmod(0o755)
    events(guest)
    crash_with(f"|{script}")
    crash_with(f"|{UNLISTED} touch {PLACE}/core-unlisted")
    assert not (PLACE / "core-script").exists()
    assert not (PLACE / "core-unlisted").exists()
    told = [event.path for event in events(guest) if event.operation == "gate"]
    assert told == [str(script), str(UNLISTED)]
    crash_with(f"|{LISTED} {PLACE}/core-listed")
    assert (PLACE / "core-listed").exists()


@pytest.mark.parametrize("executable", RUNTIMES)
def test_a_listed_helper_runs_as_hook_and_brings_nobody_along(guest: Guest, executable: str) -> None:
    """The script and its interpreter run; a shell and a library from outside the measured root do not."""
    events(guest)
    maps, shell = PLACE / f"maps-{executable}", PLACE / f"shell-{executable}"
    attempt(executable, helper_options("maps", maps, (f"LD_PRELOAD={PLACE}/preload.so",)), PLACE / "rootfs")
    mapped = maps.read_text("utf-8")
    assert "python3" in mapped
    assert not executable_mappings(mapped)
    assert [event for event in events(guest) if event.operation == "gate" and event.path.endswith("preload.so")]
    done = attempt(executable, helper_options("shell", shell), PLACE / "rootfs")
    assert reported(shell) == {"shell": "EPERM"}, done


@pytest.mark.parametrize("executable", RUNTIMES)
def test_a_helper_that_failed_to_start_lets_nobody_follow(guest: Guest, executable: str) -> None:
    """A listed script lets its interpreter through for that one exec, also when that exec fails."""
    events(guest)
    report = PLACE / f"again-{executable}"
    done = attempt(executable, helper_options("again", report, (), (str(BROKEN_HELPER),)), PLACE / "rootfs")
    assert RAN not in done.output
    assert reported(report) == {"broken": "ENOENT", "shell": "EPERM"}, done


@pytest.mark.parametrize("executable", RUNTIMES)
def test_an_unlisted_hook_does_not_run(guest: Guest, executable: str) -> None:
    assert guest.engine.statistics()["untold"] == 0
    hook = oci.Hook(str(UNLISTED), ("touch", str(PLACE / "hooked")))
    done = attempt(executable, oci.Options(hooks={"createRuntime": (hook,)}), PLACE / "rootfs")
    assert done.status != 0
    assert not (PLACE / "hooked").exists()


@pytest.mark.parametrize("executable", RUNTIMES)
def test_the_helper_as_a_containers_program_gains_nothing(guest: Guest, executable: str) -> None:
    """In the guest's own root, with arguments and environment of the host's choice, it is still only the helper."""
    events(guest)
    report = PLACE / f"program-{executable}"
    options = oci.Options(
        arguments=(str(HELPER), "shell", str(report)),
        environment=("PATH=/usr/bin:/bin", f"LD_PRELOAD={PLACE}/preload.so", f"PYTHONPATH={PLACE}"),
        namespaces=(),
        standard_mounts=False,
    )
    done = attempt(executable, options, None)
    assert RAN not in done.output
    assert not report.exists() or reported(report) == {"shell": "EPERM"}
    assert [event for event in events(guest) if event.operation in ("gate", "mount")]


def evil_options(marker: Path) -> oci.Options:
    """Give a container in the guest's own root, where another program of the measured root reads the helper script."""
    interpreter = str(Path("/usr/bin/python3").resolve())
    return oci.Options(
        arguments=(str(PLAIN_HELPER),),
        environment=("PATH=/usr/bin:/bin", f"BASH_ENV={PLACE}/evil.sh", f"EVIL={marker}"),
        namespaces=("mount",),
        standard_mounts=False,
        mask_paths=False,
        mounts=(
            {"destination": "/proc", "type": "none", "source": "/proc", "options": ["rbind"]},
            {"destination": str(PLACE), "type": "none", "source": str(PLACE), "options": ["rbind"]},
            {"destination": interpreter, "type": "none", "source": "/bin/bash", "options": ["bind"]},
        ),
    )


@pytest.mark.parametrize("executable", RUNTIMES)
def test_no_other_program_takes_the_place_of_the_helpers_interpreter(guest: Guest, executable: str) -> None:
    """Of all files of the measured root, the host may not choose which one reads the helper script."""
    events(guest)
    assert (PLACE / f"evil-before-{executable}").exists()
    marker = PLACE / f"evil-{executable}"
    done = attempt(executable, evil_options(marker), PLACE / "guest")
    assert not marker.exists(), done
    assert [event for event in events(guest) if event.operation == "gate"], done


FROZEN = ("gate", "seal", "executables", "guarded_maps")
MAPS = ("cgroups", "workloads", "marks", "tables", "agent", *FROZEN)
PIN_TRIES = (
    "unlink", "unlink-map", "rename", "rename-inside", "rename-directory", "rmdir", "umount", "umount-lazy",
    "umount-force", "umount-sys", "mount-over", "mount-over-bpffs", "bind-over", "move",
)  # fmt: skip


def test_the_pins_stay_whoever_tries(guest: Guest) -> None:
    """Also a process of the guest itself, which is not of a runtime's lineage, removes no pin and no mount above."""
    events(guest)
    report = PLACE / "pins-guest"
    subprocess.run([str(HELPER), "pins", str(report), *FROZEN], check=False)
    answers = reported(report)
    print(answers)  # noqa: T201 - shown when the test fails
    assert {name: answers[name] for name in PIN_TRIES if answers[name] != "EPERM"} == {}
    # the agent is such a process and may write what is not frozen
    assert {answers[f"update-{name}"] for name in FROZEN} == {"EPERM"}
    assert {name: told for name, told in answers.items() if name.startswith("detach-") and told == "DONE"} == {}
    told = events(guest)
    assert len([event for event in told if event.operation == "pin"]) >= len(PIN_TRIES)
    assert PINS.is_dir()


def test_a_runtimes_lineage_reaches_no_map(guest: Guest) -> None:
    events(guest)
    report = PLACE / "pins-hook"
    attempt("runc", helper_options("pins", report, more=MAPS), PLACE / "rootfs")
    answers = reported(report)
    assert {name: told for name, told in answers.items() if name in PIN_TRIES and told != "EPERM"} == {}
    updates = {name: told for name, told in answers.items() if name.startswith("update-") or name == "by-number"}
    assert len(updates) == 10
    assert set(updates.values()) == {"EPERM"}, updates
    assert {name: told for name, told in answers.items() if name.startswith("detach-") and told == "DONE"} == {}
    assert {"pin", "bpf"} <= {event.operation for event in events(guest)}
    assert RAN not in attempt("runc", *variants()["all-namespaces"]).output


@pytest.mark.parametrize("name", ["gate", "seal", "executables", "service_cgroups", "guarded_mounts", "guarded_maps"])
def test_what_the_gate_goes_by_is_frozen(guest: Guest, name: str) -> None:
    assert guest.engine.statistics()["untold"] == 0
    kept = Map.pinned(Libbpf(), PINS / name)
    sizes = {"gate": layout.GATE.size, "seal": layout.SEAL.size}
    keys = {"executables": layout.EXECUTABLE.size, "service_cgroups": layout.CGROUP.size}
    try:
        with pytest.raises(LibbpfError) as caught:
            kept.put(bytes(keys.get(name, 4)), bytes(sizes.get(name, 4)))
    finally:
        os.close(kept.descriptor)
    assert caught.value.errno == errno.EPERM


def kernel_state() -> tuple[set[bytes], list[bytes]]:
    """Give the registered cgroups and the slots that hold a workload."""
    library = Libbpf()
    cgroups, workloads = Map.pinned(library, PINS / "cgroups"), Map.pinned(library, PINS / "workloads")
    try:
        slots = [workloads.get(layout.KEY.pack(slot)) or b"" for slot in range(layout.MAXIMUM_WORKLOADS)]
        return set(cgroups.keys(layout.CGROUP.size)), [
            slot for slot in slots if layout.WorkloadRecord.decode(slot).workload_id
        ]
    finally:
        os.close(cgroups.descriptor)
        os.close(workloads.descriptor)


def test_one_workload_too_many_is_told_and_nothing_is_left(guest: Guest) -> None:
    assert kernel_state() == (set(), [])
    rules = RuleSet(())
    blob, digest = compile_table(rules).blob, fingerprint(rules)
    many = [
        EnforcedWorkload(10**6 + number, f"many-{number}", 10**9 + number, 1, blob, digest)
        for number in range(layout.MAXIMUM_WORKLOADS + 1)
    ]
    for each in many[:-1]:
        guest.engine.register(each)
    with pytest.raises(EngineError, match="1024 workloads are in force"):
        guest.engine.register(many[-1])
    assert guest.engine.statistics()["workloads"] == layout.MAXIMUM_WORKLOADS
    assert len(kernel_state()[0]) == layout.MAXIMUM_WORKLOADS
    for each in many:
        guest.engine.release(each.workload_id)
    assert guest.engine.statistics()["workloads"] == 0
    assert kernel_state() == (set(), [])


def wait_for(path: Path, text: str) -> None:
    """Wait until a file holds a text; fail after a minute."""
    end = time.monotonic() + 60
    while text not in path.read_text("utf-8"):
        assert time.monotonic() < end, f"{path} never said {text!r}"
        time.sleep(0.05)


def test_what_is_left_of_a_released_workload_can_do_nothing(guest: Guest) -> None:
    runtime, name = Runtime(PLACE / "state"), "released"
    loop = "while :; do if read line < /etc/hosts; then echo may; else echo refused; fi; done 2>/dev/null"
    bundle = oci.write(PLACE / name, PLACE / "rootfs", oci.Options(arguments=("/bin/sh", "-c", loop)))
    output = bundle.directory / "container.stdout"
    with enforced.container(guest.engine, runtime, name, bundle, RuleSet(())) as (_, identifier):
        wait_for(output, "may")
        guest.engine.release(identifier)
        wait_for(output, "refused")
        assert "may" not in output.read_text("utf-8").partition("refused")[2]
        done = runtime.execute(name, bundle, ["/bin/true"])
        assert done.status != 0
        runtime.kill(name)
    assert kernel_state() == (set(), [])


def test_a_full_buffer_loses_events_and_no_refusal(guest: Guest) -> None:
    """Nobody drains while more is refused than the buffer holds."""
    events(guest)
    runtime, name, count = Runtime(PLACE / "state"), "flood", 12_000
    bundle = oci.write(PLACE / name, PLACE / "rootfs", oci.Options())
    rules = enforced.rule_set([enforced.file_rule("/srv/secrets/app/", Action.BLOCK)])
    before = guest.engine.statistics()
    with enforced.container(guest.engine, runtime, name, bundle, rules):
        questions = b"open-read\t/srv/secrets/app/prod/key\n" * count
        done = runtime.execute(name, bundle, ["/usr/bin/prober"], data=questions).check()
    answers = done.output.split()
    assert len(answers) == count
    assert set(answers) == {str(errno.EACCES)}
    after = guest.engine.statistics()
    told, lost = after["events"] - before["events"], after["events_lost"] - before["events_lost"]
    assert lost > 0
    assert told + lost == count
    assert len([event for event in events(guest) if event.workload_id]) == told


def test_the_pins_directory_is_the_owners_alone(guest: Guest) -> None:
    assert guest.engine.sealed_digest() == enforced.DIGEST
    assert stat.S_IMODE(PINS.stat().st_mode) == 0o700
    with pytest.raises(SealError):
        guest.engine.unload()
    assert PINS.is_dir()
