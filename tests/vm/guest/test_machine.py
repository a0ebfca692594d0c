# SPDX-License-Identifier: Apache-2.0
"""What every other guest-side test relies on: the kernel offers BPF LSM, cgroup v2 and BTF, and runc works."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path


def test_bpf_is_an_active_security_module() -> None:
    assert "bpf" in Path("/sys/kernel/security/lsm").read_text("utf-8").split(",")
    assert Path("/sys/kernel/btf/vmlinux").stat().st_size > 0


def test_cgroups_are_unified_and_bpffs_is_mounted() -> None:
    mounts = {row.split()[1]: row.split()[2] for row in Path("/proc/self/mounts").read_text("utf-8").splitlines()}
    assert mounts["/sys/fs/cgroup"] == "cgroup2"
    assert mounts["/sys/fs/bpf"] == "bpf"


def test_the_root_is_a_plain_disk() -> None:
    rows = [row.split() for row in Path("/proc/self/mounts").read_text("utf-8").splitlines()]
    assert [kind for _, place, kind, *_ in rows if place == "/"] == ["ext4"]
    assert Path.cwd().stat().st_dev != Path("/").stat().st_dev


def test_runc_runs_a_container(tmp_path: Path) -> None:
    subprocess.run(["runc", "spec"], cwd=tmp_path, check=True)
    (tmp_path / "rootfs" / "bin").mkdir(parents=True)
    (tmp_path / "rootfs" / "bin" / "busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (tmp_path / "rootfs" / "bin" / "busybox").chmod(0o755)
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    config["process"].update(terminal=False, args=["/bin/busybox", "echo", "contained"])
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    command = ["runc", "run", f"machine-{os.getpid()}"]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout == "contained\n"
