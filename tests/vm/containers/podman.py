# SPDX-License-Identifier: Apache-2.0
"""A thin wrapper around a real podman, rootful, with storage of its own.

podman has no daemon: each command reads its configuration and hooks anew. What it takes from the machine is stated in
a containers.conf of ours, so that a developer's own settings change no test: host network (a machine without a network
is enough), cgroups without a service manager, and limits that need no CAP_SYS_RESOURCE.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.vm.containers.runtime import DEFAULT_LIMIT, Completed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_SETTINGS = """\
[containers]
netns = "host"
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[network]
network_backend = "netavark"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
"""


@dataclass(frozen=True)
class Podman:
    """podman with one OCI runtime.

    ``base`` is a directory of its own, created here. ``prefix`` stands before every command (``nsenter …``). Without
    ``hooks_directory`` podman looks for hooks where it does by default.
    """

    base: Path
    runtime: str = "runc"
    hooks_directory: Path | None = None
    prefix: tuple[str, ...] = ()
    storage_driver: str = "overlay"
    limit: float = DEFAULT_LIMIT

    def prepare(self) -> None:
        """Make the directory and the settings, unless they are there."""
        self.base.mkdir(parents=True, exist_ok=True)
        settings = self.base / "containers.conf"
        if not settings.exists():
            settings.write_text(_SETTINGS, "utf-8")

    def __call__(self, *arguments: str | Path) -> Completed:
        """Run one command of podman to its end."""
        self.prepare()
        line = [*self.prefix, "env", f"CONTAINERS_CONF={self.base / 'containers.conf'}"]
        line += ["podman", "--storage-driver", self.storage_driver]
        for option, name in (("--root", "storage"), ("--runroot", "run"), ("--tmpdir", "tmp")):
            line += [option, str(self.base / name)]
        line += ["--runtime", self.runtime]
        if self.hooks_directory is not None:
            line += ["--hooks-dir", str(self.hooks_directory)]
        line += map(str, arguments)
        result = subprocess.run(
            line, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=self.limit
        )
        return Completed(tuple(line), result.returncode, result.stdout, result.stderr)

    def run(self, image: str, *command: str, options: Sequence[str] = (), label: str | None = None) -> Completed:
        """Create and start a container with ``io.hauberk.label.app=LABEL``; wait for its end unless told otherwise."""
        chosen = [*options]
        if label is not None:
            chosen += ["--annotation", f"io.hauberk.label.app={label}"]
        return self("run", *chosen, image, *command)

    def remove_all(self) -> None:
        """Remove every container, running or not; poststop hooks run."""
        self("rm", "--force", "--all", "--time", "0").check()
