# SPDX-License-Identifier: Apache-2.0
"""What container engines are tried with in the vm lane: images, and a first program that tries what is forbidden.

The first program of the container asks the kernel itself, and prints errnos: what it is refused was refused from its
first instruction on. Without Hauberk it is refused nothing, which tests show in the same guest before the seal.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Final

from tests.vm.containers import image
from tests.vm.containers.containerd import PAUSE
from tests.vm.containers.sealed import FORBIDDEN

if TYPE_CHECKING:
    from pathlib import Path

APPLICATION: Final = "hauberk.test/application:1"
ATTACK: Final = ("/opt/sources/prober-a", "-i", "/opt/questions")
STAY: Final = ("/bin/sleep", "1000000")
_LINKED: Final = "/srv/secrets/public/prelinked"
_QUESTIONS: Final = (
    (f"open-read\t{FORBIDDEN}", "13"),
    (f"open-read\t{_LINKED}", "13"),
    (f"open-write\t{FORBIDDEN}", "13"),
    (f"link\t{FORBIDDEN}\t/tmp/linked", "13"),
    ("exec\t/usr/bin/dash", "13"),
    ("exec\t/usr/bin/ls", "0"),
    ("open-read\t/etc/passwd", "0"),
)
HELD: Final = [answer for _, answer in _QUESTIONS]
"""What ``ATTACK`` prints under the policy ``secrets``."""
FREE: Final = ["0"] * len(_QUESTIONS)
"""What it prints where nobody enforces anything."""


def write_images(base: Path) -> None:
    """Write ``application.tar`` and ``pause.tar`` into ``base``, which holds a root file system ``rootfs`` already."""
    (base / "rootfs" / "opt" / "questions").write_text("".join(f"{question}\n" for question, _ in _QUESTIONS))
    small = base / "small"
    for name in ("bin", "dev", "etc", "proc", "sys"):
        (small / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", small / "bin" / "busybox")
    (small / "bin" / "sleep").symlink_to("busybox")
    for root, name, file in ((base / "rootfs", APPLICATION, "application"), (small, PAUSE, "pause")):
        image.write_layer(root, base / f"{file}.layer")
        image.write_archive(base / f"{file}.tar", base / f"{file}.layer", name, STAY)
        (base / f"{file}.layer").unlink()
