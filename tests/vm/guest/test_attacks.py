# SPDX-License-Identifier: Apache-2.0
"""Every attack against a container with a policy in force is refused, and what the policy allows works.

Each attack is first run in the same guest without enforcement: only an attack that gets through there and is refused
here was refused by the policy. Two policies: a deny list (one program denied, the secret denied to all but two
sources) and an allow-list of programs. Both leave the rest of the file system open, so that nothing is refused because
everything is.
"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from guest_agent.engines.bpf_lsm.engine import BpfLsmEngine
from hauberk.policy.rules import Action, ObjectKind, RuleSet
from tests.vm.containers import bundle as oci
from tests.vm.containers import enforced, rootfs
from tests.vm.containers.expectations import SETTINGS, Grant, Setting, Where, kernel_refusal
from tests.vm.containers.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from _pytest.mark import ParameterSet

    from guest_agent.engines.port import KernelEvent

PROGRAMS = Path(".cache/containers")
SOURCE = Path("tests/vm/containers/src/attacks.c")
ATTACKS = tuple(re.findall(r'^\tATTACK\("([^"]+)"', SOURCE.read_text("utf-8"), re.MULTILINE))
REFUSED, THROUGH = 0, 1
HOST_ATTACKS = "/usr/local/bin/attacks"  # on the measured root: also the sealed guest runs it
CAPABILITIES = {
    Grant.RUNC: oci.CAPABILITIES_RUNC,
    Grant.ENGINE: oci.CAPABILITIES_ENGINE,
    Grant.ALL: oci.CAPABILITIES_ALL,
}
VICTIMS = ("kill", "pidfd-kill", "ptrace-pid")
UNENFORCED, DENY_LIST, ALLOW_LIST = "unenforced", "deny-list", "allow-list"

# Where the secret is makes no difference to an allow-list of programs; races and depths are as under the deny list.
TRIED = {
    UNENFORCED: SETTINGS,
    DENY_LIST: SETTINGS,
    ALLOW_LIST: tuple(
        setting for setting in SETTINGS if setting.grant is Grant.ENGINE and setting.where is Where.VOLUME
    ),
}
# Every grant, user and place, and every attack where only enforcement refuses it; the other combinations are long.
QUICK = {
    Setting(Grant.ALL, 0, Where.VOLUME), Setting(Grant.ALL, 0, Where.UPPER), Setting(Grant.ENGINE, 0, Where.LOWER),
    Setting(Grant.ENGINE, 1000, Where.VOLUME), Setting(Grant.RUNC, 1000, Where.VOLUME),
}  # fmt: skip


def marked(setting: Setting, *before: str, quick: bool) -> ParameterSet:
    """Give a case; those that are not quick are for the long run."""
    return pytest.param(*before, setting, marks=[] if quick else pytest.mark.long)


ENFORCED = [
    marked(setting, kind, quick=setting in QUICK or kind == ALLOW_LIST)
    for kind in (DENY_LIST, ALLOW_LIST)
    for setting in TRIED[kind]
]

# What a deny list of programs cannot tell: the same bytes under a name that no rule speaks of.
OTHER_BYTES = {"exec-copy", "exec-deleted"}


class Answer(NamedTuple):
    """What one attack came to, and what it said."""

    status: int
    words: str


Answers = dict[tuple[str, Setting], dict[str, Answer]]


def policy(kind: str) -> RuleSet:
    """Protect the secrets of all three places and their names from before registration."""
    secrets = [f"{where.value}/app/" for where in Where]
    aliases = [f"{where.value}/public/prelinked" for where in Where]
    # second names 1,000 levels and 4,000 bytes down: exactly, as registration would name them, and by pattern
    aliases += [f"{Where.VOLUME.value}/public/deep/{'d/' * 1000}key"]
    aliases += [f"{Where.VOLUME.value}/public/long/{('n' * 250 + '/') * 16}key"]
    patterns = [f"{where.value}/public/{{deep,long}}/**/key" for where in (Where.LOWER, Where.UPPER)]
    rules = [
        *enforced.protect(secrets + aliases),
        *enforced.protect(patterns, kind=ObjectKind.PATTERN),
        enforced.file_rule("/", Action.ALLOW),
        enforced.file_rule("/proc/sys/", Action.BLOCK, read_only=True),
    ]
    if kind == DENY_LIST:
        rules.append(enforced.program_rule("/usr/bin/denied", Action.BLOCK))
    else:
        rules += [enforced.program_rule(path, Action.ALLOW) for path in enforced.PROGRAMS]
    return enforced.rule_set(rules)


def pid_inside(pid: int) -> str:
    """Give the pid in the innermost namespace of the process."""
    status = Path(f"/proc/{pid}/status").read_text("utf-8")
    return next(line.split()[-1] for line in status.splitlines() if line.startswith("NSpid:"))


def options(grant: Grant, volume: Path) -> oci.Options:
    """Give the container that `expectations.kernel_refusal` speaks of; the guest's own bpffs is in it."""
    everything = grant is Grant.ALL
    return oci.Options(
        capabilities=oci.grantable(CAPABILITIES[grant]),
        mask_paths=not everything,
        resources={"devices": [{"allow": everything, "type": "a", "access": "rwm"}]},
        volumes=(
            oci.Volume(volume, "/vault/secrets"),
            oci.Volume(Path("/sys/fs/cgroup"), "/mnt/cgroup"),
            oci.Volume(Path("/sys/fs/bpf"), "/mnt/bpf"),
        ),
        mounts=tuple(
            {
                "destination": f"/mnt/sacrifice/{where.name}",
                "type": "tmpfs",
                "source": "tmpfs",
                "options": ["mode=0777"],
            }
            for where in Where
        ),
        # from inside a cgroup namespace the kernel itself lets nobody out of a delegated hierarchy
        namespaces=tuple(kind for kind in oci.NAMESPACES if kind != "cgroup"),
    )


