# SPDX-License-Identifier: Apache-2.0
"""An agent that filters packets, in a network of its own, with real containers: for ``test_agent_network.py``.

The *outside* is a network namespace in which the agent runs, so that it is "the machine" whose own packets a host
policy is about. Containers are made by runc: in namespaces of their own, which hang on the outside by a virtual
Ethernet pair as behind any routed network plug-in, in one that they share, or in the outside itself. The machine that
the tests run on gets no rule, no link and no address.

All of it is in a process namespace of its own with a ``/proc`` to match: its first process ends with the test and takes
everybody along, and the agent may look at it, as at the first process of a real machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hauberk.bundle import PolicyFile, SuccessorRule, Terms, create, keys, signatures
from hauberk.bundle.keys import Algorithm

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

HOOK: Final = Path(__file__).resolve().parents[3] / "hooks" / "hauberk-hook"
PATIENCE_SECONDS: Final = 30.0
REFUSAL_SECONDS: Final = 2
"""How long a client waits for an answer that a rule keeps away."""
HELLO: Final = "hello"
_SERVER: Final = """
import socket, socketserver, sys, threading
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(sys.argv[1].encode() + b"\\n")
        for line in self.rfile:
            self.wfile.write(line)
class Server(socketserver.ThreadingTCPServer):
    address_family, allow_reuse_address, daemon_threads = socket.AF_INET6, True, True
for port in map(int, sys.argv[2:]):
    threading.Thread(target=Server(("::", port), Handler).serve_forever).start()
