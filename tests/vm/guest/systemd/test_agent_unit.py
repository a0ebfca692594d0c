# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: T201 - the figures belong to the result
"""The agent as a unit of systemd, as ``deploy/systemd`` ships it: hardened, restarted, killed, and still in force.

The sealed gate goes by a positive list, so that the machine's own services are what it could break: units with mounts
of their own, timers, transient units and the services of the system itself start under it here.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from packaging.requirements import Requirement

from tests.vm.containers import sealed
from tests.vm.containers.runtime import Runtime
from tests.vm.containers.sealed import Containers, Left

if TYPE_CHECKING:
    from collections.abc import Iterator

UNIT = "hauberk-agent.service"
BASE = Path("/var/lib/hauberk-test")
PREFIX = Path("/opt/hauberk")
ALERTS = Path("/var/log/hauberk/alerts.jsonl")
UNITS = Path("/etc/systemd/system")
HARDENED = """\
[Service]
Type=exec
ExecStart=/bin/sleep 1000000
ProtectSystem=strict
PrivateTmp=yes
PrivateDevices=yes
PrivateMounts=yes
ProtectKernelTunables=yes
MountFlags=slave
"""
ROOTED = """\
[Service]
Type=exec
RootDirectory=/srv/rooted
ExecStart=/bin/busybox sleep 1000000
"""
TIMER = "[Timer]\nOnActiveSec=1s\nAccuracySec=100ms\n"
TIMED = "[Service]\nType=oneshot\nExecStart=/bin/sh -c 'echo ran > /run/timed'\n"


def systemctl(*arguments: str, check: bool = True) -> str:
    """Run systemctl; give its output."""
    done = subprocess.run(["systemctl", *arguments], check=False, capture_output=True, text=True)
    if check and done.returncode != 0:
        journal = subprocess.run(
            ["journalctl", "-b", "-n", "80", "--no-pager"], check=False, capture_output=True, text=True
        )
        message = f"systemctl {' '.join(arguments)}: {done.stderr}\n{journal.stdout}"
        raise AssertionError(message)
    return done.stdout.strip()


def shown(unit: str, name: str) -> str:
    """Give a property of a unit."""
    return systemctl("show", "--value", "-p", name, unit)


def requirements(name: str, extras: frozenset[str] = frozenset()) -> set[str]:
    """Give a distribution and all it needs, by the names they are installed under."""
    found = {name}
    for line in importlib.metadata.distribution(name).requires or []:
        wanted = Requirement(line)
        environments = [{"extra": extra} for extra in extras] or [{"extra": ""}]
        if wanted.marker is None or any(wanted.marker.evaluate(environment) for environment in environments):
            found |= requirements(wanted.name, frozenset(wanted.extras))
    return found


def install() -> None:
    """Install Hauberk below /opt as docs/install.md says: the interpreter and all it loads belong to the root."""
    subprocess.run(["/usr/bin/python3", "-m", "venv", "--without-pip", str(PREFIX)], check=True)
    packages = PREFIX / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    for name in requirements("hauberk", frozenset({"agent"})) - {"hauberk"}:
        for file in importlib.metadata.distribution(name).files or []:
            source = Path(str(file.locate()))
            if ".." not in file.parts and source.is_file():
                target = packages / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)
    for name in ("hauberk", "guest_agent"):
        shutil.copytree(name, packages / name, ignore=shutil.ignore_patterns("__pycache__"))
    program = Path("/usr/bin/hauberk")
    program.write_text(
        f"#!{PREFIX}/bin/python3 -I\nimport sys\nfrom hauberk.cli import main\nsys.exit(main())\n", encoding="utf-8"
    )
    program.chmod(0o755)


@pytest.fixture(scope="module")
def containers() -> Iterator[Containers]:
    """Start the unit, and a container that it holds to its policy."""
    (UNITS / "hardened.service").write_text(HARDENED, "utf-8")
    (UNITS / "rooted.service").write_text(ROOTED, "utf-8")
    (UNITS / "timed.timer").write_text(TIMER, "utf-8")
    (UNITS / "timed.service").write_text(TIMED, "utf-8")
    Path("/srv/rooted/bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", "/srv/rooted/bin/busybox")
    systemctl("daemon-reload")
    systemctl("start", "rooted.service")  # without the gate it works
    systemctl("stop", "rooted.service")
    systemctl("start", "hardened.service")
    install()
    sealed.prepare(BASE)
    sealed.configure(
        BASE, Path("/etc/hauberk/agent.yaml"), alertLog=str(ALERTS),
        trustRoot=None, bundle=None, bundleSignature=None, serviceCgroups=None,
    )  # fmt: skip
    for name in ("trust-root.json", "bundle.json", "bundle.json.sig"):
        shutil.copy(BASE / name, Path("/etc/hauberk") / name)
    shutil.copy("deploy/systemd/hauberk-agent.service", UNITS / UNIT)
    systemctl("daemon-reload")
    systemctl("start", UNIT)
    made = Containers(BASE, Runtime(BASE / "runc"), cgroup_parent="/containers")
    made.create("unit").check()
    made.runtime.start("unit").check()
    yield made
    made.remove("unit")


def gate_alerts() -> list[dict[str, Any]]:
    """Give every alert of the gate since the seal, agents that were killed meanwhile included."""
    told = [json.loads(line) for line in ALERTS.read_text("utf-8").splitlines()]
    return [alert for alert in told if "operation=gate" in alert["Data"]]


def assert_in_force(containers: Containers) -> None:
    """The unit is ready, sealed, and the container is held to its policy."""
    assert shown(UNIT, "ActiveState") == "active"
    status = sealed.asked("status")
    assert status["mode"] == "sealed"
    assert len(status["sealed_digest"]) == 64
    listed = sealed.asked("workloads")
    assert [(entry["container_id"], entry["state"]) for entry in listed] == [("unit", "enforced")]
    containers.assert_held("unit")


def test_systemd_is_the_first_process_and_came_up_whole() -> None:
    """What the others rely on, asked before anything is sealed."""
    assert Path("/proc/1/comm").read_text("utf-8") == "systemd\n"
    assert systemctl("--failed", "--plain", "--no-legend") == ""
    assert Path("/proc/self/cgroup").read_text("utf-8") == "0::/system.slice/hauberk-vm.service\n"


def assert_uncovered_is_refused(containers: Containers, name: str) -> None:
    """A container that no policy covers is not created."""
    refused = containers.create(name, label=None)
    containers.remove(name)
    assert refused.status != 0
    assert "hauberk-hook" in refused.errors, refused


def test_the_hardened_agent_holds_a_container_to_its_policy(containers: Containers) -> None:
    assert_in_force(containers)
    assert_uncovered_is_refused(containers, "uncovered")


def test_the_unit_has_no_more_than_it_needs(containers: Containers) -> None:
    assert containers.bundles
    pid = shown(UNIT, "MainPID")
    status = Path(f"/proc/{pid}/status").read_text("utf-8")
    granted = {39, 38, 34, 21, 19, 12, 2}  # BPF, PERFMON, SYSLOG, SYS_ADMIN, SYS_PTRACE, NET_ADMIN, DAC_READ_SEARCH
    for name in ("CapEff", "CapBnd"):
        match = re.search(rf"^{name}:\s*(\w+)$", status, re.MULTILINE)
        assert match is not None
        assert int(match[1], 16) == sum(1 << number for number in granted), name
    assert re.search(r"^NoNewPrivs:\s*1$", status, re.MULTILINE)
    assert re.search(r"^Seccomp:\s*2$", status, re.MULTILINE)
    assert Path(f"/proc/{pid}/oom_score_adj").read_text("utf-8").strip() == "-900"
    assert oct(Path("/run/hauberk").stat().st_mode & 0o777) == "0o700"
    print(
        "VmRSS",
        sealed.status_of(int(pid))["VmRSS"],
        "KiB; memory.current",
        Path(f"/sys/fs/cgroup/system.slice/{UNIT}/memory.current").read_text("utf-8").strip(),
    )
    print(
        subprocess.run(
            ["systemd-analyze", "security", "--no-pager", UNIT], check=False, capture_output=True, text=True
        ).stdout[-300:]
    )


@pytest.mark.parametrize("how", [("restart", UNIT), ("kill", "-s", "KILL", UNIT)], ids="-".join)
def test_a_restart_finds_the_same_workload_in_force(containers: Containers, how: tuple[str, ...]) -> None:
    before = shown(UNIT, "MainPID")
    systemctl(*how)
    containers_refused = containers.inside("unit", "/bin/cat", sealed.FORBIDDEN)
    assert containers_refused.status != 0
    assert sealed.SECRET not in containers_refused.output
    sealed.until(
        lambda: shown(UNIT, "ActiveState") == "active" and shown(UNIT, "MainPID") not in {before, "0"}, "the restart"
    )
    assert_in_force(containers)
    assert_uncovered_is_refused(containers, f"uncovered-{'-'.join(how[:3])}")


def test_a_unit_with_mounts_of_its_own_starts_and_restarts_under_the_gate(containers: Containers) -> None:
    assert containers.bundles
    assert shown("hardened.service", "ActiveState") == "active"
    before = shown("hardened.service", "MainPID")
    systemctl("restart", "hardened.service")
    assert shown("hardened.service", "ActiveState") == "active"
    pid = shown("hardened.service", "MainPID")
    assert pid != before
    assert Path(f"/proc/{pid}/ns/mnt").readlink() != Path("/proc/1/ns/mnt").readlink()
    assert Path(f"/proc/{pid}/exe").readlink() == Path("/bin/sleep").resolve()


def test_a_transient_unit_and_a_timer_work(containers: Containers) -> None:
    assert containers.bundles
    done = subprocess.run(
        ["systemd-run", "--wait", "--pipe", "--quiet", "/bin/echo", "transient"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "transient\n"
    done = subprocess.run(
        ["systemd-run", "--scope", "--quiet", "/bin/echo", "scope"], check=True, capture_output=True, text=True
    )
    assert done.stdout == "scope\n"
    Path("/run/timed").unlink(missing_ok=True)
    systemctl("start", "timed.timer")
    sealed.until(Path("/run/timed").exists, "the timer's unit")


def test_the_services_of_the_system_go_on(containers: Containers) -> None:
    assert containers.bundles
    for unit in ("systemd-journald.service", "systemd-udevd.service", "systemd-logind.service", "dbus.service"):
        systemctl("restart", unit)
        assert shown(unit, "ActiveState") == "active", unit
    subprocess.run(["udevadm", "trigger", "--action=change"], check=True)
    subprocess.run(["udevadm", "settle", "--timeout=100"], check=True)
    systemctl("start", "systemd-tmpfiles-clean.service")
    systemctl("daemon-reexec")
    systemctl("daemon-reload")
    assert systemctl("is-system-running", check=False) in {"running", "starting"}
    failed = systemctl("--failed", "--plain", "--no-legend")
    assert failed == "", failed


def test_the_gate_refused_nothing_of_the_system(containers: Containers) -> None:
    assert containers.bundles
    told = gate_alerts()
    assert told == [], json.dumps(told, indent=1)


def test_a_unit_in_a_root_directory_of_its_own_is_refused(containers: Containers) -> None:
    assert containers.bundles
    done = subprocess.run(["systemctl", "start", "rooted.service"], check=False, capture_output=True, text=True)
    assert done.returncode != 0
    sealed.until(lambda: bool(gate_alerts()), "the gate's alert")
    assert [alert["Resource"] for alert in gate_alerts()] == ["/bin/busybox"]  # by its own root


def test_a_container_that_ends_leaves_nothing(containers: Containers) -> None:
    containers.create("brief").check()
    containers.runtime.start("brief").check()
    containers.assert_held("brief")
    containers.remove("brief")
    assert [entry["container_id"] for entry in sealed.asked("workloads")] == ["unit"]
    left = sealed.left()
    assert left == Left(1, 1, 1)
