# SPDX-License-Identifier: Apache-2.0
"""The real agent in sealed mode, with a signed bundle of its own, and what a test asks of it from outside.

The agent is a process as its users start it, the questions go through the command line, and what the kernel holds is
read from the kernel's own maps: none of the agent's words is taken for it.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from guest_agent.engines.bpf_lsm import layout
from guest_agent.engines.bpf_lsm.libbpf import Libbpf, Map
from tests.vm.containers import bundle as oci
from tests.vm.containers import rootfs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.vm.containers.bundle import Bundle
    from tests.vm.containers.runtime import Completed, Runtime

PROGRAMS: Final = Path(".cache/containers")
PINS: Final = Path("/sys/fs/bpf/hauberk")
HOOK: Final = Path("/usr/libexec/hauberk/hauberk-hook")
SOCKET: Final = Path("/run/hauberk/hook.sock")
RECORDS: Final = Path("/run/hauberk/workloads")
MANAGERS: Final = ("/usr/sbin/runc", "/usr/bin/crun")
PARKED: Final = Path("/usr/local/bin/parked")
"""A container manager of the faked runtime: what its parked inits run."""
SECRET: Final = "HAUBERK-SECRET"  # noqa: S105 - what the policy protects
FORBIDDEN: Final = "/srv/secrets/app/prod/key"
WAIT: Final = 120.0
CLONE_NEWNS: Final = 0x00020000
MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18
POLICIES: Final = {
    "secrets.yaml": """\
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata:
  name: secrets
spec:
  selector:
    matchLabels:
      app: secrets
  process:
    action: Block
    matchPaths:
      - path: /usr/bin/dash
  file:
    matchDirectories:
      - dir: /
        recursive: true
        action: Allow
      - dir: /srv/secrets/app/
        recursive: true
        action: Block
    matchPaths:
      - path: /etc/hosts
        action: Audit
""",
    "listing.yaml": """\
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata:
  name: listing
spec:
  selector:
    matchLabels:
      app: listing
  process:
    action: Block
    matchPaths:
      - path: /usr/bin/ls
""",
}


@dataclass(frozen=True)
class Left:
    """What the kernel and the agent's directory hold: cgroups in force, slots in use, records."""

    cgroups: int
    slots: int
    records: int


NOTHING: Final = Left(0, 0, 0)


def left() -> Left:
    """Look into the kernel's maps, at the places of both epochs, and the directory of records."""
    library = Libbpf()
    cgroups, workloads = Map.pinned(library, PINS / "cgroups"), Map.pinned(library, PINS / "workloads")
    try:
        slots = (workloads.get(layout.KEY.pack(slot)) or b"" for slot in range(2 * layout.MAXIMUM_WORKLOADS))
        used = sum(layout.WorkloadRecord.decode(slot).workload_id != 0 for slot in slots)
        records = sum(path.name[0].isdigit() for path in RECORDS.iterdir())
        return Left(len(cgroups.keys(layout.CGROUP.size)), used, records)
    finally:
        os.close(cgroups.descriptor)
        os.close(workloads.descriptor)


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition. Raises AssertionError after two minutes, which no working machine takes."""
    end = time.monotonic() + WAIT
    while not condition():
        if time.monotonic() > end:
            message = f"waited {WAIT:g} s in vain for: {what}"
            raise AssertionError(message)
        time.sleep(0.05)


def hauberk(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command line."""
    line = [sys.executable, "-m", "hauberk.cli", *map(str, arguments)]
    return subprocess.run(line, check=False, capture_output=True, text=True)


