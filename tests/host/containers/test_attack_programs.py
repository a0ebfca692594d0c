# SPDX-License-Identifier: Apache-2.0
"""The attack programs work: without enforcement each gets through where the kernel itself does not refuse it.

A refusal in the vm lane means something only because of this file, which uses a real runc. It also shows the other
half: that an attack tells a refusal from a failure of its own, for a test that cannot fail is a defect.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.vm.containers import bundle as oci
from tests.vm.containers import rootfs
from tests.vm.containers.expectations import SETTINGS, Grant, Setting, Where, kernel_refusal
from tests.vm.containers.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Iterator

REFUSED, THROUGH, BROKEN = 0, 1, 2
ATTACKS_SOURCE = Path(__file__).resolve().parents[2] / "vm" / "containers" / "src" / "attacks.c"
README = ATTACKS_SOURCE.parents[1] / "README.md"
ATTACKS = tuple(re.findall(r'^\tATTACK\("([^"]+)"', ATTACKS_SOURCE.read_text(), re.MULTILINE))
CAPABILITIES = {
    Grant.RUNC: oci.CAPABILITIES_RUNC,
    Grant.ENGINE: oci.CAPABILITIES_ENGINE,
    Grant.ALL: oci.CAPABILITIES_ALL,
}
VICTIMS = ("kill", "pidfd-kill", "ptrace-pid")

Answers = dict[Setting, dict[str, tuple[int, str]]]


def unified_cgroup() -> Path:
    """Where the v2 hierarchy is mounted: by itself, or beside v1."""
    hybrid = Path("/sys/fs/cgroup/unified")
    return hybrid if hybrid.is_dir() else Path("/sys/fs/cgroup")


def pid_inside(pid: int) -> int:
    """The pid in the innermost namespace of the process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("NSpid:"):
            return int(line.split()[-1])
    message = f"/proc/{pid}/status has no NSpid"
    raise AssertionError(message)


def options(grant: Grant, volume: Path) -> oci.Options:
    """Give the container that `expectations.kernel_refusal` speaks of."""
    everything = grant is Grant.ALL
    return oci.Options(
        capabilities=oci.grantable(CAPABILITIES[grant]),
        # A cgroup namespace of its own, delegated by it, would keep the container's processes below its cgroup.
        namespaces=tuple(kind for kind in oci.NAMESPACES if kind != "cgroup"),
        mask_paths=not everything,
        resources={"devices": [{"allow": everything, "type": "a", "access": "rwm"}]},
        volumes=(oci.Volume(volume, "/vault/secrets"), oci.Volume(unified_cgroup(), "/mnt/cgroup")),
        mounts=(
            {"destination": "/mnt/sacrifice", "type": "tmpfs", "source": "tmpfs", "options": ["mode=0777"]},
            {"destination": "/mnt/bpf", "type": "bpf", "source": "bpf", "options": []},
        ),
    )


def run_setting(  # noqa: PLR0913, PLR0917 - what one try consists of
    runtime: Runtime, name: str, bundle: oci.Bundle, programs: Path, setting: Setting, neighbour: int, pid: int
) -> dict[str, tuple[int, str]]:
    """Try all attacks in one setting in one exec and give status and words of each."""
    sleepers = " ".join("sleep 1000000 >/dev/null 2>&1 & echo $!;" for _ in VICTIMS)
    started = runtime.execute(name, bundle, ["/bin/sh", "-c", sleepers], user=setting.user).check()
    victims = dict(zip(VICTIMS, started.output.split(), strict=True))
    pin = Path(f"/proc/{pid}/root/mnt/bpf/pin")
    pin.unlink(missing_ok=True)
    subprocess.run([str(programs / "attacks"), "make-pin", str(pin)], check=True)
    tree = rootfs.SecretTree(Path(setting.base))
    values = {
        "source": "/opt/sources/trusted",
        "dynamic": "/opt/sources/dynamic",
        "preload": "/opt/attacks/preload.so",
        "denied": "/usr/bin/denied",
        "link": str(tree.linked),
        "seconds": "0.3",
        "target": "/mnt/sacrifice",
        "cgroup": "/mnt/cgroup",
        "socket": "/vault/secrets/public/socket",
        "pin": "/mnt/bpf/pin",
        "kind": "c",
        "device": "1:11",  # the kernel's log: no container is given it, and opening it harms nothing
        "ns": f"/proc/{neighbour}/ns/mnt",
    }
    lines = []
    for attack in ATTACKS:
        own = dict(values, pid=victims.get(attack, str(neighbour)))
        if attack in {"proc-neighbour-root", "setns", "proc-neighbour-cwd"}:
            own["there"] = "/srv/secrets/app/prod/key"
        lines.append("\t".join([attack, str(tree.secret), *(f"{key}={value}" for key, value in own.items())]))
    result = runtime.execute(
        name, bundle, ["/opt/attacks/attacks", "batch"], user=setting.user, data="\n".join(lines).encode()
    ).check()
    assert result.errors == "", f"{setting}: an attack could not undo what it did"
    answers: dict[str, tuple[int, str]] = {}
    words: list[str] = []
    for line in result.output.splitlines():
        if line.startswith("RESULT "):
            _, attack, status = line.split()
            answers[attack] = (int(status), "\n".join(words))
            words = []
        else:
            words.append(line)
    return answers


