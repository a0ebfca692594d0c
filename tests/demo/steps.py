# SPDX-License-Identifier: Apache-2.0
"""The demonstration's inner half: everything a user of a sealed machine relies on, tried for real.

Each line says what was tried, what was expected and what happened. Exit code 1 if any differs. Uses the command line
and the hook as a user would; only the kernel's own maps are looked at through the engine.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from guest_agent.engines.bpf_lsm import layout
from guest_agent.engines.bpf_lsm.libbpf import Libbpf, Map
from tests.vm.containers import rootfs
from tests.vm.containers.bundle import Bundle, Hook, Options, Volume, write
from tests.vm.containers.runtime import Completed, Runtime

BASE: Final = Path("/run/hauberk-demo")
SECRET: Final = "correct-horse-battery"  # noqa: S105 - what the demonstration protects
SECRETS: Final = "/vault/secrets"
STRANGERS: Final = 4  # containers started without the hook
HAUBERK: Final = (sys.executable, "-m", "hauberk.cli")
REPOSITORY: Final = Path(__file__).resolve().parents[2]
POLICIES: Final = Path(__file__).with_name("policies")
HOOK: Final = Path("/usr/libexec/hauberk/hauberk-hook")
SOCKET: Final = Path("/run/hauberk/hook.sock")
WAIT: Final = 60.0


def hauberk(*arguments: str | Path) -> Completed:
    """Run the command line."""
    line = (*HAUBERK, *map(str, arguments))
    done = subprocess.run(line, check=False, capture_output=True, text=True)
    return Completed(line, done.returncode, done.stdout, done.stderr)


@dataclass
class Report:
    """The lines, and whether all came out as expected."""

    failed: int = 0
    number: int = 0
    section: int = 0

    def heading(self, text: str) -> None:
        """Begin a section."""
        self.section += 1
        self.number = 0
        print(f"\n{self.section}. {text}", flush=True)

    def step(self, tried: str, expected: str, happened: str, *, right: bool) -> None:
        """One line."""
        self.number += 1
        self.failed += not right
        mark = "ok  " if right else "FAIL"
        print(f"  {mark} {self.section}.{self.number} {tried} | expected: {expected} | {happened.strip()}", flush=True)


@dataclass
class Demo:
    """The machine under demonstration."""

    report: Report = field(default_factory=Report)
    runtime: Runtime = field(default_factory=lambda: Runtime(BASE / "runc"))
    agent: subprocess.Popen[bytes] | None = None
    bundles: dict[str, Bundle] = field(default_factory=dict)
    told: list[dict[str, Any]] = field(default_factory=list)

    # ---- the agent ---------------------------------------------------------------------------------------------

    def configure(self, bundle: Path, name: str = "agent.yaml") -> Path:
        """Write a configuration for this bundle."""
        path = BASE / name
        path.write_text(
            "\n".join(
                (
                    "mode: sealed",
                    f"trustRoot: {BASE / 'trust-root.json'}",
                    f"bundle: {bundle}",
                    f"bundleSignature: {bundle}.sig",
                    f"helpers: [{HOOK}]",
                    'serviceCgroups: ["/"]',
                    "",
                )
            )
        )
        return path

    def start_agent(self, configuration: Path) -> str:
        """Start the agent; "" when it is ready, otherwise the last line it said."""
        log = (BASE / "agent.log").open("ab")
        self.agent = subprocess.Popen(
            [*HAUBERK, "agent", "run", "--configuration", configuration], stdout=log, stderr=log
        )
        end = time.monotonic() + WAIT
        while time.monotonic() < end:
            if self.agent.poll() is not None:
                return last_line(BASE / "agent.log") or f"exit code {self.agent.returncode}"
            if SOCKET.exists() and hauberk("status", "--json").status == 0:
                return ""
            time.sleep(0.1)
        return "not ready in time"

    def stop_agent(self, number: int) -> None:
        """Send a signal and wait for the end."""
        if self.agent is not None:
            self.agent.send_signal(number)
            self.agent.wait()

    # ---- containers --------------------------------------------------------------------------------------------

    def container(self, name: str, *, hook: bool = True, **options: Any) -> Bundle:  # noqa: ANN401 - Options' own
        """Write a bundle for a container on the demonstration's root file system."""
        hooks = {
            "createRuntime": (Hook(str(HOOK), ("createRuntime",), (), 20),),
            "poststop": (Hook(str(HOOK), ("poststop",), (), 20),),
        }
        made = write(BASE / "bundles" / name, BASE / "rootfs", Options(hooks=hooks if hook else {}, **options))
        self.bundles[name] = made
        return made

    def inside(self, *arguments: str, user: int = 0) -> Completed:
        """Run a program in the secrets service's container."""
        return self.runtime.execute("secrets", self.bundles["secrets"], arguments, user=user)

    def refused(self, tried: str, *arguments: str, user: int = 0) -> None:
        """A step that must be refused without the secret having been seen."""
        done = self.inside(*arguments, user=user)
        said = (done.errors or done.output).strip().splitlines()
        right = done.status != 0 and SECRET not in done.output + done.errors
        self.report.step(tried, "refused", said[-1] if said else f"exit code {done.status}", right=right)

    def attack(self, tried: str, name: str, *arguments: str, user: int = 0) -> None:
        """An attack program of the test suite: exit code 0 means that it was refused, 1 that it got through."""
        command = ("/opt/attacks/attacks", name, "/vault/secrets/app/prod/key", "work=/vault/public", *arguments)
        done = self.inside(*command, user=user)
        said = (done.output or done.errors).strip().splitlines()
        self.report.step(tried, "refused", said[-1] if said else f"exit code {done.status}", right=done.status == 0)

    # ---- the story ---------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Everything a machine has before Hauberk comes to it."""
        BASE.mkdir(parents=True)
        subprocess.run(["/bin/mount", "-t", "tmpfs", "-o", "size=512m,mode=755", "hauberk-demo", BASE], check=True)
        rootfs.build(BASE / "rootfs", REPOSITORY / ".cache/containers", deep=False)
        tree = rootfs.make_secret_tree(BASE / "vault/secrets", REPOSITORY / ".cache/containers/attacks", deep=False)
        (tree.base / "database").write_text(SECRET + "\n")
        public = BASE / "vault/public"
        public.mkdir()
        public.chmod(0o777)
        os.link(tree.base / "database", public / "linked-before")
        HOOK.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / "hooks/hauberk-hook", HOOK)

    def sign(self) -> None:
        """1: keys, bundle, signature; what is not exactly that is refused."""
        step = self.report.step
        self.report.heading("The owner signs a bundle of policies")
        made = hauberk("bundle", "keygen", "-o", BASE / "owner")
        step("make a key pair", "done", "owner.key, owner.pub", right=made.status == 0)
        for version in ("2", "1"):
            built = hauberk(
                "bundle", "build", POLICIES, "-o", BASE / f"v{version}.bundle", "--name", "vault", "--version", version
            )
            signed = hauberk(
                "bundle", "sign", BASE / f"v{version}.bundle", "--key", BASE / "owner.key",
                "-o", BASE / f"v{version}.bundle.sig",
            )  # fmt: skip
            right = built.status == signed.status == 0
            step(f"build and sign version {version}", "done", f"v{version}.bundle", right=right)
        verify = ("--key", BASE / "owner.pub", "--minimum-version", "2", "--name", "vault")
        good = hauberk("bundle", "verify", BASE / "v2.bundle", "--signature", BASE / "v2.bundle.sig", *verify)
        step("verify version 2", "accepted", good.output or good.errors, right=good.status == 0)
        data = (BASE / "v2.bundle").read_bytes()
        (BASE / "tampered.bundle").write_bytes(data.replace(b"Block", b"Allow", 1))
        shutil.copy(BASE / "v2.bundle.sig", BASE / "tampered.bundle.sig")
        bad = hauberk("bundle", "verify", BASE / "tampered.bundle", "--signature", BASE / "v2.bundle.sig", *verify)
        step("verify a copy with one Block turned into Allow", "refused", bad.errors, right=bad.status == 1)
        old = hauberk("bundle", "verify", BASE / "v1.bundle", "--signature", BASE / "v1.bundle.sig", *verify)
        step("verify version 1 where 2 is the least", "refused", old.errors, right=old.status == 1)
        key = {"name": "owner", "publicKey": (BASE / "owner.pub").read_text()}
        (BASE / "trust-root.json").write_text(
            json.dumps(
                {
                    "apiVersion": "hauberk/v1",
                    "kind": "TrustRoot",
                    "keys": [key],
                    "bundle": {"name": "vault", "minimumVersion": 2},
                }
            )
        )

    def seal(self) -> None:
        """2: the agent takes the right bundle only, and seals the kernel with it."""
        step = self.report.step
        self.report.heading("The agent verifies, seals, and says what this kernel offers")
        for name in ("tampered", "v1"):
            said = self.start_agent(self.configure(BASE / f"{name}.bundle", f"{name}.yaml"))
            step(f"start the agent with the {name} bundle", "refuses to start", said, right=bool(said))
            self.stop_agent(signal.SIGKILL)
        said = self.start_agent(self.configure(BASE / "v2.bundle"))
        step("start the agent with version 2", "ready", said or "ready", right=not said)
        if said:
            print((BASE / "agent.log").read_text())
            raise SystemExit(1)
        probe = hauberk("agent", "probe", "--json")
        step("ask which engines this kernel offers", "bpf_lsm among them", " ".join(probe.output.split()),
             right=probe.status == 0 and "bpf_lsm" in probe.output)  # fmt: skip
        status = hauberk("status", "--json")
        step("ask for the status", "sealed", " ".join(status.output.split())[:300], right='"sealed"' in status.output)

    def serve(self) -> None:
        """3: a service starts under runc with the hook, and works."""
        step = self.report.step
        self.report.heading("A secrets service starts under runc with the createRuntime hook")
        bundle = self.container(
            "secrets",
            arguments=("/usr/bin/secrets_service", "serve", "/vault/secrets", "8200", "/var/log/audit.log"),
            annotations={"io.hauberk.label.app": "secrets"},
            volumes=(Volume(BASE / "vault", "/vault"),),
        )
        created = self.runtime.create("secrets", bundle)
        step("runc create", "accepted by the agent", created.errors or "created", right=created.status == 0)
        started = self.runtime.start("secrets")
        step("runc start", "runs", started.errors or "running", right=started.status == 0)
        asked = self.inside("/usr/bin/secrets_service", "get", "http://127.0.0.1:8200/v1/secret/database", "10")
        step("ask it for a secret", "the secret", asked.output + asked.errors, right=SECRET in asked.output)
        listed = hauberk("workloads", "--json")
        step(
            "list the workloads", "enforced", " ".join(listed.output.split())[:200], right='"enforced"' in listed.output
        )

    def attacks(self) -> None:
        """4: what the bundle forbids is refused in every way, what it allows works."""
        report = self.report
        report.heading("In the same container, through runc exec, as root and as uid 1000")
        database = f"{SECRETS}/database"
        self.refused("a shell", "/bin/sh", "-c", "echo in")
        self.refused("a shell under another name (busybox sh)", "/bin/busybox", "sh", "-c", "echo in")
        self.refused("read the secret with cat", "/bin/cat", database)
        self.refused("read it as uid 1000", "/bin/cat", database, user=1000)
        loader = "/lib64/ld-linux-x86-64.so.2"
        self.refused("run the shell through the loader", loader, "/bin/dash", "-c", "echo in")
        self.refused("read it with cat through the loader", loader, "/bin/cat", database)
        self.attack("read it through a hard link", "hardlink")
        self.refused("read it through a hard link from before the container", "/bin/cat", "/vault/public/linked-before")
        self.attack("rename the directory it is in, then read", "rename-parent")
        self.attack("bind mount in a new user namespace, as uid 1000", "userns-bind", user=1000)
        self.attack("chroot to its directory, then read", "chroot")
        self.refused("write into a binary directory", "/bin/cp", "/bin/cat", "/usr/bin/cat2")
        question = b"open-append\t/etc/lower-layer.conf\n"
        done = self.runtime.execute("secrets", self.bundles["secrets"], ["/usr/bin/prober"], data=question)
        right = done.output.strip() == "0"
        report.step("append to a file of the image (copy-up)", "works", done.output + done.errors, right=right)
        done = self.inside("/bin/cat", "/etc/hosts")
        report.step("read what is audited", "works", done.output, right=done.status == 0)
        told = [alert for alert in self.alerts() if alert.get("Resource") == "/etc/hosts"]
        report.step("is it told?", "an alert with action Audit", str(told[-1:])[:200], right=bool(told))

    def alerts(self) -> list[dict[str, Any]]:
        """Every alert the agent kept."""
        done = hauberk("alerts", "--json")
        return [json.loads(line) for line in done.output.splitlines() if line.startswith("{")]

    def strangers(self) -> None:
        """5: who is not covered, or not announced, executes nothing."""
        step = self.report.step
        self.report.heading("Containers nobody covers, or nobody announced")
        uncovered = self.container("uncovered", arguments=("/bin/cat", "/etc/hosts"))
        created = self.runtime.create("uncovered", uncovered)
        step("a container that no policy covers", "not created", created.errors, right=created.status != 0)
        self.runtime.delete("uncovered")
        cases: dict[str, dict[str, Any]] = {
            "without the hook": {},
            "without the hook and without namespaces": {
                "namespaces": (), "standard_mounts": False, "mask_paths": False,
            },
            "without the hook and without a cgroup of its own": {"resources": None},
            "without hook, namespaces and cgroup": {
                "namespaces": (), "standard_mounts": False, "mask_paths": False, "resources": None,
            },
        }  # fmt: skip
        for number, (what, options) in enumerate(cases.items()):
            made = self.container(f"stranger{number}", hook=False, arguments=("/bin/cat", "/etc/hosts"), **options)
            if "namespaces" in options:  # runc itself needs it there
                subprocess.run(["/bin/mount", "-t", "proc", "proc", made.root / "proc"], check=True)
            done = self.runtime.run(f"stranger{number}", made)
            self.runtime.wait_stopped(f"stranger{number}")
            output = (made.directory / "container.stdout").read_text()
            errors = (made.directory / "container.stderr").read_text().strip().splitlines()
            right = "127.0.0.1" not in output and any("ermi" in line for line in errors)
            step(
                f"a container {what}",
                "executes nothing",
                errors[-1] if errors else output or str(done.status),
                right=right,
            )
            self.runtime.delete(f"stranger{number}")

    def kill(self) -> None:
        """6: the agent's death opens nothing."""
        step = self.report.step
        self.report.heading("The agent is killed")
        self.told += self.alerts()  # a killed agent forgets what it has told
        self.stop_agent(signal.SIGKILL)
        step("SIGKILL the agent", "dead", "dead", right=True)
        self.refused("a shell", "/bin/sh", "-c", "echo in")
        self.refused("read the secret with cat", "/bin/cat", "/vault/secrets/database")
        self.attack("read it through a hard link", "hardlink")
        late = self.container(
            "late", arguments=("/bin/cat", "/etc/hosts"), annotations={"io.hauberk.label.app": "secrets"}
        )
        created = self.runtime.create("late", late)
        step("create a container meanwhile", "not created", created.errors, right=created.status != 0)
        self.runtime.delete("late")
        said = self.start_agent(BASE / "v1.yaml")
        step("restart it with another bundle", "refuses to start", said, right=bool(said))
        self.stop_agent(signal.SIGKILL)
        loop = subprocess.Popen(
            [sys.executable, "-m", "tests.demo.steps", "knock"], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
        )
        said = self.start_agent(BASE / "agent.yaml")
        step("restart it with the same bundle", "ready", said or "ready", right=not said)
        loop.terminate()
        tries, _ = loop.communicate()
        step(
            "the secret was asked for all the while",
            "always refused",
            tries,
            right=tries.strip().endswith("none got it"),
        )
        listed = hauberk("workloads", "--json")
        right = '"enforced"' in listed.output
        step("list the workloads", "taken up again", " ".join(listed.output.split())[:200], right=right)

    def end(self) -> None:
        """7: nothing of a container is left; and nothing is freed while it lives."""
        step = self.report.step
        self.report.heading("The container ends")
        state = json.dumps(
            {"ociVersion": "1.0.2", "id": "secrets", "status": "stopped", "bundle": str(BASE / "secrets")}
        )
        done = subprocess.run([HOOK, "poststop"], input=state, capture_output=True, text=True, check=False)
        listed = hauberk("workloads", "--json")
        right = '"enforced"' in listed.output
        step("send a poststop while it is alive", "frees nothing", done.stderr or "answered", right=right)
        self.refused("read the secret with cat", "/bin/cat", "/vault/secrets/database")
        self.runtime.kill("secrets")
        self.runtime.wait_stopped("secrets")
        deleted = self.runtime.delete("secrets", force=False)
        step("kill and delete it (poststop runs)", "done", deleted.errors or "done", right=deleted.status == 0)
        end = time.monotonic() + WAIT
        while left() != (0, 0) and time.monotonic() < end:
            time.sleep(0.2)
        cgroups, slots = left()
        step(
            "look into the kernel's maps",
            "empty",
            f"{cgroups} cgroups, {slots} slots",
            right=(cgroups, slots) == (0, 0),
        )
        listed = hauberk("workloads", "--json")
        step("list the workloads", "none in force", listed.output, right='"enforced"' not in listed.output)

    def tell(self) -> None:
        """8: each refusal was told, with its names."""
        self.report.heading("The alerts: each refusal names policy, rule, process, path and container")
        for what, resource, policy, source in (
            ("the shell", "/usr/bin/dash", "secrets-service", ""),
            ("the other shell", "/usr/bin/busybox", "secrets-service", ""),
            ("the shell through the loader", "/usr/bin/dash", "secrets-service", "ld-linux"),
            ("the secret", f"{SECRETS}/database", "secrets-service", "/usr/bin/cat"),
            ("the secret through the loader", f"{SECRETS}/database", "secrets-service", "ld-linux"),
            ("the hard link", f"{SECRETS}/app/prod/key", "secrets-service", "/opt/attacks/attacks"),
            ("the older hard link", "/vault/public/linked-before", "secrets-service", "/usr/bin/cat"),
            ("the directory's new name", f"{SECRETS}/app", "secrets-service", "/opt/attacks/attacks"),
            ("the user namespace", "", "namespace", "/opt/attacks/attacks"),
            ("the chroot", "", "chroot", "/opt/attacks/attacks"),
            ("the binary directory", "/usr/bin/cat2", "secrets-service", "/usr/bin/cp"),
        ):
            found = [
                alert
                for alert in self.told
                if str(alert["Resource"]).startswith(resource)
                and policy in (alert["PolicyName"], alert["Rule"])
                and source in alert["Source"]
                and alert["Action"] == "Block"
                and alert["ContainerID"] == "secrets"
                and alert["Rule"]
                and alert["HostPID"]
            ]
            last = found[-1] if found else {}
            names = ("PolicyName", "Rule", "ProcessName", "Resource", "ContainerName", "HostPID", "Data")
            text = json.dumps({name: last[name] for name in names}) if last else "none"
            self.report.step(f"an alert for {what}", "told", text, right=bool(found))
        # a container in the guest's own root is stopped at the mount over it, before it could execute anything
        stopped = ("operation=gate", "operation=mount")
        gate = [alert for alert in self.told if alert["Data"].startswith(stopped) and not alert["ContainerID"]]
        text = f"{len(gate)} alerts, e.g. {gate[-1]['Message']}" if gate else "none"
        self.report.step("alerts for containers nobody announced", "one each", text, right=len(gate) >= STRANGERS)


