# SPDX-License-Identifier: Apache-2.0
"""A real containerd of the test's own: other directories, other sockets, no service manager, no network.

Containers outlive the daemon on purpose: each has a shim. So what a test started is removed through the daemon first,
and whatever shim is left after that is ended by its process id.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from tests.vm.containers.cri import Cri
from tests.vm.containers.runtime import DEFAULT_LIMIT, Completed

if TYPE_CHECKING:
    from collections.abc import Mapping

PAUSE: Final = "hauberk.test/pause:1"
"""The image of pods' own containers; tests import it."""
_UNUSED: Final = ("aufs", "btrfs", "devmapper", "zfs")
_SHIM: Final = "containerd-shim"


@dataclass
class Containerd:
    """One daemon. ``base`` must be short: its sockets' paths have at most 107 bytes.

    ``configuration`` is where :meth:`configure` writes its configuration file, which imports ``/etc/containerd/conf.d``
    as an operator's does. Call it first. ``handlers``: the CRI plugin's runtime handlers, each with the program of its
    OCI runtime; the first is the default.
    """

    base: Path
    configuration: Path
    handlers: Mapping[str, str]
    prefix: tuple[str, ...] = ()
    _process: subprocess.Popen[bytes] | None = None
    _cri: Cri | None = None

    @property
    def socket(self) -> Path:
        """Where it listens."""
        return self.base / "containerd.sock"

    @property
    def cri(self) -> Cri:
        """The connection to its CRI plugin."""
        assert self._cri is not None
        return self._cri

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """Its process."""
        assert self._process is not None
        return self._process

    def __enter__(self) -> Self:
        """Start the daemon and wait until it answers. Raises AssertionError with its log if it does not."""
        with (self.base / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [*self.prefix, "containerd", "--config", str(self.configuration)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        self._cri = Cri(self.socket, self.base / "logs")
        try:
            self._cri.version()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the pods, stop the daemon, end what is left of its shims."""
        try:
            if self._cri is not None:
                self._cri.close()
        finally:
            self.stop()

    def restart(self) -> None:
        """Start the daemon anew: it reads its configuration again."""
        self.cri.close()
        self.stop()
        self.__enter__()

    def configure(self) -> None:
        """Write the configuration file. What is added to it later counts from the next start on."""
        self.base.mkdir(parents=True, exist_ok=True)
        self.configuration.parent.mkdir(parents=True, exist_ok=True)
        self.configuration.write_text(self._configuration(), "utf-8")

    def stop(self) -> None:
        """End the daemon and every shim it left behind."""
        try:
            if self._process is not None:
                self._process.terminate()
                try:
                    self._process.wait(DEFAULT_LIMIT)
                except subprocess.TimeoutExpired:
                    self._process.kill()
                    raise
        finally:
            for pid in self._shims():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def ctr(self, *arguments: str | Path, namespace: str = "k8s.io") -> Completed:
        """Run one command of containerd's own command line to its end."""
        line = [*self.prefix, "ctr", "--address", str(self.socket), "--namespace", namespace, *map(str, arguments)]
        result = subprocess.run(
            line, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=DEFAULT_LIMIT
        )
        return Completed(tuple(line), result.returncode, result.stdout, result.stderr)

    def log(self) -> str:
        """Give what the daemon logged."""
        return (self.base / "log").read_text("utf-8", "replace")

    def _shims(self) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                    if _SHIM.encode() in words[0] and os.fsencode(self.socket) in words:
                        found.append(int(entry.name))
        return found

    def _configuration(self) -> str:
        cri = 'plugins."io.containerd.grpc.v1.cri"'
        disabled = [f"io.containerd.snapshotter.v1.{name}" for name in _UNUSED]
        rows = [
            "version = 2",
            'imports = ["/etc/containerd/conf.d/*.toml"]',
            f"root = {json.dumps(str(self.base / 'root'))}",
            f"state = {json.dumps(str(self.base / 'state'))}",
            f"disabled_plugins = {json.dumps(disabled)}",
            "[grpc]",
            f"address = {json.dumps(str(self.socket))}",
            f"[{cri}]",
            "restrict_oom_score_adj = true",  # without CAP_SYS_RESOURCE none may be lowered
            "disable_apparmor = true",  # the profile is loaded by a program that need not be there
            f"sandbox_image = {json.dumps(PAUSE)}",
            f"[{cri}.containerd]",
            f"default_runtime_name = {json.dumps(next(iter(self.handlers)))}",
        ]
        for name, program in self.handlers.items():
            rows += [f"[{cri}.containerd.runtimes.{name}]", 'runtime_type = "io.containerd.runc.v2"']
            # Without these the names that policies select by would not arrive in config.json.
            rows += [f'{key} = ["io.hauberk.*"]' for key in ("pod_annotations", "container_annotations")]
            rows += [f"[{cri}.containerd.runtimes.{name}.options]", f"BinaryName = {json.dumps(program)}"]
        return "\n".join(rows) + "\n"