@pytest.fixture(scope="module")
def answers(shared_root: Path, programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Answers]:
    """All attacks in all settings: one container, with a neighbour in its pid namespace, per setting."""
    place = tmp_path_factory.mktemp("attacks")
    runtime = Runtime(place / "state")
    found: Answers = {}
    for setting in SETTINGS:
        volume, name = place / f"volume-{setting}", f"hauberk-attacks-{os.getpid()}-{setting}"
        rootfs.make_secret_tree(volume, programs / "attacks")
        bundle = oci.write(place / f"bundle-{setting}", shared_root, options(setting.grant, volume))
        rootfs.make_secret_tree(bundle.root / "srv" / "upper", programs / "attacks")
        with socket.socket(socket.AF_UNIX) as listener, runtime.container(name, bundle) as pid:
            # The socket's full path may be too long for its address.
            directory = os.open(volume / "public", os.O_PATH)
            listener.bind(f"/proc/self/fd/{directory}/socket")
            os.close(directory)
            listener.listen(8)
            (volume / "public" / "socket").chmod(0o666)
            neighbour_options = oci.Options(
                user=setting.user,
                group=setting.user,
                capabilities=bundle.options.capabilities,
                join={"pid": f"/proc/{pid}/ns/pid"},
            )
            neighbour = oci.write(place / f"neighbour-{setting}", shared_root, neighbour_options)
            with runtime.container(f"{name}-neighbour", neighbour) as neighbour_pid:
                found[setting] = run_setting(runtime, name, bundle, programs, setting, pid_inside(neighbour_pid), pid)
        rootfs.remove_tree(volume)
    yield found
    assert not list(place.glob("bundle-*")), "bundles were left behind"


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("attack", ATTACKS)
def test_attack_without_enforcement(answers: Answers, attack: str, setting: Setting) -> None:
    """Each attack gets through, or meets the very errno by which the kernel refuses it."""
    expected = kernel_refusal(attack, setting)
    status, words = answers[setting][attack]
    if expected is None:
        assert status == THROUGH, words
        assert re.search(rf"^{attack} OPEN: .+", words, re.MULTILINE), words
    else:
        assert status == REFUSED, f"{words} (expected a refusal: {expected.reason})"
        assert f"{attack} refused errno={expected.errno} (" in words, (
            f"{words} (expected errno {expected.errno}: {expected.reason})"
        )


@pytest.mark.parametrize("attack", ATTACKS)
def test_every_attack_is_proven_somewhere(attack: str) -> None:
    """No attack is refused by the kernel in all settings: its refusal under a policy would mean nothing."""
    assert any(kernel_refusal(attack, setting) is None for setting in SETTINGS)


def test_list_names_the_attacks(programs: Path) -> None:
    """The table in the source, which the tests read, is what the program offers."""
    listed = subprocess.run(
        [str(programs / "attacks"), "list"], check=True, capture_output=True, text=True
    ).stdout.split()
    assert tuple(listed) == ATTACKS
    assert len(set(listed)) == len(listed)


@pytest.mark.parametrize("attack", ATTACKS)
def test_every_attack_is_explained(attack: str) -> None:
    """README.md says what each attack does and which part is to refuse it."""
    assert f"`{attack}`" in README.read_text()


