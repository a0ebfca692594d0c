# SPDX-License-Identifier: Apache-2.0
"""Stubs get names that cannot clash, follow their sources, and are only touched when they change."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import hatch_build

if TYPE_CHECKING:
    from pathlib import Path

COMMON = 'syntax = "proto3";\npackage sample.v1;\nmessage Name { string value = 1; }\n'
SERVICE = (
    'syntax = "proto3";\npackage sample.v1;\nimport "sample/v1/common.proto";\nimport "google/protobuf/empty.proto";\n'
    "service Greeter { rpc Greet(Name) returns (google.protobuf.Empty); }\n"
)


def make_tree(root: Path) -> Path:
    (root / "proto" / "sample" / "v1").mkdir(parents=True)
    (root / "proto" / "sample" / "v1" / "common.proto").write_text(COMMON, "utf-8")
    (root / "proto" / "sample" / "v1" / "greeter.proto").write_text(SERVICE, "utf-8")
    wire = root / "hauberk" / "_wire"
    wire.mkdir(parents=True)
    (wire / "__init__.py").touch()
    hatch_build.build_stubs(root)
    return wire


def test_stubs_import_each_other_under_names_of_their_own(tmp_path: Path) -> None:
    make_tree(tmp_path)
    code = (
        "from hauberk._wire import sample_v1_greeter_pb2 as stubs, sample_v1_greeter_pb2_grpc\n"
        "print(stubs.DESCRIPTOR.name, [file.name for file in stubs.DESCRIPTOR.dependencies])"
    )
    command = [sys.executable, "-S", "-c", SITE + code]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout == (
        "hauberk/_wire/sample_v1_greeter.proto "
        "['hauberk/_wire/sample_v1_common.proto', 'google/protobuf/empty.proto']\n"
    )


def test_a_stub_goes_with_its_source_and_an_unchanged_one_is_not_touched(tmp_path: Path) -> None:
    wire = make_tree(tmp_path)
    before = (wire / "sample_v1_common_pb2.py").stat().st_mtime_ns
    assert (wire / "sample_v1_greeter_pb2_grpc.py").exists()
    (tmp_path / "proto" / "sample" / "v1" / "greeter.proto").unlink()
    hatch_build.build_stubs(tmp_path)
    assert not list(wire.glob("sample_v1_greeter*"))
    assert (wire / "sample_v1_common_pb2.py").stat().st_mtime_ns == before


# Without the .pth of an editable install, which would put the real package before the sample one.
PACKAGES = next(path for path in sys.path if path.endswith("site-packages"))
SITE = f"import sys; sys.path[:0] = ['.']; sys.path.append({PACKAGES!r})\n"
