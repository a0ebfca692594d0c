# SPDX-License-Identifier: Apache-2.0
"""Build hook: wire stubs from ``proto/`` and BPF objects from C, for wheels, editable installs and ``make build``.

Every ``proto/a/b/c.proto`` becomes ``hauberk/_wire/a_b_c_pb2.py`` (with ``.pyi`` and, for services, ``_pb2_grpc.py``).
The file is handed to protoc as ``hauberk/_wire/a_b_c.proto``: protobuf keeps one pool of file names per process, and a
containerd or NRI stub from elsewhere would clash with ours under the original name. BPF objects lie beside their
source.
"""

from __future__ import annotations

import importlib.resources
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_ARCHITECTURES = {"x86_64": "x86", "aarch64": "arm64"}
_IMPORT = re.compile(r'^(\s*import\s+(?:public\s+)?")([^"]+)(";)', re.MULTILINE)


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg] # hatchling's own hooks leave the configuration open
    """Makes everything that is generated, before hatchling collects files."""

    def initialize(self, _version: str, build_data: dict[str, Any]) -> None:
        """Generate in place. The wheel holds machine code for one architecture's registers, so it is no pure one."""
        build(Path(self.root))
        if self.target_name == "wheel":
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-linux_{platform.machine()}"


def build(root: Path) -> None:
    """Bring stubs and objects below ``root`` up to date.

    Raises SystemExit with a message if a compiler is missing or fails.
    """
    build_stubs(root)
    for source in sorted(root.glob("guest_agent/engines/*/*.bpf.c")):
        build_object(source)


def build_stubs(root: Path) -> None:
    """Translate every ``.proto`` file and remove stubs whose source is gone."""
    sources = {path: _flat(path.relative_to(root / "proto")) for path in sorted((root / "proto").rglob("*.proto"))}
    target = root / "hauberk" / "_wire"
    with tempfile.TemporaryDirectory() as name:
        staged = Path(name, "staged", "hauberk", "_wire")
        made = Path(name, "made")
        staged.mkdir(parents=True)
        made.mkdir()
        known = {str(path.relative_to(root / "proto")): f"hauberk/_wire/{flat}" for path, flat in sources.items()}
        for path, flat in sources.items():
            text = path.read_text("utf-8")
            text = _IMPORT.sub(lambda found: found[1] + known.get(found[2], found[2]) + found[3], text)
            (staged / flat).write_text(text, "utf-8")
        if sources:
            _protoc(staged.parents[1], made, list(known.values()))
        new = {path.name: path.read_bytes() for path in (made / "hauberk" / "_wire").glob("*")} if sources else {}
    for old in target.glob("*_pb2*"):
        if old.name not in new:
            old.unlink()
    for name, content in new.items():
        _replace(target / name, content)


def build_object(source: Path) -> None:
    """Compile one BPF program to ``X.bpf.o`` beside its source, with types for CO-RE and line information."""
    clang = shutil.which("clang")
    if clang is None:
        sys.exit(f"{source}: clang not found; install clang and libbpf-dev (`make setup` does)")
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        sys.exit(f"{source}: no BPF build for {machine}; expected one of {', '.join(_ARCHITECTURES)}")
    target = source.with_suffix(".o")
    draft = target.with_suffix(f".{os.getpid()}.tmp")
    command = [
        clang, "-target", "bpf", "-O2", "-g", "-mcpu=v3", "-Wall", "-Werror",
        f"-D__TARGET_ARCH_{_ARCHITECTURES[machine]}", f"-I/usr/include/{machine}-linux-gnu",
        f"-ffile-prefix-map={source.parent}=.", "-c", str(source), "-o", str(draft),
    ]  # fmt: skip
    try:
        if subprocess.run(command, check=False).returncode != 0:  # noqa: S603 - fixed program, paths of this tree
            sys.exit(f"{source}: clang failed, see above")
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


def _flat(path: Path) -> str:
    return "_".join(path.parts)


def _protoc(include: Path, out: Path, files: list[str]) -> None:
    bundled = importlib.resources.files("grpc_tools") / "_proto"
    command = [
        sys.executable, "-m", "grpc_tools.protoc", f"-I{include}", f"-I{bundled}",
        f"--python_out={out}", f"--pyi_out={out}", f"--grpc_python_out={out}", *files,
    ]  # fmt: skip
    if subprocess.run(command, check=False).returncode != 0:  # noqa: S603 - this interpreter, paths of this tree
        sys.exit("protoc failed, see above")


def _replace(path: Path, content: bytes) -> None:
    """Write atomically and only if something changed: others may be importing."""
    if path.exists() and path.read_bytes() == content:
        return
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    draft.write_bytes(content)
    draft.replace(path)


if __name__ == "__main__":
    build(Path(__file__).resolve().parent)