class Lot:
    """The containers of one policy and one capability set: the attacked one, and a neighbour for each user."""

    def __init__(self, place: Path, shared_root: Path, kind: str, settings: Sequence[Setting]) -> None:
        """Make volume and root file system; the container comes with `run`. The settings have one capability set."""
        (grant,) = {setting.grant for setting in settings}
        self.kind, self.grant, self.settings = kind, grant, settings
        self.name = f"{kind}-{grant.value}"
        self.directory = place / self.name
        self.volume = self.directory / "volume"
        self.shared_root = shared_root
        rootfs.make_secret_tree(self.volume, Path(HOST_ATTACKS))
        self.bundle = oci.write(self.directory / "bundle", shared_root, options(grant, self.volume))
        rootfs.make_secret_tree(self.bundle.root / "srv" / "upper", Path(HOST_ATTACKS))

    def run(self, engine: BpfLsmEngine | None, runtime: Runtime, answers: Answers) -> None:
        """Try all attacks in all settings of this capability set."""
        rules = RuleSet(()) if engine is None else policy(self.kind)
        with ExitStack() as stack:
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(self.volume / "public" / "socket"))
            listener.listen(16)
            (self.volume / "public" / "socket").chmod(0o666)
            pid, _ = stack.enter_context(enforced.container(engine, runtime, self.name, self.bundle, rules))
            for user in sorted({setting.user for setting in self.settings}):
                neighbour_options = oci.Options(
                    user=user,
                    group=user,
                    capabilities=self.bundle.options.capabilities,
                    join={"pid": f"/proc/{pid}/ns/pid"},
                )
                name = f"{self.name}-neighbour-{user}"
                neighbour = oci.write(self.directory / f"neighbour-{user}", self.shared_root, neighbour_options)
                neighbour_pid, _ = stack.enter_context(enforced.container(engine, runtime, name, neighbour))
                for setting in self.settings:
                    if setting.user == user:
                        answers[self.kind, setting] = self._batch(
                            runtime, setting, (name, neighbour, pid_inside(neighbour_pid)), enforced=engine is not None
                        )
        shutil.rmtree(self.directory / "bundle", ignore_errors=True)

    def _batch(
        self, runtime: Runtime, setting: Setting, neighbour: tuple[str, oci.Bundle, str], *, enforced: bool
    ) -> dict[str, Answer]:
        name, neighbour_bundle, neighbour_pid = neighbour
        sleepers = " ".join("sleep 1000000 >/dev/null 2>&1 & echo $!;" for _ in VICTIMS)
        started = runtime.execute(name, neighbour_bundle, ["/bin/sh", "-c", sleepers], user=setting.user).check()
        victims = dict(zip(VICTIMS, started.output.split(), strict=True))
        if not enforced:
            Path("/sys/fs/bpf/unguarded").unlink(missing_ok=True)
            subprocess.run([HOST_ATTACKS, "make-pin", "/sys/fs/bpf/unguarded"], check=True)
        tree = rootfs.SecretTree(Path(setting.base))
        values = {
            "source": "/opt/sources/trusted",
            "dynamic": "/opt/sources/dynamic",
            "preload": "/opt/attacks/preload.so",
            "denied": "/usr/bin/denied",
            "link": str(tree.linked),
            "seconds": "0.4" if enforced else "0.2",
            "target": f"/mnt/sacrifice/{setting.where.name}",
            "cgroup": "/mnt/cgroup",
            "socket": "/vault/secrets/public/socket",
            "pin": "/mnt/bpf/hauberk/seal" if enforced else "/mnt/bpf/unguarded",
            "device": Path("/sys/block/vda/dev").read_text("utf-8").strip(),
            "ns": f"/proc/{neighbour_pid}/ns/mnt",
        }
        lines = []
        for attack in ATTACKS:
            own = dict(values, pid=victims.get(attack, neighbour_pid))
            if attack in {"proc-neighbour-root", "setns", "proc-neighbour-cwd"}:
                own["there"] = "/srv/secrets/app/prod/key"
            lines.append("\t".join([attack, str(tree.secret), *(f"{key}={value}" for key, value in own.items())]))
        begin = time.monotonic()
        result = runtime.execute(
            self.name, self.bundle, ["/opt/attacks/attacks", "batch"], user=setting.user, data="\n".join(lines).encode()
        ).check()
        print(f"{self.name} {setting}: {time.monotonic() - begin:.1f} s")  # noqa: T201 - where a slow run spent it
        answers: dict[str, Answer] = {}
        words: list[str] = [result.errors] if result.errors else []
        for line in result.output.splitlines():
            if line.startswith("RESULT "):
                _, attack, status = line.split()
                answers[attack] = Answer(int(status), "\n".join(words))
                words = []
            else:
                words.append(line)
        return answers