def last_line(path: Path) -> str:
    """Give the last line of a log, shortened."""
    lines = path.read_text().strip().splitlines()
    return lines[-1][-300:] if lines else ""


def left() -> tuple[int, int]:
    """Count the cgroups and the places of workloads, of both epochs, that the kernel holds."""
    library = Libbpf()
    pins = Path("/sys/fs/bpf/hauberk")
    cgroups, workloads = Map.pinned(library, pins / "cgroups"), Map.pinned(library, pins / "workloads")
    try:
        places = (workloads.get(layout.KEY.pack(place)) or b"" for place in range(2 * layout.MAXIMUM_WORKLOADS))
        used = sum(layout.WorkloadRecord.decode(place).workload_id != 0 for place in places)
        return len(cgroups.keys(layout.CGROUP.size)), used
    finally:
        os.close(cgroups.descriptor)
        os.close(workloads.descriptor)


def knock() -> int:
    """Ask for the secret until interrupted."""
    runtime = Runtime(BASE / "runc")
    tries = got = 0
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: ended.append(number))
    while not ended or not tries:
        done = runtime.command("exec", "secrets", "/bin/cat", "/vault/secrets/database")
        tries += 1
        got += SECRET in done.output
    print(f"{tries} tries, {got or 'none'} got it")
    return 0


def main() -> int:
    """Tell the whole story."""
    if not Path("/sys/fs/bpf").is_mount():
        print("demo: no bpffs at /sys/fs/bpf; mount one: mount -t bpf bpf /sys/fs/bpf")
        return 3
    demo = Demo()
    demo.prepare()
    started = time.monotonic()
    for part in (demo.sign, demo.seal, demo.serve, demo.attacks, demo.strangers, demo.kill, demo.end, demo.tell):
        part()
    demo.stop_agent(signal.SIGTERM)
    print(f"\n{time.monotonic() - started:.0f} s; {demo.report.failed or 'no'} step(s) differ from what was expected")
    return 1 if demo.report.failed else 0


if __name__ == "__main__":
    raise SystemExit(knock() if sys.argv[1:] == ["knock"] else main())