@pytest.fixture
def container(
    shared_root: Path, programs: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[tuple[Runtime, str, oci.Bundle, Path]]:
    """A container as engines make it, with a volume of its own."""
    volume = tmp_path / "volume"
    rootfs.make_secret_tree(volume, programs / "attacks", deep=False)
    runtime, name = Runtime(tmp_path / "state"), f"hauberk-{os.getpid()}-{abs(hash(request.node.nodeid)) % 10**8}"
    bundle = oci.write(
        tmp_path / "bundle",
        shared_root,
        oci.Options(
            capabilities=oci.grantable(oci.CAPABILITIES_ENGINE),
            volumes=(oci.Volume(volume, "/vault/secrets"),),
            mounts=(
                {"destination": "/mnt/sacrifice", "type": "bind", "source": str(volume), "options": ["bind", "noexec"]},
            ),
        ),
    )
    with runtime.container(name, bundle):
        yield runtime, name, bundle, volume
    rootfs.remove_tree(volume)


@pytest.mark.parametrize(
    "attack",
    [
        "open",
        "openat2",
        "dirfd",
        "dotdot",
        "proc-self-root",
        "proc-self-fd",
        "io-uring",
        "userns-bind",
        "userns-open-tree",
        "fork-exec",
        "symlink",
        "race-symlink",
        "copy-up",
    ],
)
def test_a_refused_open_is_told_as_refused(container: tuple[Runtime, str, oci.Bundle, Path], attack: str) -> None:
    """File modes stand for the policy: what gets through elsewhere ends in status 0 when its open is refused."""
    runtime, name, bundle, volume = container
    (volume / "app" / "prod" / "key").chmod(0)
    result = runtime.execute(
        name, bundle, ["/opt/attacks/attacks", attack, "/vault/secrets/app/prod/key", "seconds=0.3"], user=1000
    )
    assert (result.status, f"refused errno={errno.EACCES} (EACCES)" in result.output) == (REFUSED, True), result


@pytest.mark.parametrize(
    "attack",
    [
        "exec",
        "exec-fd",
        "exec-proc-fd",
        "exec-loader",
        "exec-loader-fd",
        "exec-symlink",
        "map-exec",
        "map-mprotect",
        "exec-script",
    ],
)
def test_a_refused_program_is_told_as_refused(
    container: tuple[Runtime, str, oci.Bundle, Path], programs: Path, attack: str
) -> None:
    """A noexec mount stands for the policy.

    Neither the exec nor an executable mapping happens, and the attack says so.
    """
    runtime, name, bundle, volume = container
    denied = volume / "denied"
    denied.write_bytes((programs / "denied").read_bytes())
    denied.chmod(0o755)
    command = ["/opt/attacks/attacks", attack, "/vault/secrets/app/prod/key", "denied=/mnt/sacrifice/denied"]
    result = runtime.execute(name, bundle, command)
    assert (result.status, f"{attack} refused" in result.output) == (REFUSED, True), result


@pytest.mark.parametrize(
    ("attack", "values"),
    [
        ("open", ()),
        ("hardlink", ("work=/nowhere",)),
        ("userns-bind", ("scratch=/nowhere",)),
        ("vm-readv", ("source=/opt/sources/trusted",)),
        ("scm-rights", ("source=/opt/sources/trusted",)),
        ("ld-preload", ("dynamic=/opt/sources/dynamic", "preload=/nowhere.so")),
        ("exec", ("denied=/usr/bin/true",)),
        ("exec-loader", ("denied=/nowhere",)),
        ("deep-path", ()),
        ("kill", ("pid=999999",)),
        ("setns", ()),
        ("no-such-attack", ()),
    ],
)
def test_what_could_not_be_tried_is_no_refusal(
    container: tuple[Runtime, str, oci.Bundle, Path], attack: str, values: tuple[str, ...]
) -> None:
    """A missing secret, helper, directory or value ends in status 2."""
    runtime, name, bundle, _ = container
    result = runtime.execute(name, bundle, ["/opt/attacks/attacks", attack, "/vault/secrets/app/prod/missing", *values])
    assert (result.status, "BROKEN" in result.output) == (BROKEN, True), result


def test_a_decoy_is_no_secret(container: tuple[Runtime, str, oci.Bundle, Path]) -> None:
    """Opening something else of that name is not getting through."""
    runtime, name, bundle, volume = container
    (volume / "app" / "prod" / "key").write_text("something else\n")
    result = runtime.execute(name, bundle, ["/opt/attacks/attacks", "open", "/vault/secrets/app/prod/key"])
    assert result.status == BROKEN, result


def test_churn_leaves_things_as_they_were(programs: Path, tmp_path: Path) -> None:
    """The mover for races from outside exchanges, and ends with the names as they were."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    result = subprocess.run(
        [str(programs / "attacks"), "churn", "a", "b", "0.1"], check=True, capture_output=True, text=True, cwd=tmp_path
    )
    assert int(result.stdout.split()[0]) > 0
    assert (tmp_path / "a" / "a").exists()


def test_root_file_system(shared_root: Path) -> None:
    """Merged /usr, a dynamic shell behind two links, a static busybox, modes that refuse nothing."""
    assert (shared_root / "bin").readlink() == Path("usr/bin")
    assert (shared_root / "usr/bin/sh").readlink() == Path("dash")
    assert (shared_root / "usr/bin/vi").readlink() == Path("busybox")
    assert stat.S_IMODE((shared_root / "srv/secrets/app/prod/key").stat().st_mode) == 0o666
    with pytest.raises(rootfs.RootfsError, match="is not empty"):
        rootfs.build(shared_root, shared_root)


def test_secret_trees_are_linked(shared_root: Path) -> None:
    """The hard link from before any policy is the same file."""
    tree = rootfs.SecretTree(shared_root / "srv" / "secrets")
    assert tree.secret.stat().st_ino == tree.linked.stat().st_ino
    assert Where.LOWER.value == "/srv/secrets"
