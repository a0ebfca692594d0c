# SPDX-License-Identifier: Apache-2.0
"""The C header and its Python twin describe the same bytes: asked of the C compiler, not of a copy of the numbers."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from guest_agent.engines.bpf_lsm import layout
from guest_agent.engines.port import EVENT_OPERATIONS, EngineError

HEADER = Path(layout.__file__).with_name("hauberk.bpf.h")
STRUCTURES = {
    "gate": layout.GATE,
    "agent": layout.AGENT,
    "workload": layout.WORKLOAD,
    "executable": layout.EXECUTABLE,
    "seal": layout.SEAL,
    "successor": layout.SUCCESSOR,
}
CONSTANTS = {
    "MAX_WORKLOADS": layout.MAXIMUM_WORKLOADS,
    "TABLE_WORDS": layout.TABLE_WORDS,
    "NAME_BYTES": layout.NAME_BYTES,
    "DIGEST_BYTES": layout.DIGEST_BYTES,
    "GATE_OFF": layout.GATE_OFF,
    "GATE_SEALED": layout.GATE_SEALED,
    "MARK_MANAGER": layout.MARK_MANAGER,
    "EXECUTABLE_MANAGER": layout.EXECUTABLE_MANAGER,
    "EXECUTABLE_HELPER": layout.EXECUTABLE_HELPER,
    "EXECUTABLE_KERNEL": layout.EXECUTABLE_KERNEL,
    "MOUNT_POINT": layout.MOUNT_POINT,
}


def _compiled(tmp_path: Path, lines: list[str]) -> list[int]:
    source = tmp_path / "layout.c"
    body = "\n".join(f'printf("%ld\\n", (long)({line}));' for line in lines)
    source.write_text(
        "#include <linux/types.h>\n#include <stddef.h>\n#include <stdio.h>\n"
        f'#include "{HEADER}"\nint main(void) {{ {body} return 0; }}\n'
    )
    program = tmp_path / "layout"
    subprocess.run(["gcc", "-Wall", "-Werror", "-o", program, source], check=True)
    return [int(line) for line in subprocess.run([program], check=True, capture_output=True).stdout.split()]


def test_structures_have_the_same_size(tmp_path: Path) -> None:
    sizes = _compiled(tmp_path, [f"sizeof(struct {name})" for name in STRUCTURES])
    assert dict(zip(STRUCTURES, sizes, strict=True)) == {name: form.size for name, form in STRUCTURES.items()}


def test_constants_are_the_same(tmp_path: Path) -> None:
    assert dict(zip(CONSTANTS, _compiled(tmp_path, list(CONSTANTS)), strict=True)) == CONSTANTS


def test_an_event_has_its_strings_behind_the_fixed_part(tmp_path: Path) -> None:
    offsets = _compiled(
        tmp_path, ["offsetof(struct event, data)", "offsetof(struct event, command)", "offsetof(struct event, verdict)"]
    )
    assert offsets == [layout.EVENT.size, 36 - 4, 24]


def test_a_workloads_network_namespace_lies_where_the_kernel_looks(tmp_path: Path) -> None:
    (offset,) = _compiled(tmp_path, ["offsetof(struct workload, network_namespace)"])
    record = layout.WorkloadRecord(1, 7, 2, 3, 0, 0, 3, 4, 0x01020304, b"d" * 32, "c").encode()
    assert record[offset : offset + 4] == bytes((4, 3, 2, 1))


def test_event_names_follow_the_header() -> None:
    text = HEADER.read_text()
    operations = re.findall(r"EVENT_([A-Z]+)(?: = 1)?,", text.split("enum event_operation")[1].split("}")[0])
    assert tuple(name.lower() for name in operations) == EVENT_OPERATIONS
    details = re.findall(r"DETAIL_([A-Z_]+),", text.split("enum event_detail")[1].split("}")[0])
    sample = layout.EVENT.pack(7, 3, 40, 30, 1000, 2, 1, 0, 3, 4, 5, b"comm", b"/bin/source")
    for number, name in enumerate(details):
        data = bytearray(sample + b"/old/new2")
        data[layout.EVENT.size - 256 - 16 - 2 - 2 - 2] = number
        expected = "" if name == "NONE" else name.lower()
        assert layout.decode_event(bytes(data)).detail == expected


def test_an_event_is_decoded() -> None:
    sample = layout.EVENT.pack(7, 3, 40, 30, 1000, 1, 4, 13, 3, 4, 5, b"comm", b"/bin/source") + b"/old/new2"
    event = layout.decode_event(sample)
    assert (event.verdict, event.operation, event.detail) == ("audit", "write", "rename")
    assert (event.path, event.other_path, event.source) == ("/old", "/new2", "/bin/source")
    assert (event.timestamp_ns, event.workload_id, event.pid, event.parent_pid, event.uid) == (7, 3, 40, 30, 1000)
    assert (event.owner, event.path_known, event.command) == (True, True, "comm")


@pytest.mark.parametrize("sample", [b"", b"x" * 20, bytes(layout.EVENT.size), b"\xff" * layout.EVENT.size])
def test_an_event_of_another_build_is_refused(sample: bytes) -> None:
    with pytest.raises(EngineError):
        layout.decode_event(sample)


def test_a_record_survives_the_kernel() -> None:
    record = layout.WorkloadRecord(1, 7, 2**40, 4026531840, 1, 2, 3, 4, 4026531833, b"d" * 32, "c" * 127)
    assert layout.WorkloadRecord.decode(record.encode()) == record


@pytest.mark.parametrize("container", ["c" * 128, "a\0b"])
def test_a_container_id_that_does_not_fit_is_refused(container: str) -> None:
    with pytest.raises(EngineError, match="container id"):
        layout.WorkloadRecord(1, 7, 1, 1, 0, 0, 1, 0, 0, b"d" * 32, container).encode()


@pytest.mark.parametrize("blob", [b"", b"x" * 64, bytes(65), bytes(8 * (layout.TABLE_WORDS + 1))])
def test_only_a_table_is_a_table(blob: bytes) -> None:
    with pytest.raises(EngineError):
        layout.table_flags(blob)


def test_kernel_device_numbers() -> None:
    import os  # noqa: PLC0415 - used here alone

    assert layout.kernel_device(os.makedev(254, 16)) == 254 << 20 | 16
