# SPDX-License-Identifier: Apache-2.0
"""Writes OCI bundles for real runtimes.

`config.json` has the shape `runc spec` writes, made here so that a test can take any part away: a namespace, the
hooks, the cgroup path. The root is either the plain directory or an overlay whose upper layer is a tmpfs, which is
what containers have in practice and where path rules meet copy-up. No seccomp: a filter would refuse half of the
attacks before the policy is asked, and the tests would prove nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# In the kernel's order: the place in this tuple is the capability's number.
CAPABILITIES_ALL = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
)
# What `runc spec` grants, and what container engines grant by default.
CAPABILITIES_RUNC = ("CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE")
CAPABILITIES_ENGINE = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
)
NAMESPACES = ("pid", "network", "ipc", "uts", "mount", "cgroup")
MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
    "/proc/scsi",
)
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


@dataclass(frozen=True)
class Hook:
    """One OCI hook; `timeout` in seconds, None for no limit by the runtime."""

    path: str
    arguments: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    timeout: int | None = None

    def document(self) -> dict[str, Any]:
        """Give the hook as the runtime specification writes it."""
        document: dict[str, Any] = {
            "path": self.path,
            "args": [self.path, *self.arguments],
            "env": list(self.environment),
        }
        if self.timeout is not None:
            document["timeout"] = self.timeout
        return document


@dataclass(frozen=True)
class Volume:
    """A host directory (or file) bind-mounted into the container."""

    source: Path
    destination: str
    read_only: bool = False


@dataclass(frozen=True)
class Options:
    """All that a test varies about a container.

    A namespace given a path is joined, not made; one left out is shared with the runtime.
    """

    arguments: tuple[str, ...] = ("/bin/sleep", "1000000")
    environment: tuple[str, ...] = ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",)
    user: int = 0
    group: int = 0
    directory: str = "/"
    hostname: str = "container"
    hooks: Mapping[str, Sequence[Hook]] = field(default_factory=dict)
    namespaces: tuple[str, ...] = NAMESPACES
    join: Mapping[str, str] = field(default_factory=dict)
    cgroup_path: str | None = None
    capabilities: tuple[str, ...] = CAPABILITIES_ENGINE
    no_new_privileges: bool = True
    read_only_root: bool = False
    volumes: tuple[Volume, ...] = ()
    mounts: tuple[Mapping[str, Any], ...] = ()
    standard_mounts: bool = True
    mask_paths: bool = True
    annotations: Mapping[str, str] = field(default_factory=dict)
    resources: Mapping[str, Any] | None = field(
        default_factory=lambda: {"devices": [{"allow": False, "access": "rwm"}]}
    )


def grantable(capabilities: Sequence[str] = CAPABILITIES_ALL) -> tuple[str, ...]:
    """Give those of the capabilities that this process holds itself.

    A machine may lack some, and a runtime refuses to grant what it lacks.
    """
    held = 0
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapPrm:"):
            held = int(line.split()[1], 16)
    return tuple(name for name in capabilities if held >> CAPABILITIES_ALL.index(name) & 1)


def process(options: Options) -> dict[str, Any]:
    """Give the `process` object.

    As engines do, a user other than root has no effective capability, whatever the bounding set.
    """
    held = list(options.capabilities) if options.user == 0 else []
    return {
        "terminal": False,
        "user": {"uid": options.user, "gid": options.group},
        "args": list(options.arguments),
        "env": list(options.environment),
        "cwd": options.directory,
        "capabilities": {"bounding": list(options.capabilities), "effective": held, "permitted": held},
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 4096, "soft": 4096}],
        "noNewPrivileges": options.no_new_privileges,
    }


def _mounts(options: Options) -> list[dict[str, Any]]:
    def mount(destination: str, kind: str, source: str, *flags: str) -> dict[str, Any]:
        return {"destination": destination, "type": kind, "source": source, "options": list(flags)}

    mounts: list[dict[str, Any]] = []
    if options.standard_mounts:
        quiet = ("nosuid", "noexec", "nodev")
        mounts = [
            mount("/proc", "proc", "proc"),
            mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
            mount("/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"),
            mount("/dev/shm", "tmpfs", "shm", *quiet, "mode=1777", "size=65536k"),
            mount("/dev/mqueue", "mqueue", "mqueue", *quiet),
        ]
        # sysfs shows the network namespace: it can be mounted only by who owns that one, so it is bound where the
        # namespace is shared.
        if "network" in options.namespaces:
            mounts.append(mount("/sys", "sysfs", "sysfs", *quiet, "ro"))
        else:
            mounts.append(mount("/sys", "none", "/sys", "rbind", *quiet, "ro"))
    for volume in options.volumes:
        mounts.append(
            mount(volume.destination, "bind", str(volume.source), "rbind", "ro" if volume.read_only else "rw")
        )
    return [*mounts, *(dict(extra) for extra in options.mounts)]


def config(options: Options, root: str = "rootfs") -> dict[str, Any]:
    """Give the whole configuration as data."""
    unknown = set(options.namespaces) - {*NAMESPACES, "user"}
    if unknown:
        message = f"unknown namespaces {sorted(unknown)}: expected some of {[*NAMESPACES, 'user']}"
        raise ValueError(message)
    namespaces = [
        {"type": kind, **({"path": options.join[kind]} if kind in options.join else {})} for kind in options.namespaces
    ]
    linux: dict[str, Any] = {"namespaces": namespaces}
    if options.resources is not None:
        linux["resources"] = dict(options.resources)
    if options.cgroup_path is not None:
        linux["cgroupsPath"] = options.cgroup_path
    if options.mask_paths and "mount" in options.namespaces:
        linux["maskedPaths"] = list(MASKED_PATHS)
        linux["readonlyPaths"] = list(READONLY_PATHS)
    document: dict[str, Any] = {
        "ociVersion": "1.0.2",
        "process": process(options),
        "root": {"path": root, "readonly": options.read_only_root},
        "mounts": _mounts(options),
        "linux": linux,
    }
    if "uts" in options.namespaces:
        document["hostname"] = options.hostname
    if options.hooks:
        document["hooks"] = {stage: [hook.document() for hook in hooks] for stage, hooks in options.hooks.items()}
    if options.annotations:
        document["annotations"] = dict(options.annotations)
    return document


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk. `root` is where the container's root file system is seen from outside."""

    directory: Path
    root: Path
    options: Options
    overlay: bool

    def process_file(
        self, arguments: Sequence[str], user: int = 0, group: int | None = None, environment: Sequence[str] = ()
    ) -> Path:
        """Write what `runc exec --process` reads, with the capabilities an engine would give that user."""
        options = replace(
            self.options,
            arguments=tuple(arguments),
            user=user,
            group=user if group is None else group,
            environment=(*self.options.environment, *environment),
        )
        path = self.directory / f"process-{os.urandom(6).hex()}.json"
        path.write_text(json.dumps(process(options)))
        return path

    def remove(self) -> None:
        """Unmount the overlay and remove the bundle; nothing of the plain root, which may be shared."""
        if self.overlay:
            for point in (self.root, self.directory / "layers"):
                while os.path.ismount(point):
                    subprocess.run(["/bin/umount", "--lazy", str(point)], check=True)
        subprocess.run(["/bin/rm", "-rf", "--one-file-system", "--", str(self.directory)], check=True)


