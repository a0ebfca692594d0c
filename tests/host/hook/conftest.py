# SPDX-License-Identifier: Apache-2.0
"""Real runtimes, a bundle to give them, and agents that behave or misbehave."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from guest_agent.api.hook_socket import HookAnswer, Peer, Stage, serve
from guest_agent.workloads.oci_state import OciState, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HOOK = Path(__file__).resolve().parents[3] / "hooks" / "hauberk-hook"
CGROUP2_MAGIC = "cgroup2fs"

# crun refuses hybrid cgroup hierarchies: there it gets a mount namespace that shows version 2 alone.
UNIFIED = 'umount -R /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup && exec "$@"'


@dataclass
class Runtime:
    """One OCI runtime with its own state directory; knows the containers it made."""

    name: str
    root: Path
    containers: list[str] = field(default_factory=list)

    def command(self, *arguments: str) -> list[str]:
        """Return the whole command line, with the prefix this machine needs."""
        prefix: list[str] = []
        if self.name == "crun":
            kind = subprocess.run(
                ["stat", "-fc", "%T", "/sys/fs/cgroup"], capture_output=True, text=True, check=True
            ).stdout.strip()
            if kind != CGROUP2_MAGIC:
                prefix = ["unshare", "--mount", "sh", "-c", UNIFIED, "sh"]
            prefix += ["crun", "--cgroup-manager=cgroupfs"]
        else:
            prefix = [self.name]
        return [*prefix, "--root", str(self.root), *arguments]

    def __call__(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:  # noqa: ANN401 - subprocess.run's
        """Run to the end; output goes through a file, because a container's init inherits it and stays."""
        with (self.root.parent / f"{self.name}.out").open("w+") as output:
            result = subprocess.run(
                self.command(*arguments),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=120,
                check=False,
                **options,
            )
            output.seek(0)
            return subprocess.CompletedProcess(result.args, result.returncode, output.read(), "")

    def new_id(self) -> str:
        """Return a container name of this test that is deleted afterwards."""
        identifier = f"hauberk-test-{uuid.uuid4().hex[:12]}"
        self.containers.append(identifier)
        return identifier

    def clean(self) -> None:
        """Delete every container of this test, whatever became of it."""
        for identifier in self.containers:
            self("delete", "--force", identifier)


@pytest.fixture(params=["runc", "crun"])
def runtime(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Runtime]:
    assert os.geteuid() == 0, "the host lane needs root: run it as root, or run tests/unit"
    assert shutil.which(request.param), f"{request.param} is missing: apt-get install {request.param}"
    runtime = Runtime(request.param, tmp_path / "state")
    yield runtime
    runtime.clean()


@dataclass
class Bundle:
    """An OCI bundle around busybox whose hooks are set per test."""

    path: Path

    def write(self, *, hooks: dict[str, Any], arguments: list[str], annotations: dict[str, str] | None = None) -> None:
        """Write config.json for one test."""
        config = json.loads((self.path / "config.json").read_text())
        config["process"].update(terminal=False, args=arguments)
        config["linux"]["resources"] = {}
        config["hooks"] = hooks
        config["annotations"] = annotations or {}
        (self.path / "config.json").write_text(json.dumps(config))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    busybox = shutil.which("busybox")
    assert busybox, "busybox is missing: apt-get install busybox-static"
    path = tmp_path / "bundle"
    (path / "rootfs" / "bin").mkdir(parents=True)
    shutil.copy(busybox, path / "rootfs" / "bin" / "busybox")
    for name in ("echo", "sleep"):
        (path / "rootfs" / "bin" / name).symlink_to("busybox")
    subprocess.run(["runc", "spec"], cwd=path, check=True, timeout=60)
    return Bundle(path)


@dataclass
class Agent:
    """A fake agent: answers as it is told and keeps what it was asked."""

    path: Path
    answer: HookAnswer = field(default_factory=lambda: HookAnswer(accepted=True))
    asked: list[tuple[Stage, OciState]] = field(default_factory=list)

    def handle(self, stage: Stage, state: bytes, _peer: Peer) -> HookAnswer:
        """Answer as told; poststop is always accepted."""
        self.asked.append((stage, parse(state)))
        return self.answer if stage is not Stage.POSTSTOP else HookAnswer(accepted=True)

    def stages(self, identifier: str) -> list[Stage]:
        """Return what was asked about one container, in order."""
        return [stage for stage, state in self.asked if state.id == identifier]


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    fake = Agent(tmp_path / "run" / "hook.sock")
    with serve(fake.path, fake.handle):
        yield fake


@contextmanager
def raw_agent(path: Path, behave: Callable[[socket.socket], None]) -> Iterator[None]:
    """Serve with a function that gets each connection and does with it what it likes."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(8)

    def loop() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                behave(connection)

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(60)


def hooks(path: Path, *, timeout: str = "20", **stages: str) -> dict[str, Any]:
    """Return an OCI hooks section; by default both our stages, with an empty environment."""
    wanted = stages or {"createRuntime": "createRuntime", "poststop": "poststop"}
    return {
        key: [
            {
                "path": str(HOOK),
                "args": ["hauberk-hook", "--socket", str(path), "--timeout", timeout, stage],
                "env": [],
            }
        ]
        for key, stage in wanted.items()
    }