class Drain(threading.Thread):
    """Takes the events all the time, as the agent does, and counts them."""

    def __init__(self, engine: BpfLsmEngine) -> None:
        """Prepare; `start` begins."""
        super().__init__(daemon=True)
        self.engine, self.ended = engine, threading.Event()
        self.counted: Counter[tuple[int, str, str, str]] = Counter()
        self.last: list[KernelEvent] = []

    def run(self) -> None:
        """Drain until told to end."""
        while not self.ended.is_set():
            self.engine.wait(0.2)
            for event in self.engine.drain():
                self.counted[event.workload_id, event.verdict, event.operation, event.detail] += 1


@pytest.fixture(scope="module")
def shared_root() -> Path:
    """The lower layer of every container here."""
    shutil.copyfile(PROGRAMS / "attacks", HOST_ATTACKS)
    Path(HOST_ATTACKS).chmod(0o755)
    place = Path("/run/containers-under-test")
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0755,size=1g", "tmpfs", str(place)], check=True)
    rootfs.build(place / "rootfs", PROGRAMS)
    return place / "rootfs"


@pytest.fixture(scope="module")
def runtime(shared_root: Path) -> Runtime:
    return Runtime(shared_root.parent / "state", "runc", limit=300)


def chosen(request: pytest.FixtureRequest, kind: str) -> Iterator[list[Setting]]:
    """Give the settings that this run has tests for, those of one capability set together."""
    wanted: set[tuple[str, Setting]] = set()
    for item in request.session.items:
        parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        setting = parameters.get("setting")
        if isinstance(setting, Setting):
            wanted.add((str(parameters.get("kind", UNENFORCED)), setting))
    for grant in Grant:
        settings = [setting for setting in TRIED[kind] if setting.grant is grant and (kind, setting) in wanted]
        if settings:
            yield settings


@pytest.fixture(scope="module")
def unenforced(request: pytest.FixtureRequest, shared_root: Path, runtime: Runtime) -> Answers:
    """All attacks in the settings before the engine is loaded."""
    answers: Answers = {}
    for settings in chosen(request, UNENFORCED):
        Lot(shared_root.parent, shared_root, UNENFORCED, settings).run(None, runtime, answers)
    return answers


