# SPDX-License-Identifier: Apache-2.0
"""The prober, the secrets service and the bundle writer do what their users in the vm lane and the demo rely on."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
from pathlib import Path

import pytest

from tests.vm.containers import bundle as oci
from tests.vm.containers import rootfs
from tests.vm.containers.runtime import Runtime, RuntimeCommandError


def probe(program: Path, *questions: str, options: tuple[str, ...] = ()) -> list[str]:
    """Ask the prober and give its answers."""
    result = subprocess.run(
        [str(program), *options], input="\n".join(questions) + "\n", check=True, capture_output=True, text=True
    )
    return result.stdout.splitlines()


@pytest.fixture
def place(tmp_path: Path, programs: Path) -> Path:
    """A directory with one of everything that questions need."""
    tmp_path.chmod(0o777)
    (tmp_path / "file").write_text("content\n")
    (tmp_path / "other").write_text("other\n")
    (tmp_path / "directory").mkdir()
    (tmp_path / "program").write_bytes((programs / "denied").read_bytes())
    (tmp_path / "program").chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("options", [(), ("-f",)])
def test_all_operations_work_and_are_undone(place: Path, programs: Path, options: tuple[str, ...]) -> None:
    """Where nothing forbids, every question is answered 0 and the tree is as before."""
    file, other, new, directory, program = (place / name for name in ("file", "other", "new", "directory", "program"))
    before = sorted(path.name for path in place.iterdir())
    questions = [
        *(
            f"{word}\t{file}"
            for word in (
                "open-read",
                "open-write",
                "open-read-write",
                "open-append",
                "truncate",
                "ftruncate",
                "chmod",
                "fchmod",
                "chown",
                "stat",
                "map-exec",
                "mprotect-exec",
            )
        ),
        *(f"{word}\t{new}" for word in ("creat", "creat-read", "mkdir", "mknod", "symlink")),
        f"link\t{file}\t{new}",
        f"rename\t{file}\t{new}",
        f"exchange\t{file}\t{other}",
        f"rmdir\t{directory}",
        f"opendir\t{directory}",
        f"exec\t{program}",
        f"execveat\t{program}",
    ]
    assert probe(programs / "prober", *questions, options=options) == ["0"] * len(questions)
    assert sorted(path.name for path in place.iterdir()) == before
    assert file.read_text() == "content\n"
    assert (
        probe(programs / "prober", f"unlink\t{other}", f"open-trunc-read\t{file}", f"open-trunc-write\t{program}")
        == ["0"] * 3
    )
    assert (other.exists(), file.stat().st_size, program.stat().st_size) == (True, 0, 0)


def test_refusals_are_errnos(place: Path, programs: Path) -> None:
    """The errno of the first failing call is the answer."""
    (place / "file").chmod(0)
    (place / "program").chmod(0o644)
    (place / "directory").chmod(0o555)
    place.chmod(0o755)
    program = place.parent / f"{place.name}-prober"
    program.write_bytes((programs / "prober").read_bytes())
    program.chmod(0o755)
    file, new, directory = place / "file", place / "new", place / "directory"
    questions = [
        f"open-read\t{file}",
        f"creat\t{new}",
        f"unlink\t{file}",
        f"exec\t{place / 'program'}",
        f"mkdir\t{directory}/x",
        f"rename\t{file}\t{new}",
    ]
    relative = [question.replace(f"{place}/", "") for question in questions]
    result = subprocess.run(
        [str(program), "-u", "1000", "-g", "1000"],
        input="\n".join(relative),
        check=True,
        capture_output=True,
        text=True,
        cwd=place,
    )
    assert result.stdout.split() == [str(errno.EACCES)] * len(questions)
    assert probe(programs / "prober", f"open-read\t{new}", f"exec\t{directory}") == [
        str(errno.ENOENT),
        str(errno.EACCES),
    ]


def test_odd_names_and_bad_questions(place: Path, programs: Path) -> None:
    """Any byte can be asked about; what is no question has an answer that cannot be taken for an errno."""
    odd = os.fsencode(place) + b"/a\tb\nc\\d\xff"
    Path(os.fsdecode(odd)).touch()
    bad = ["nothing\t/x", "rename\t/x", "open-read", "open-read\t/x\\q", "open-read\t/x\ty\tz"]
    answers = probe(programs / "prober", f"open-read\t{place}/a\\tb\\nc\\\\d\\xff", *bad)
    assert answers[0] == "0"
    assert all(answer.startswith("! ") for answer in answers[1:])
    assert len(answers) == 1 + len(bad)


def test_many_questions_from_one_process(place: Path, programs: Path) -> None:
    """Thousands of questions, one answer each, in order."""
    questions = [f"open-read\t{place / ('file' if number % 2 == 0 else 'none')}" for number in range(20000)]
    assert probe(programs / "prober", *questions) == ["0", str(errno.ENOENT)] * 10000


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe_socket:
        probe_socket.bind(("127.0.0.1", 0))
        return int(probe_socket.getsockname()[1])


def test_secrets_service_in_a_container(shared_root: Path, tmp_path: Path) -> None:
    """It answers through its own client, records, opens anew at each request.

    Leaks nothing outside its directory.
    """
    volume, log = tmp_path / "volume", tmp_path / "log"
    volume.mkdir()
    log.mkdir()
    (volume / "database").write_text("first")
    port, runtime, name = free_port(), Runtime(tmp_path / "state"), f"hauberk-service-{os.getpid()}"
    program = "/usr/bin/secrets_service"
    bundle = oci.write(
        tmp_path / "bundle",
        shared_root,
        oci.Options(
            arguments=(program, "serve", "/vault/secrets", str(port), "/vault/log/audit.log"),
            capabilities=oci.grantable(oci.CAPABILITIES_ENGINE),
            volumes=(oci.Volume(volume, "/vault/secrets"), oci.Volume(log, "/vault/log")),
        ),
    )
    with runtime.container(name, bundle):

        def get(path: str) -> tuple[int, str]:
            result = runtime.execute(name, bundle, [program, "get", f"http://127.0.0.1:{port}{path}", "20"])
            return result.status, result.output

        assert get("/healthz") == (0, "ok\n")
        assert get("/v1/secret/database") == (0, "first")
        (volume / "database").write_text("second")
        assert get("/v1/secret/database") == (0, "second")
        assert get("/v1/secret/none")[0] == 1
        assert get("/v1/secret/..")[0] == 1
        (log / "audit.log").unlink()
        (log / "audit.log").mkdir()
        assert get("/v1/secret/database") == (1, "cannot write the audit log\n")
    assert runtime.state(name) is None


def test_hooks_namespaces_and_refusal(shared_root: Path, tmp_path: Path) -> None:
    """Hooks run with the state on stdin, a failing one ends the creation, and namespaces left out are shared."""
    hook = tmp_path / "hook"
    hook.write_text('#!/bin/sh\ncat > "$1"\nexit "$2"\n')
    hook.chmod(0o755)
    runtime, name = Runtime(tmp_path / "state"), f"hauberk-hooks-{os.getpid()}"
    seen, after = tmp_path / "seen", tmp_path / "after"
    environment = ("PATH=/usr/bin:/bin",)
    good = oci.Options(
        namespaces=("pid", "mount"),
        annotations={"org.example": "x"},
        hooks={
            "createRuntime": (oci.Hook(str(hook), (str(seen), "0"), environment, timeout=10),),
            "poststop": (oci.Hook(str(hook), (str(after), "0"), environment),),
        },
    )
    bundle = oci.write(tmp_path / "bundle", shared_root, good)
    with runtime.container(name, bundle) as pid:
        state = json.loads(seen.read_text())
        assert (state["id"], state["annotations"]) == (name, {"org.example": "x"})
        assert Path(f"/proc/{pid}/ns/net").readlink() == Path("/proc/self/ns/net").readlink()
        assert Path(f"/proc/{pid}/ns/mnt").readlink() != Path("/proc/self/ns/mnt").readlink()
    assert after.exists()
    bad = oci.Options(hooks={"createRuntime": (oci.Hook(str(hook), (str(seen), "1"), environment),)})
    refused = oci.write(tmp_path / "refused", shared_root, bad)
    with pytest.raises(RuntimeCommandError, match="hook"), runtime.container(name, refused):
        pytest.fail("a container whose hook failed was created")
    assert runtime.state(name) is None


def test_unknown_namespace_is_an_error() -> None:
    """A misspelt namespace would silently be shared."""
    with pytest.raises(ValueError, match="unknown namespaces"):
        oci.config(oci.Options(namespaces=("mnt",)))


def test_capabilities_by_user(shared_root: Path, tmp_path: Path) -> None:
    """Root holds what was granted.

    Uid 1000 holds nothing, though its bounding set is the same; the plain root is used as it is.
    """
    held = oci.grantable(oci.CAPABILITIES_ENGINE)
    mask = sum(1 << oci.CAPABILITIES_ALL.index(name) for name in held)
    runtime, name = Runtime(tmp_path / "state"), f"hauberk-capabilities-{os.getpid()}"
    bundle = oci.write(
        tmp_path / "bundle", shared_root, oci.Options(capabilities=held, read_only_root=True), overlay=False
    )
    with runtime.container(name, bundle):
        for user, effective in ((0, mask), (1000, 0)):
            output = runtime.execute(name, bundle, ["/bin/cat", "/proc/self/status"], user=user).check().output
            assert f"CapEff:\t{effective:016x}" in output
            assert f"CapBnd:\t{mask:016x}" in output
        assert runtime.execute(name, bundle, ["/bin/touch", "/srv/x"]).status == 1
    assert (shared_root / "usr/bin/dash").exists()


def test_missing_programs_are_named(tmp_path: Path) -> None:
    """What is missing is said, with what brings it."""
    with pytest.raises(rootfs.RootfsError, match="make container-programs"):
        rootfs.build(tmp_path / "root", tmp_path)
