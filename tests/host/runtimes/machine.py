# SPDX-License-Identifier: Apache-2.0
"""A machine of the test's own: this one, with directories that may be written without a trace.

``hauberk install`` writes to ``/etc`` and ``/usr``, and engines look for hooks and configuration there. Both run in a
mount namespace where those directories are overlays and ``/run`` is empty. A process holds the namespace; when it is
killed, everything is as before. The agent stays outside: its socket's directory is mounted where the hook expects it.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.vm.containers.runtime import DEFAULT_LIMIT, Completed

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY: Final = Path(__file__).resolve().parents[3]
_WRITTEN: Final = ("/etc", "/usr", "/var/lib")
_CGROUP2: Final = "cgroup2fs"

# Cgroup v2 alone, where versions 1 and 2 are side by side: crun works with no mixture. The device rules that engines
# write are BPF programs there, and a kernel may refuse those (RLIMIT_MEMLOCK): so they are taken out on the way.
_UNIFIED: Final = "umount -R /sys/fs/cgroup\nmount -t cgroup2 none /sys/fs/cgroup\n"
_WITHOUT_DEVICE_RULES: Final = """\
#!/usr/bin/python3 -I
import json, os, sys
if "create" in sys.argv:
    path = os.path.join(sys.argv[sys.argv.index("--bundle") + 1], "config.json")
    with open(path) as file:
        config = json.load(file)
    config["linux"].pop("resources", None)
    with open(path, "w") as file:
        json.dump(config, file)
os.execv("/usr/bin/crun", ["crun", *sys.argv[1:]])
"""


@dataclass(frozen=True)
class Machine:
    """A mount namespace, by the process that holds it, with the OCI runtime that engines use there."""

    holder: int
    base: Path
    runtime: str

    @property
    def prefix(self) -> tuple[str, ...]:
        """What stands before a command that is to run there."""
        return ("nsenter", "--target", str(self.holder), "--mount", "--wdns=/", "--")

    @property
    def program(self) -> str:
        """The runtime's executable there."""
        return f"/usr/local/sbin/{self.runtime}"

    @property
    def containerd_configuration(self) -> Path:
        """Where ``/etc/containerd/config.toml`` of there is here."""
        return self.base / "containerd" / "config.toml"

    def __call__(self, *command: str | Path) -> Completed:
        """Run a command there to its end."""
        line = [*self.prefix, *map(str, command)]
        done = subprocess.run(
            line, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=DEFAULT_LIMIT
        )
        return Completed(tuple(line), done.returncode, done.stdout, done.stderr)

    def hauberk(self, *arguments: str | Path) -> Completed:
        """Run Hauberk's command line there."""
        return self("env", "-C", REPOSITORY, sys.executable, "-m", "hauberk.cli", *arguments)

    def read(self, path: str) -> str:
        """Give the text of a file there."""
        return self("cat", path).check().output


@contextlib.contextmanager
def machine(base: Path, runtime: str, agent_directory: Path) -> Iterator[Machine]:
    """Make one below ``base`` (new) that engines run ``runtime`` in; ``agent_directory`` is its ``/run/hauberk``."""
    base.mkdir()
    script = "set -e\nmount -t tmpfs -o mode=0755 none /run\nmkdir /run/hauberk\n"
    script += f"mount --bind {agent_directory} /run/hauberk\n"
    for place in _WRITTEN:
        upper, work = (base / f"{kind}{place.replace('/', '-')}" for kind in ("upper", "work"))
        upper.mkdir(mode=0o755)
        work.mkdir()
        script += f"mount -t overlay -o lowerdir={place},upperdir={upper},workdir={work} overlay {place}\n"
    (base / "containerd").mkdir()
    script += f"mkdir -p /etc/containerd\nmount --bind {base / 'containerd'} /etc/containerd\n"
    kind = subprocess.run(["stat", "-fc", "%T", "/sys/fs/cgroup"], capture_output=True, text=True, check=True)
    if runtime == "crun":
        if kind.stdout.strip() != _CGROUP2:
            script += _UNIFIED
        (base / "crun").write_text(_WITHOUT_DEVICE_RULES, "utf-8")
        (base / "crun").chmod(0o755)
        script += f"cp {base / 'crun'} /usr/local/sbin/crun\n"
    else:
        script += "ln -s /usr/sbin/runc /usr/local/sbin/runc\n"
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script + "echo there; exec sleep 1000000"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        try:
            assert holder.stdout.readline() == b"there\n"
            yield Machine(holder.pid, base, runtime)
        finally:
            holder.kill()