@pytest.fixture(scope="module")
def engine(unenforced: Answers) -> Iterator[BpfLsmEngine]:
    """The engine, sealed. `unenforced` comes before it: nothing can be unsealed."""
    assert unenforced
    engine = BpfLsmEngine()
    engine.seal(enforced.DIGEST, enforced.gate())
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def drain(engine: BpfLsmEngine) -> Iterator[Drain]:
    drain = Drain(engine)
    drain.start()
    yield drain
    drain.ended.set()
    drain.join()
    print(engine.statistics(), *drain.counted.most_common(), sep="\n")  # noqa: T201 - shown when a test fails


@pytest.fixture(scope="module")
def answers(
    request: pytest.FixtureRequest, shared_root: Path, runtime: Runtime, engine: BpfLsmEngine, drain: Drain
) -> Answers:
    """All attacks in the settings under both policies."""
    assert drain.is_alive()
    answers: Answers = {}
    for kind in (DENY_LIST, ALLOW_LIST):
        for settings in chosen(request, kind):
            Lot(shared_root.parent, shared_root, kind, settings).run(engine, runtime, answers)
    return answers


# One test for all attacks of a setting, naming each that went wrong: 2,700 tests would take a minute by themselves.


def test_the_quick_settings_show_every_refusal() -> None:
    assert set(SETTINGS) > QUICK
    assert {setting.grant for setting in QUICK} == set(Grant)
    assert {setting.where for setting in QUICK} == set(Where)
    assert {setting.user for setting in QUICK} == {setting.user for setting in SETTINGS}
    assert [name for name in ATTACKS if all(kernel_refusal(name, setting) for setting in QUICK)] == []


@pytest.mark.parametrize("setting", [marked(setting, quick=setting in QUICK) for setting in SETTINGS], ids=str)
def test_attacks_get_through_without_enforcement(unenforced: Answers, setting: Setting) -> None:
    """The premise: on this very kernel each gets through, or the kernel itself refuses it as listed."""
    found = unenforced[UNENFORCED, setting]
    expected = {name: THROUGH if kernel_refusal(name, setting) is None else REFUSED for name in ATTACKS}
    assert differing(found, expected) == {}


@pytest.mark.parametrize(("kind", "setting"), ENFORCED, ids=str)
def test_attacks_are_refused(answers: Answers, kind: str, setting: Setting) -> None:
    through = OTHER_BYTES if kind == DENY_LIST else set()
    expected = {name: THROUGH if name in through else REFUSED for name in ATTACKS}
    assert differing(answers[kind, setting], expected) == {}


def differing(found: dict[str, Answer], expected: dict[str, int]) -> dict[str, tuple[int, Answer | None]]:
    """Give the attacks that came to something else than expected, or to nothing: expected status and answer."""
    wrong = {name: (status, found.get(name)) for name, status in expected.items()}
    return {name: (status, answer) for name, (status, answer) in wrong.items() if not answer or answer.status != status}


def test_refusals_are_told(answers: Answers, drain: Drain) -> None:
    """Every kind of refusal that the attacks provoke reaches the agent; what did not fit is counted."""
    assert answers
    told = {(operation, detail) for _, verdict, operation, detail in drain.counted if verdict == "deny"}
    expected = {
        ("execute", "exec"), ("map", "mmap"), ("map", "mprotect"), ("read", "open"), ("write", "open"),
        ("read", "receive"),
        ("write", "truncate"), ("write", "unlink"), ("write", "link"), ("write", "rename"), ("write", "chmod"),
        ("write", "chown"), ("write", "create"), ("mount", "mount"), ("mount", "umount"), ("mount", "pivot_root"),
        ("mount", "move_mount"), ("chroot", "chroot"), ("namespace", "user_namespace"), ("ptrace", "ptrace"),
        ("signal", "kill"), ("bpf", "bpf"), ("pin", "unpin"), ("connect", "connect"),
    }  # fmt: skip
    # a caller may need to be refused something earlier before it comes to these
    assert expected - told <= {("mount", "pivot_root"), ("mount", "move_mount")}


