# SPDX-License-Identifier: Apache-2.0
"""The wheel holds the packages, the generated files and the hook as it is, and nothing that would clash elsewhere."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Build a wheel from a copy of the tree without anything generated, so that the build has to make it."""
    work = tmp_path_factory.mktemp("wheel")
    generated = shutil.ignore_patterns(".git", ".venv", ".cache", "__pycache__", "*_pb2*", "*.bpf.o", "*.egg-info")
    shutil.copytree(REPOSITORY, work / "tree", ignore=generated, symlinks=True)
    command = ["-m", "hatchling", "build", "-t", "wheel", "-d", str(work / "out")]
    subprocess.run([sys.executable, *command], cwd=work / "tree", check=True)
    (path,) = (work / "out").glob("*.whl")
    return zipfile.ZipFile(path)


def test_only_the_three_packages_reach_site_packages(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if ".dist-info" not in top and ".data" not in top} == {
        "guest_agent",
        "hauberk",
        "nri_plugin",
    }


def test_generated_files_are_in_it(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    sources = [path for path in REPOSITORY.glob("guest_agent/engines/*/*.bpf.c") if path.is_file()]
    assert sources
    for source in sources:
        name = str(source.relative_to(REPOSITORY).with_suffix(".o"))
        assert wheel.read(name).startswith(b"\x7fELF")
    for proto in (REPOSITORY / "proto").rglob("*.proto"):
        stem = "_".join(proto.relative_to(REPOSITORY / "proto").with_suffix("").parts)
        assert {f"hauberk/_wire/{stem}_pb2.py", f"hauberk/_wire/{stem}_pb2.pyi"} <= names


def test_the_hook_is_in_it_unchanged(wheel: zipfile.ZipFile) -> None:
    (name,) = [name for name in wheel.namelist() if name.endswith("libexec/hauberk/hauberk-hook")]
    assert wheel.read(name) == (REPOSITORY / "hooks" / "hauberk-hook").read_bytes()


def test_what_install_puts_in_place_is_in_it_unchanged(wheel: zipfile.ZipFile) -> None:
    for tree in ("hooks", "deploy"):
        files = [path for path in (REPOSITORY / tree).rglob("*") if path.is_file()]
        assert files
        for path in files:
            name = f"hauberk/install/material/{path.relative_to(REPOSITORY)}"
            assert wheel.read(name) == path.read_bytes()


def test_an_unpacked_wheel_installs_what_the_checkout_does(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path / "site")
    made: list[dict[str, tuple[int, bytes]]] = []
    for place in (tmp_path / "site", REPOSITORY):
        root = tmp_path / f"root-{len(made)}"
        (root / "usr" / "sbin").mkdir(parents=True)
        (root / "usr" / "sbin" / "runc").touch(0o755)
        code = f"import sys; sys.path.insert(0, {str(place)!r}); import hauberk.cli; sys.exit(hauberk.cli.main())"
        for target in ("podman", "kata-guest", "docker", "containerd"):
            command = [sys.executable, "-Ic", code, "install", target, "--root", str(root)]
            subprocess.run(command, cwd="/", check=True, stdout=subprocess.DEVNULL)
        files = (path for path in root.rglob("*") if path.is_file())
        made.append({str(path.relative_to(root)): (path.stat().st_mode, path.read_bytes()) for path in files})
    assert made[0] == made[1]
    assert "usr/libexec/hauberk/hauberk-hook" in made[0]


def test_no_path_of_the_building_machine_is_in_the_objects(wheel: zipfile.ZipFile) -> None:
    for name in wheel.namelist():
        if name.endswith(".bpf.o"):
            assert b"/tree/guest_agent" not in wheel.read(name)


@pytest.mark.parametrize("module", ["hauberk", "hauberk.cli"])
def test_the_command_line_starts_without_grpc(module: str) -> None:
    code = f"import sys, {module}; sys.exit(any(name.split('.')[0] in ('grpc', 'google') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd="/", check=False).returncode == 0