def write(
    directory: Path, rootfs: Path, options: Options, *, overlay: bool = True, overlay_options: Sequence[str] = ()
) -> Bundle:
    """Write a bundle into `directory` (new) for the root file system `rootfs`, which an overlay leaves untouched.

    Raises FileExistsError if the directory exists, subprocess.CalledProcessError if a mount fails (it needs root).
    """
    directory.mkdir(parents=True)
    if overlay:
        layers, root = directory / "layers", directory / "rootfs"
        layers.mkdir()
        root.mkdir()
        subprocess.run(["/bin/mount", "-t", "tmpfs", "-o", "mode=0755", "hauberk-test", str(layers)], check=True)
        (layers / "upper").mkdir()
        (layers / "upper").chmod(0o755)
        (layers / "work").mkdir()
        settings = ",".join(
            [f"lowerdir={rootfs},upperdir={layers / 'upper'},workdir={layers / 'work'}", *overlay_options]
        )
        try:
            subprocess.run(["/bin/mount", "-t", "overlay", "-o", settings, "overlay", str(root)], check=True)
        except subprocess.CalledProcessError:
            subprocess.run(["/bin/umount", str(layers)], check=True)
            raise
    else:
        root = rootfs
    (directory / "config.json").write_text(json.dumps(config(options, str(root.resolve())), indent=1))
    return Bundle(directory, root, options, overlay)