def asked(*arguments: str) -> Any:  # noqa: ANN401 - JSON
    """Ask the agent, expecting an answer in JSON."""
    done = hauberk(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def alerts() -> list[dict[str, Any]]:
    """Give every alert the agent keeps."""
    done = hauberk("alerts", "--json")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def prepare(base: Path, *options: str, policies: Mapping[str, str] = POLICIES) -> None:
    """Make keys, a signed bundle, the root file system, the hook and the faked runtime's executable.

    ``options`` are more of ``bundle build``; ``policies`` the files that the bundle is built of.
    """
    base.mkdir(parents=True)
    subprocess.run(["/bin/mount", "-t", "tmpfs", "-o", "size=512m,mode=755", "hauberk-test", str(base)], check=True)
    rootfs.build(base / "rootfs", PROGRAMS, deep=False)
    HOOK.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy("hooks/hauberk-hook", HOOK)
    HOOK.chmod(0o755)
    shutil.copy("/bin/busybox", PARKED)
    (base / "policies").mkdir()
    for name, text in policies.items():
        (base / "policies" / name).write_text(text)
    built = ("--name", "test", "--version", "1")
    assert hauberk("bundle", "keygen", "-o", base / "owner").returncode == 0
    build(base / "policies", base / "bundle.json", base / "owner.key", *built, *options)
    key = {"name": "owner", "publicKey": (base / "owner.pub").read_text()}
    root = {
        "apiVersion": "hauberk/v1",
        "kind": "TrustRoot",
        "keys": [key],
        "bundle": {"name": "test", "minimumVersion": 1},
    }
    (base / "trust-root.json").write_text(json.dumps(root))


def build(policies: Path, bundle: Path, key: Path, *options: str) -> None:
    """Build and sign a bundle as its owner does; the signature lies beside it."""
    signature = bundle.with_name(f"{bundle.name}.sig")
    done = hauberk("bundle", "build", policies, "-o", bundle, *options)
    assert done.returncode == 0, done.stderr
    done = hauberk("bundle", "sign", bundle, "--key", key, "-o", signature)
    assert done.returncode == 0, done.stderr


def configure(base: Path, path: Path, **more: object) -> Path:
    """Write the agent's configuration, every cgroup being a service's unless ``more`` says otherwise.

    A setting given as None is left out: the agent's own default stands.
    """
    settings: dict[str, Any] = {
        "mode": "sealed",
        "trustRoot": str(base / "trust-root.json"),
        "bundle": str(base / "bundle.json"),
        "bundleSignature": str(base / "bundle.json.sig"),
        "helpers": [str(HOOK)],
        "managers": [*MANAGERS, str(PARKED)],
        "serviceCgroups": ["/"],
        **more,
    }
    settings = {name: value for name, value in settings.items() if value is not None}
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_text(json.dumps(settings))
    return path


@dataclass
class Agent:
    """One process of the agent at a time, on one configuration."""

    configuration: Path
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self, fault: str = "") -> None:
        """Start the agent and wait until it answers; ``fault`` names the step at which it is to be killed."""
        module = ["tests.vm.containers.faulty", fault] if fault else ["hauberk.cli"]
        command = [sys.executable, "-m", *module, "agent", "run", "--configuration", str(self.configuration)]
        with self.log.open("ab") as log:
            offset = log.tell()
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

        def ready() -> bool:
            with self.log.open("rb") as log:
                log.seek(offset)
                text = log.read().decode()
            assert self.process is not None
            assert self.process.poll() is None, text
            return '"message": "ready"' in text

        until(ready, "the agent to be ready")

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self.process is not None
        return self.process.pid

    def send(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def end(self, number: int = signal.SIGKILL) -> int:
        """End it by a signal; give its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        self.process.send_signal(signal.SIGCONT)
        return self.process.wait(WAIT)

    def resident(self) -> int:
        """Its resident memory in KiB."""
        return status_of(self.pid)["VmRSS"]

    def descriptors(self) -> int:
        """How many descriptors it has open."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))


def status_of(pid: int) -> dict[str, int]:
    """Numbers of /proc/PID/status: memory in KiB."""
    found = {}
    for line in Path(f"/proc/{pid}/status").read_text("utf-8").splitlines():
        name, _, value = line.partition(":")
        words = value.split()
        if words and words[0].isdigit():
            found[name] = int(words[0])
    return found


@dataclass
class Containers:
    """Containers of one real runtime with Hauberk's hooks."""

    base: Path
    runtime: Runtime
    hook: tuple[str, ...] = (str(HOOK),)
    cgroup_parent: str = ""
    bundles: dict[str, Bundle] = field(default_factory=dict)

    def write(self, name: str, label: str | None = "secrets", **options: Any) -> Bundle:  # noqa: ANN401 - Options' own
        """Write the bundle of a container with this label."""
        path, *arguments = self.hook
        hooks = {
            "createRuntime": (oci.Hook(path, (*arguments, "createRuntime"), (), 60),),
            "poststop": (oci.Hook(path, (*arguments, "poststop"), (), 60),),
        }
        if label is not None:
            options["annotations"] = {"io.hauberk.label.app": label}
        if self.cgroup_parent:
            options["cgroup_path"] = f"{self.cgroup_parent}/{name}"
        made = oci.write(self.base / "bundles" / name, self.base / "rootfs", oci.Options(hooks=hooks, **options))
        self.bundles[name] = made
        return made

    def create(self, name: str, label: str | None = "secrets", **options: Any) -> Completed:  # noqa: ANN401 - as above
        """Write a bundle and create the container."""
        return self.runtime.create(name, self.write(name, label, **options))

    def inside(self, name: str, *arguments: str, data: bytes | None = None) -> Completed:
        """Run a program in a running container."""
        return self.runtime.execute(name, self.bundles[name], arguments, data=data)

    def assert_held(self, name: str) -> None:
        """A running container of the policy ``secrets``: one thing works, what is forbidden is refused."""
        allowed = self.inside(name, "/bin/cat", "/etc/passwd")
        assert allowed.status == 0, allowed
        assert "root" in allowed.output
        for arguments in (("/bin/cat", FORBIDDEN), ("/bin/sh", "-c", "echo got in")):
            refused = self.inside(name, *arguments)
            assert refused.status != 0, refused
            assert SECRET not in refused.output, refused
            assert "got in" not in refused.output, refused
            assert "ermission denied" in refused.errors + refused.output, refused

    def remove(self, name: str) -> None:
        """Delete the container and its bundle; its poststop hooks run."""
        self.runtime.delete(name)
        self.bundles.pop(name).remove()


class Parked:
    """A parked init of the faked runtime: in a cgroup and a mount namespace of its own, running a manager's program."""

    def __init__(self, name: str, base: Path, *, label: str = "secrets") -> None:
        """Start it and write its bundle."""
        self.name = name
        self.cgroup = Path("/sys/fs/cgroup/faked") / name
        self.cgroup.mkdir(parents=True)
        self.bundle = base / "faked" / name
        self.bundle.mkdir(parents=True)
        options = oci.Options(annotations={"io.hauberk.label.app": label})
        (self.bundle / "config.json").write_text(json.dumps(oci.config(options, str(base / "rootfs"))))
        library = ctypes.CDLL(None, use_errno=True)
        root = os.fsencode(base / "rootfs")

        def park() -> None:
            (self.cgroup / "cgroup.procs").write_text("0")
            if (
                library.unshare(CLONE_NEWNS) != 0
                or library.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) != 0
                or library.mount(root, root, None, MS_BIND, None) != 0
            ):
                raise OSError(ctypes.get_errno(), "a mount namespace with a root of its own")

        self.process = subprocess.Popen(
            ["busybox", "sleep", "1000000"],
            executable=PARKED,
            preexec_fn=park,  # noqa: PLW1509 - no threads here
            stdin=subprocess.DEVNULL,
        )

    def state(self, *, status: str = "created", pid: int | None = None) -> bytes:
        """Give the state that a runtime hands its hooks."""
        shown = self.process.pid if pid is None else pid
        document: Mapping[str, Any] = {
            "ociVersion": "1.0.2",
            "id": self.name,
            "status": status,
            "pid": shown,
            "bundle": str(self.bundle),
        }
        return json.dumps(document).encode()

    def register(self) -> tuple[bool, str]:
        """Announce it as the createRuntime hook does."""
        return ask(1, self.state())

    def end(self) -> None:
        """Kill it and remove its cgroup."""
        self.process.kill()
        self.process.wait()
        until(lambda: "populated 0" in (self.cgroup / "cgroup.events").read_text(), "the cgroup to be empty")
        self.cgroup.rmdir()
        shutil.rmtree(self.bundle)

    def stop(self) -> tuple[bool, str]:
        """End it and tell so as the poststop hook does."""
        self.end()
        return ask(3, self.state(status="stopped", pid=0))

    def __enter__(self) -> Self:
        """Give itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it if nobody has."""
        if self.process.returncode is None:
            self.end()


def ask(stage: int, state: bytes) -> tuple[bool, str]:
    """Speak the hook's protocol; give (accepted, message)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as agent:
        agent.settimeout(WAIT)
        agent.connect(str(SOCKET))
        agent.sendall(b"HBK1" + bytes((stage, 0, 0, 0)) + len(state).to_bytes(4, "little") + state)
        data = b""
        while chunk := agent.recv(8192):
            data += chunk
    assert data[:4] == b"HBK1", data
    return data[4] == 0, data[12:].decode()