class Everyday(NamedTuple):
    """A container under the deny list and one under the allow-list, for what works."""

    runtime: Runtime
    bundles: dict[str, oci.Bundle]
    volume: Path


@pytest.fixture(scope="module")
def everyday(
    shared_root: Path, runtime: Runtime, engine: BpfLsmEngine, answers: Answers, drain: Drain
) -> Iterator[Everyday]:
    assert answers
    assert drain.is_alive()
    volume = shared_root.parent / "everyday"
    rootfs.make_secret_tree(volume, Path(HOST_ATTACKS), deep=False)
    for name in ("prod", "other"):
        (volume / "app" / f"{name}-moving").mkdir()
    (volume / "app" / "prod-moving" / "key").write_text("HAUBERK-SECRET-moving\n")
    bundles: dict[str, oci.Bundle] = {}
    with ExitStack() as stack:
        for kind in (DENY_LIST, ALLOW_LIST):
            bundles[kind] = oci.write(
                shared_root.parent / f"everyday-{kind}", shared_root, options(Grant.ENGINE, volume)
            )
            stack.enter_context(enforced.container(engine, runtime, f"everyday-{kind}", bundles[kind], policy(kind)))
        yield Everyday(runtime, bundles, volume)


@pytest.mark.parametrize("user", [0, 1000])
@pytest.mark.parametrize("kind", [DENY_LIST, ALLOW_LIST])
def test_what_is_allowed_works(everyday: Everyday, kind: str, user: int) -> None:
    """Copy-up, links, renames, memory, threads, forks, programs, tracing: in the overlay and on the volume."""
    bundle = everyday.bundles[kind]
    tries = [
        ("/tmp", "/etc/lower-layer.conf"),
        ("/vault/secrets/public", "/etc/lower-layer.conf"),
    ]
    for directory, appended in tries:
        done = everyday.runtime.execute(
            f"everyday-{kind}", bundle, ["/usr/bin/everyday", directory, appended], user=user, data=b""
        )
        assert done.status == 0, done
        assert "FAILED" not in done.output
    lower = (bundle.root / "etc" / "lower-layer.conf").read_text("utf-8")
    assert lower.startswith("# a file of the image")
    assert lower.count("appended") >= len(tries)


@pytest.mark.parametrize("kind", [DENY_LIST, ALLOW_LIST])
@pytest.mark.parametrize("source", ["/opt/sources/trusted", "/opt/sources/other"])
def test_only_the_privileged_source_reads_the_secret(everyday: Everyday, kind: str, source: str) -> None:
    command = [source, "helper-open", "/vault/secrets/app/prod/key"]
    done = everyday.runtime.execute(f"everyday-{kind}", everyday.bundles[kind], command, user=1000)
    assert done.output.startswith("HAUBERK-SECRET") == (source == "/opt/sources/trusted"), done


@pytest.mark.parametrize("attack", ["race-rename", "race-exchange", "race-symlink", "race-neighbours"])
def test_a_long_race(everyday: Everyday, attack: str) -> None:
    command = ["/opt/attacks/attacks", attack, "/vault/secrets/app/prod/key", "seconds=1.5"]
    done = everyday.runtime.execute(f"everyday-{DENY_LIST}", everyday.bundles[DENY_LIST], command)
    assert done.status == REFUSED, done


def test_a_directory_that_others_move_all_the_time(everyday: Everyday, engine: BpfLsmEngine) -> None:
    """The host exchanges two denied directories while the container opens the secret by both names.

    A walk that read one name before and one after an exchange would see a path that nobody denied.
    """
    app = everyday.volume / "app"
    before = engine.statistics()["walk_retries"]
    churn = subprocess.Popen([HOST_ATTACKS, "churn", str(app / "prod-moving"), str(app / "other-moving"), "6"])
    command = [
        "/opt/attacks/attacks", "open-loop", "/vault/secrets/app/prod-moving/key",
        "there=/vault/secrets/app/other-moving/key", "seconds=4",
    ]  # fmt: skip
    done = everyday.runtime.execute(f"everyday-{DENY_LIST}", everyday.bundles[DENY_LIST], command)
    assert churn.wait() == 0
    assert done.status == REFUSED, done
    assert engine.statistics()["walk_retries"] > before, "no walk met a rename: the race was not run"