print("ready", flush=True)
"""


_KILLED: Final = """
import os, signal, sys
from guest_agent.engines.absent import AbsentEngine
from guest_agent.network.controller import Network
from hauberk.cli import main
step = sys.argv.pop(1)
owner = AbsentEngine if step == "advance" else Network
real = getattr(owner, step)
def killed(*arguments):
    real(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(owner, step, killed)
sys.exit(main())
"""
"""The agent, killed after one step of a submission."""


def until(condition: Callable[[], object], what: str | Callable[[], str]) -> None:
    """Wait for something; how long it takes is no part of a test."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what if isinstance(what, str) else what()}"
        time.sleep(0.05)


def child_of(process: subprocess.Popen[bytes]) -> int:
    """Give the number of the process that one that entered a process namespace has made there."""
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    until(lambda: process.poll() is not None or path.read_text().split(), "a process in the process namespace")
    return int(path.read_text().split()[0])


@dataclass
class Processes:
    """A process namespace with mounts of its own, kept by its first process."""

    keeper: subprocess.Popen[bytes]

    @classmethod
    def make(cls) -> Processes:
        """Make one."""
        options = ["--pid", "--fork", "--mount-proc", "--kill-child"]
        return cls(subprocess.Popen(["unshare", *options, "sleep", "infinity"]))

    def inside(self, *command: str, net: Net | None = None) -> list[str]:
        """Give the command line that runs a command there, and in a network namespace."""
        first = f"/proc/{child_of(self.keeper)}/ns"
        network = [] if net is None else [f"--net={net.path}"]
        return ["nsenter", f"--pid={first}/pid", f"--mount={first}/mnt", *network, *command]


@dataclass
class Net:
    """A network namespace, kept by a process ``pid``, which has the number ``inner_pid`` among the lab's processes."""

    processes: Processes
    keeper: subprocess.Popen[bytes]
    pid: int
    inner_pid: int

    @classmethod
    def make(cls, processes: Processes) -> Net:
        """Make one with its loopback interface up."""
        keeper = subprocess.Popen(processes.inside("unshare", "--net", "sleep", "infinity"))
        pid = child_of(keeper)
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
        net = cls(processes, keeper, pid, next(int(line.split()[-1]) for line in status if line.startswith("NSpid:")))
        own = Path("/proc/self/ns/net").stat().st_ino
        until(lambda: net.inode != own, "a network namespace")
        net("ip", "link", "set", "lo", "up")
        return net

    @property
    def path(self) -> str:
        """What opens it."""
        return f"/proc/{self.pid}/ns/net"

    @property
    def inner_path(self) -> str:
        """What opens it among the lab's processes."""
        return f"/proc/{self.inner_pid}/ns/net"

    @property
    def inode(self) -> int:
        """Its number."""
        return Path(self.path).stat().st_ino

    def inside(self, *command: str) -> list[str]:
        """Give the command line that runs a command there."""
        return self.processes.inside(*command, net=self)

    def __call__(self, *command: str) -> str:
        """Run a command there to its end."""
        return subprocess.run(self.inside(*command), check=True, capture_output=True, text=True).stdout

    def connects(self, address: str, port: int) -> bool:
        """Whether a client there gets an answer."""
        client = ["busybox", "nc", "-w", str(REFUSAL_SECONDS), address, str(port)]
        done = subprocess.run(
            self.inside(*client), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        return HELLO in done.stdout


@dataclass
class Lab:
    """The network, the owner's key, the agent and its containers."""

    directory: Path
    name: str = field(default_factory=lambda: f"hauberk-test-{uuid.uuid4().hex[:8]}")
    nets: list[Net] = field(default_factory=list)
    processes: list[subprocess.Popen[str]] = field(default_factory=list)
    containers: list[str] = field(default_factory=list)
    agent: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        """Make the outside and a key."""
        self.inner = Processes.make()
        self.signer = keys.generate(Algorithm.ECDSA_P256)
        self.outside = self.net()
        root = {
            "apiVersion": "hauberk/v1",
            "kind": "TrustRoot",
            "keys": [{"name": "owner", "publicKey": keys.public_pem(self.signer.public()).decode()}],
            "bundle": {"name": "lab", "minimumVersion": 1},
        }
        (self.directory / "trust-root.json").write_text(json.dumps(root))

    # ---- the network ---------------------------------------------------------------------------------------------

    def net(self) -> Net:
        """Make a namespace."""
        made = Net.make(self.inner)
        self.nets.append(made)
        return made

    def attached(self, number: int) -> Net:
        """Make a namespace that reaches the outside as 10.77.NUMBER.2 and fd77:NUMBER::2."""
        made = self.net()
        self.outside("ip", "link", "add", f"v{number}", "type", "veth", "peer", "name", "eth0")
        self.outside("ip", "link", "set", "eth0", "netns", str(made.inner_pid))
        for net, link, host in ((self.outside, f"v{number}", 1), (made, "eth0", 2)):
            net("ip", "addr", "add", f"10.77.{number}.{host}/24", "dev", link)
            net("ip", "-6", "addr", "add", f"fd77:{number}::{host}/64", "dev", link, "nodad")
            net("ip", "link", "set", link, "up")
        made("ip", "route", "add", "default", "via", f"10.77.{number}.1")
        made("ip", "-6", "route", "add", "default", "via", f"fd77:{number}::1")
        return made

    def serve(self, net: Net, *ports: int) -> None:
        """Say hello to whoever connects, and repeat what is said until it ends."""
        command = net.inside(sys.executable, "-c", _SERVER, HELLO, *map(str, ports))
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.processes.append(server)
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"

    # ---- the agent -----------------------------------------------------------------------------------------------

    @property
    def state(self) -> Path:
        """The agent's state directory."""
        return self.directory / "run" / "workloads"

    @property
    def socket(self) -> Path:
        """The agent's API."""
        return self.directory / "run" / "agent.sock"

    def bundle(self, version: int, *policies: str, default: str = "deny") -> tuple[Path, Path]:
        """Write a signed bundle and give its files."""
        files = tuple(PolicyFile(f"policy-{number}.yaml", text) for number, text in enumerate(policies))
        data = create("lab", version, files, default, conditions=Terms(successor=SuccessorRule()))
        paths = self.directory / f"bundle-{version}.json", self.directory / f"bundle-{version}.sig"
        for path, content in zip(paths, (data, signatures.sign(self.signer, data)), strict=True):
            path.write_bytes(content)
        return paths

    def configure(self, bundle: tuple[Path, Path], **settings: object) -> Path:
        """Write the agent's configuration."""
        path = self.directory / "agent.yaml"
        found: dict[str, object] = {
            "mode": "host",
            "engines": ["nftables"],
            "trustRoot": str(self.directory / "trust-root.json"),
            "bundle": str(bundle[0]),
            "bundleSignature": str(bundle[1]),
            "hookSocket": str(self.directory / "run" / "hook.sock"),
            "agentSocket": str(self.socket),
            "stateDirectory": str(self.state),
            "alertLog": str(self.directory / "alerts.jsonl"),
            "managers": [str(shutil.which("runc"))],
            **settings,
        }
        path.write_text(json.dumps(found))  # JSON is YAML
        return path

    def start(self, configuration: Path, killed_after: str = "") -> None:
        """Start the agent outside and wait until it is ready; ``killed_after``: see ``_KILLED``."""
        notify = self.directory / "notify.sock"
        notify.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
            listener.bind(str(notify))
            listener.settimeout(0.2)
            program = ["-c", _KILLED, killed_after] if killed_after else ["-m", "hauberk.cli"]
            command = [sys.executable, *program, "agent", "run", "--configuration", str(configuration)]
            with (self.directory / "agent.log").open("ab") as log:
                self.agent = subprocess.Popen(
                    self.outside.inside(*command), stderr=log, env={**os.environ, "NOTIFY_SOCKET": str(notify)}
                )
            told = b""

            def ready() -> bool:
                nonlocal told
                assert self.agent is not None
                assert self.agent.poll() is None, self.log()
                with contextlib.suppress(TimeoutError):
                    told = listener.recv(100)
                return told == b"READY=1"

            until(ready, f"the agent\n{self.log()}")

    def log(self) -> str:
        """What the agent logged."""
        return (self.directory / "agent.log").read_text()

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End the agent."""
        assert self.agent is not None
        os.kill(child_of(self.agent), number)
        self.agent.wait(PATIENCE_SECONDS)
        self.agent = None

    def memory(self) -> int:
        """The agent's resident memory in bytes."""
        assert self.agent is not None
        fields = Path(f"/proc/{child_of(self.agent)}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in fields if line.startswith("VmRSS:"))

    def hauberk(self, *arguments: str, code: int = 0) -> str:
        """Run the command line outside, to its end."""
        command = [sys.executable, "-m", "hauberk.cli", *arguments]
        done = subprocess.run(self.outside.inside(*command), capture_output=True, text=True, check=False)
        assert done.returncode == code, f"{done.stdout}{done.stderr}\n{self.log()}"
        return done.stdout + done.stderr

    def alerts(self, **wanted: str) -> list[dict[str, object]]:
        """Give the alerts that have these fields; of ``Data``, a part is enough."""
        path = self.directory / "alerts.jsonl"
        every = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [
            alert
            for alert in every
            if all(value in alert[key] if key == "Data" else alert[key] == value for key, value in wanted.items())
        ]

    # ---- containers ----------------------------------------------------------------------------------------------

    def container(  # noqa: PLR0913 - what a container is
        self,
        net: Net,
        script: str,
        labels: Mapping[str, str] | None = None,
        *,
        capabilities: tuple[str, ...] = (),
        accepted: bool = True,
        wait: bool = False,
    ) -> str:
        """Run a container whose program is a shell script; give its id. Its output is in :meth:`output`."""
        identifier = f"{self.name}-{len(self.containers)}"
        self.containers.append(identifier)
        path = self.directory / identifier
        (path / "rootfs" / "bin").mkdir(parents=True)
        busybox = shutil.which("busybox")
        assert busybox, "busybox is missing: apt-get install busybox-static"
        shutil.copy(busybox, path / "rootfs" / "bin" / "busybox")
        for name in ("sh", "nc", "sleep", "echo", "ping", "tcpsvd", "cat"):
            (path / "rootfs" / "bin" / name).symlink_to("busybox")
        subprocess.run(["runc", "spec"], cwd=path, check=True, timeout=60)
        config = json.loads((path / "config.json").read_text())
        config["process"].update(terminal=False, args=["/bin/sh", "-c", script])
        config["process"]["capabilities"] = {key: list(capabilities) for key in ("bounding", "effective", "permitted")}
        config["linux"]["resources"] = {}
        config["linux"]["cgroupsPath"] = f"/{self.name}/{identifier}"
        for namespace in config["linux"]["namespaces"]:
            if namespace["type"] == "network":
                namespace["path"] = net.inner_path
        config["annotations"] = {f"io.hauberk.label.{key}": value for key, value in (labels or {}).items()}
        hook = {"path": str(HOOK), "env": []}
        options = ["hauberk-hook", "--socket", str(self.directory / "run" / "hook.sock"), "--timeout", "30"]
        config["hooks"] = {stage: [{**hook, "args": [*options, stage]}] for stage in ("createRuntime", "poststop")}
        (path / "config.json").write_text(json.dumps(config))
        with (path / "output").open("w") as output:
            process = subprocess.Popen(
                self.inner.inside(*self._runc, "run", "--bundle", str(path), identifier),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
            )
        self.processes.append(process)
        if wait or not accepted:
            process.wait(PATIENCE_SECONDS)
            assert (process.returncode == 0) is accepted, f"{self.output(identifier)}\n{self.log()}"
        return identifier

    def output(self, identifier: str) -> str:
        """What a container has printed."""
        return (self.directory / identifier / "output").read_text()

    def expect(self, identifier: str, text: str) -> None:
        """Wait for a container to print something."""
        until(
            lambda: text in self.output(identifier),
            lambda: f"{text!r}; found {self.output(identifier)!r}\n{self.log()}",
        )

    @property
    def _runc(self) -> tuple[str, ...]:
        return "runc", "--root", str(self.directory / "runc")

    def end(self, identifier: str) -> None:
        """End a container."""
        subprocess.run(
            self.inner.inside(*self._runc, "delete", "--force", identifier),
            capture_output=True,
            check=False,
            timeout=60,
        )

    def close(self) -> None:
        """End everything and leave nothing."""
        for identifier in self.containers:
            self.end(identifier)
        self.inner.keeper.kill()  # and with it everybody within
        agent = [self.agent] if self.agent is not None else []
        keepers = [self.inner.keeper, *(net.keeper for net in self.nets)]
        every: list[subprocess.Popen[bytes] | subprocess.Popen[str]] = [*keepers, *agent, *self.processes]
        for process in every:
            with process:  # closes its pipes and waits
                process.kill()
        for top in Path("/sys/fs/cgroup").glob(f"*/{self.name}"):
            for directory, _, _ in os.walk(top, topdown=False):
                Path(directory).rmdir()


def attachments(lab: Lab, net: Net) -> dict[str, str]:
    """Give what the agent says a namespace's containers are known by there."""
    told = json.loads(lab.hauberk("network", "status", "--json", "--socket", str(lab.socket)))
    [found] = [one for one in told["namespaces"] if one["inode"] == str(net.inode)]
    return {endpoint["container_id"]: endpoint["attachment"] for endpoint in found["endpoints"]}
