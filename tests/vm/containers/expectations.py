# SPDX-License-Identifier: Apache-2.0
"""What each attack comes to where nobody enforces anything: the proof that the attack programs work.

An attack that gets through here and is refused under a policy was refused by the policy. One that the kernel refuses
by itself in some setting proves nothing there, so these are listed, each with the errno and the reason; every attack
gets through in at least one setting, which a test checks. Used by the host lane (is the table true?) and by the vm
lane (which refusals count?).
"""

from __future__ import annotations

import enum
import errno
from dataclasses import dataclass
from typing import Final


class Grant(enum.Enum):
    """The capability sets that containers are tried with."""

    RUNC = "runc"
    ENGINE = "engine"
    ALL = "all"


class Where(enum.Enum):
    """Where the secret is. LOWER and UPPER are the layers of the container's overlay root."""

    VOLUME = "/vault/secrets"
    LOWER = "/srv/secrets"
    UPPER = "/srv/upper"


@dataclass(frozen=True)
class Setting:
    """How an attack is tried."""

    grant: Grant
    user: int
    where: Where

    def __str__(self) -> str:
        """Name the setting in test names."""
        return f"{self.grant.value}-uid{self.user}-{self.where.name.lower()}"

    @property
    def base(self) -> str:
        """The directory that holds the secret tree."""
        return self.where.value


@dataclass(frozen=True)
class KernelRefusal:
    """The kernel's own refusal: its errno, and why it is none of a policy's doing."""

    errno: int
    reason: str


SETTINGS: Final = (
    *(Setting(Grant.ALL, 0, where) for where in Where),
    *(Setting(Grant.ENGINE, user, where) for user in (0, 1000) for where in Where),
    *(Setting(Grant.RUNC, user, Where.VOLUME) for user in (0, 1000)),
)

_ADMINISTRATOR: Final = frozenset(
    {
        "mountns",
        "bind",
        "open-tree",
        "move-mount",
        "pivot-root",
        "mount-overlay",
        "mount-proc",
        "mount-sysfs",
        "mount-bpffs",
        "mount-tmpfs",
        "mount-cgroup",
        "fsopen",
        "remount",
        "umount",
        "setns",
        "bpf-map",
        "bpf-program",
        "bpf-next-map",
    }
)
_CHROOT: Final = frozenset({"chroot", "chroot-source"})
_MAPPED_ROOT: Final = frozenset(
    {
        "userns-bind",
        "userns-open-tree",
        "userns-chroot",
        "userns-pivot-root",
        "userns-mount-overlay",
        "userns-mount-tmpfs",
        "userns-fsopen",
        "userns-bind-source",
        "userns-chroot-source",
        "exe-file",
    }
)
_DIRECTORY_RENAMES: Final = frozenset(
    {"rename-parent", "rename-parent-beside", "rename-grandparent", "exchange-parent"}
)
_OWNED_BY_ROOT: Final = {
    "replace-source": errno.EACCES,
    "write-source": errno.EACCES,
    "exec-rename": errno.EACCES,
    "cgroup-move": errno.EACCES,
    "core-pattern": errno.EACCES,
    "bpf-obj-get": errno.EACCES,
    "exec-hardlink": errno.EPERM,
    "unpin": errno.EPERM,
}


def kernel_refusal(  # noqa: C901, PLR0911 - a table of reasons, one line each
    attack: str, setting: Setting
) -> KernelRefusal | None:
    """Tell why the kernel alone refuses an attack in a setting; None if only enforcement could.

    The container is the one that the host lane builds: grant ALL also lifts the device rules and the read-only paths
    of /proc.
    """
    root, everything = setting.user == 0, setting.grant is Grant.ALL and setting.user == 0
    if attack == "handle" and setting.where is not Where.VOLUME:
        return KernelRefusal(errno.EOPNOTSUPP, "overlayfs without nfs_export has no file handles")
    if attack == "mknod-device":
        if not root or setting.grant is Grant.RUNC:
            return KernelRefusal(errno.EPERM, "mknod of a device needs CAP_MKNOD")
        return None if everything else KernelRefusal(errno.EPERM, "the device rules of the container")
    if attack == "handle" and not everything:
        return KernelRefusal(errno.EPERM, "open_by_handle_at needs CAP_DAC_READ_SEARCH")
    if attack in _ADMINISTRATOR and not everything:
        return KernelRefusal(errno.EPERM, "needs CAP_SYS_ADMIN (or CAP_BPF)")
    if attack in _CHROOT and (not root or setting.grant is Grant.RUNC):
        return KernelRefusal(errno.EPERM, "needs CAP_SYS_CHROOT")
    if attack in _MAPPED_ROOT and root and setting.grant is Grant.RUNC:
        return KernelRefusal(errno.EPERM, "mapping the outer root into a user namespace needs CAP_SETFCAP")
    if attack in _DIRECTORY_RENAMES and setting.where is Where.LOWER:
        return KernelRefusal(errno.EXDEV, "overlayfs without redirect_dir renames no directory of a lower layer")
    if attack == "core-pattern" and root and not everything:
        return KernelRefusal(errno.EROFS, "/proc/sys is mounted read-only")
    if attack in _OWNED_BY_ROOT and not root:
        return KernelRefusal(_OWNED_BY_ROOT[attack], "file modes, or protected_hardlinks")
    return None
