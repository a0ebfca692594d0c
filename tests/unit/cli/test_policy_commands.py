# SPDX-License-Identifier: Apache-2.0
"""``hauberk policy`` as it is typed: every kind of question, what is refused, what changes."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hauberk.bundle import document, terms
from hauberk.cli import inputs, main
from hauberk.errors import FactsError
from hauberk.policy import documents, models, resolution
from hauberk.policy.resolution import RootResolver

CONTAINER = """\
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {name: app, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  process:
    matchPaths:
      - {path: /usr/bin/find, allowedArgs: [-name, x], action: Block}
      - {path: /bin/tool, pts: false, action: Block}
  file:
    matchPaths: [{path: /etc/shadow, ownerOnly: true}]
  network:
    matchProtocols: [{protocol: raw}]
    matchDNSQueries: [{domain: example.com}]
  capabilities:
    matchCapabilities: [{capability: net_raw, action: Allow}]
  syscalls:
    matchSyscalls: [{syscall: [ptrace]}]
    matchPaths: [{path: /etc/passwd, syscall: [unlink]}]
  presets: [{name: filelessExec, action: Block}]
"""
HOST = """\
apiVersion: security.kubearmor.com/v1
kind: KubeArmorHostPolicy
metadata: {name: box}
spec:
  nodeSelector: {matchLabels: {kubearmor.io/hostname: "box-1,box-2", tier: edge}}
  device:
    matchDevice: [{class: MASS-STORAGE, subClass: 6, level: 2}]
---
apiVersion: security.kubearmor.com/v1
kind: KubeArmorNetworkPolicy
metadata: {name: net}
spec:
  nodeSelector: {matchLabels: {kubearmor.io/hostname: "*"}}
  ingress:
    - from: [{ipBlock: {cidr: 10.0.0.0/8}}]
      ports: [{port: "443", protocol: TCP}]
      iface: [eth0]
      action: Block
"""
BROKEN = CONTAINER.replace("action: Allow", "action: allow")


@pytest.fixture
def container(tmp_path: Path) -> str:
    file = tmp_path / "app.yaml"
    file.write_text(CONTAINER)
    return str(file)


@pytest.fixture
def host(tmp_path: Path) -> str:
    file = tmp_path / "box.yaml"
    file.write_text(HOST)
    return str(file)


def explain(*words: str) -> int:
    return main(["policy", "explain", *words])


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    explain(*words, "--json")
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize(
    ("words", "code", "field"),
    [
        (("--protocol", "raw/icmp"), 1, "spec.network.matchProtocols[0]"),
        (("--protocol", "TCP"), 0, None),
        (("--operation", "socket", "--protocol", "raw"), 1, "spec.network.matchProtocols[0]"),
        (("--domain", "www.Example.com."), 1, "spec.network.matchDNSQueries[0]"),
        (("--domain", "example.org"), 0, None),
        (("--capability", "CAP_NET_RAW"), 0, "spec.capabilities.matchCapabilities[0]"),
        (("--capability", "kill"), 1, None),
        (("--syscall", "ptrace"), 0, "spec.syscalls.matchSyscalls[0]"),
        (("--syscall", "unlink", "--path", "/etc/passwd"), 0, "spec.syscalls.matchPaths[0]"),
        (("--preset", "filelessExec"), 1, "spec.presets[0]"),
        (("--operation", "read", "--path", "/etc/shadow", "--not-owner"), 1, "spec.file.matchPaths[0]"),
        (("--operation", "read", "--path", "/etc/shadow", "--owner"), 0, None),
        (("--operation", "read", "--path", "/etc/shadow"), 0, None),
        (
            ("--operation", "read", "--path", "/etc/shadow", "--uid", "7", "--owner-uid", "0"),
            1,
            "spec.file.matchPaths[0]",
        ),
        (("--operation", "read", "--path", "/etc/shadow", "--uid", "7", "--owner-uid", "7"), 0, None),
        (("--operation", "execute", "--path", "/usr/bin/find", "--argument=-name", "--argument", "x"), 0, None),
        (
            ("--operation", "execute", "--path", "/usr/bin/find", "--argument=-delete"),
            1,
            "spec.process.matchPaths[0]",
        ),
        (("--operation", "execute", "--path", "/bin/tool", "--no-terminal"), 0, None),
        (("--operation", "execute", "--path", "/bin/tool", "--terminal"), 1, "spec.process.matchPaths[1]"),
        (("--capability", "kill", "--annotation", "kubearmor-capabilities-posture=audit"), 0, None),
        (("--capability", "kill", "--posture", "allow"), 0, None),
        (("--protocol", "raw", "--annotation", "kubearmor-policy=disabled"), 0, "spec.network.matchProtocols[0]"),
    ],
)
def test_questions_about_containers(
    container: str, words: tuple[str, ...], code: int, field: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert explain(container, *words) == code
    capsys.readouterr()
    told = answer(capsys, container, *words)
    assert told["rule"] is None if field is None else told["rule"]["field"] == field


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--device", "MASS-STORAGE:6", "--level", "2"), 1),
        (("--device", "8:6:80", "--level", "2"), 1),
        (("--device", "8:6:80", "--level", "1"), 0),
        (("--device", "HID"), 0),
        (("--operation", "receive", "--peer", "10.1.2.3", "--port", "443", "--interface", "eth0"), 1),
        (("--operation", "receive", "--peer", "10.1.2.3", "--port", "tcp/443", "--interface", "eth0"), 1),
        (("--operation", "receive", "--peer", "10.1.2.3", "--port", "udp/443", "--interface", "eth0"), 0),
        (("--operation", "receive", "--peer", "10.1.2.3"), 0),
        (("--operation", "send", "--peer", "10.1.2.3", "--port", "443", "--interface", "eth0"), 0),
    ],
)
def test_questions_about_hosts(host: str, words: tuple[str, ...], code: int) -> None:
    assert explain(host, *words) == code
    assert explain(host, *words, "--host") == code
    assert explain(host, *words, "--node-label", "tier=edge", "--host-name", "box-2") == code


def test_whom_is_asked_about(tmp_path: Path, container: str, host: str, capsys: pytest.CaptureFixture[str]) -> None:
    device = ("--device", "8:6", "--level", "2")
    raw = ("--protocol", "raw")
    both = str(tmp_path)
    assert explain(both, *raw) == 1
    assert explain(both, *raw, "--host") == 0
    assert explain(both, *device, "--host") == 1
    assert explain(both, *device) == 0
    assert explain(both, *device, "--host-name", "box-1", "--node-label", "tier=edge") == 1
    assert explain(both, *device, "--host-name", "other") == 0
    assert explain(both, *raw, "--label", "app=web", "--namespace", "shop") == 1
    capsys.readouterr()
    told = answer(capsys, container, *raw, "--host-name", "box-1")
    assert told["verdict"] == "deny"
    assert "no policy covers this workload" in told["reason"]
    assert explain(host, *raw, "--label", "app=web") == 1


def test_an_answer_says_what_was_not_known(container: str, capsys: pytest.CaptureFixture[str]) -> None:
    explain(container, "--operation", "execute", "--path", "/usr/bin/find", "--parent", "/bin/sh")
    assert "note: the question says nothing of arguments" in capsys.readouterr().out


def test_owners_are_looked_up_in_a_root(container: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/shadow").write_text("")
    owner = (root / "etc/shadow").stat().st_uid
    question = (container, "--operation", "read", "--path", "/etc/shadow", "--rootfs", str(root), "--uid")
    assert explain(*question, str(owner)) == 0
    assert explain(*question, str(owner + 1)) == 1
    capsys.readouterr()


def test_many_questions_of_all_kinds(
    container: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        {"operation": "socket", "object": "raw"},
        {"operation": "resolve", "object": "www.example.com"},
        {"operation": "execute", "path": "/bin/tool", "terminal": True},
    ]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(map(json.dumps, lines))))
    assert explain(container, "--questions", "-") == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [told["verdict"] for told in answers] == ["deny", "deny", "deny"]
    assert answers[0]["object"] == "raw"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "no question"),
        (("--operation", "read"), "no question"),
        (("--protocol", "tcp", "--domain", "x"), "--protocol and --domain"),
        (("--protocol", "tcp", "--path", "/x"), "--protocol and --path"),
        (("--protocol", "tcp", "--operation", "read"), "expected socket"),
        (("--path", "/x"), "no --operation"),
        (("--path", "/x", "--operation", "send"), "--operation send"),
        (("--peer", "10.0.0.1"), "one of receive, send"),
        (("--device", "HID", "--port", "1"), "--port without --peer"),
        (("--peer", "10.0.0.1", "--operation", "send", "--level", "1"), "--level without --device"),
        (("--protocol", "tpc"), "a protocol or socket type"),
        (("--syscall", "unlnk"), "Did you mean 'unlink'?"),
        (("--syscall", "no_such_call", "--path", "/x"), "as in syscalls(2)"),
        (("--path", "/x", "--operation", "read", "--owner-uid", "1"), "--owner-uid without --uid"),
        (("--path", "/x", "--operation", "read", "--uid", "1", "--owner"), "not allowed with"),
        (("--protocol", "tcp", "--label", "a=b", "--host"), "a container and about the host"),
        (("--protocol", "tcp", "--node-label", "a"), "KEY=VALUE"),
        (("--protocol", "tcp", "--label", "a=b", "--label", "a=c"), "'a' with two values"),
        (("--protocol", "tcp", "--annotation", "kubearmor-file-posture=allow"), "audit or block"),
        (("--questions", "-", "--beyond-quota"), "--beyond-quota"),
        (("--questions", "-", "--uid", "1"), "found --questions and --uid"),
    ],
)
def test_wrong_usage(container: str, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert explain(container, *words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"operation": "read", "path": "/\xff"}', "questions in UTF-8"),
        (b'{"operation": "read", "path": "/\\ud800"}', "question in line 1: found the path"),
    ],
)
def test_questions_that_are_no_text(
    tmp_path: Path, container: str, line: bytes, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "questions"
    file.write_bytes(line)
    assert explain(container, "--questions", str(file)) == 2
    assert message in capsys.readouterr().err


# ---- bundles as input ----


def a_bundle(path: Path, *, default: str = "allow", posture: str = "audit", conditions: terms.Terms) -> str:
    path.write_bytes(
        document.create("b", 1, (document.PolicyFile("app.yaml", CONTAINER),), default, posture, conditions)
    )
    return str(path)


def test_a_bundle_brings_default_and_postures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capabilities = terms.Terms(postures=(("capabilities", terms.Posture.BLOCK),))
    plain = a_bundle(tmp_path / "plain", conditions=terms.NO_TERMS)
    strict = a_bundle(tmp_path / "strict", conditions=capabilities)
    assert explain(plain, "--capability", "kill") == 0
    assert explain(strict, "--capability", "kill") == 1
    assert explain(plain, "--capability", "kill", "--posture", "block") == 1
    assert explain(plain, "--capability", "kill", "--label", "app=none") == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("a default decides; that of the bundle is allow")
    assert main(["policy", "diff", plain, strict]) == 1
    assert "becomes refused: capability chown" in capsys.readouterr().out
    assert main(["policy", "check", plain]) == 0


def test_a_container_outside_of_the_target_gets_the_default(tmp_path: Path) -> None:
    digest = "sha256:" + "0" * 64
    images = a_bundle(tmp_path / "i", conditions=terms.Terms(target=terms.Target(image_digests=(digest,))))
    labels = a_bundle(tmp_path / "l", conditions=terms.Terms(target=terms.Target(labels=(("tier", "x"),))))
    question = ("--protocol", "raw", "--label", "app=web")
    assert explain(images, *question) == 0
    assert explain(images, *question, "--image-digest", digest) == 1
    assert explain(labels, *question) == 0
    assert explain(labels, *question, "--label", "tier=x") == 1
    assert explain(labels, "--protocol", "raw", "--host-name", "h") == 0
    assert explain(images, "--protocol", "raw") == 1


def test_a_bundle_stands_alone(tmp_path: Path, container: str, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = a_bundle(tmp_path / "bundle", conditions=terms.NO_TERMS)
    assert explain(bundle, container, "--protocol", "raw") == 2
    assert "expected a bundle alone" in capsys.readouterr().err
    (tmp_path / "broken").write_bytes(b'{"apiVersion":"hauberk/v1"}')
    assert explain(str(tmp_path / "broken"), "--protocol", "raw") == 1


# ---- check ----


def test_check_tells_warnings_and_lets_them_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "warned.yaml"
    file.write_text(
        CONTAINER.replace("matchPaths: [{path: /etc/shadow, ownerOnly: true}]", "matchDirectories: [{dir: /etc}]")
    )
    for _ in range(2):  # read, and from the cache
        assert main(["policy", "check", str(file)]) == 0
        told = capsys.readouterr().out.splitlines()
        assert ": warning: " in told[0]
        assert told[-1] == "1 valid policy, 0 problems, 1 warning"
    assert main(["policy", "check", str(file), "--format", "github"]) == 0
    assert capsys.readouterr().out.startswith("::warning file=")
    assert main(["policy", "check", str(file), "--format", "json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["valid"] is True
    assert report["problems"][0]["warning"] is True
    assert report["policies"] == [{"name": "shop/app", "kind": "KubeArmorPolicy", "file": str(file)}]


def test_all_documents_are_looked_at(tmp_path: Path, host: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.yaml").write_text(BROKEN)
    (tmp_path / "z.yaml").write_text(BROKEN)
    assert main(["policy", "check", str(tmp_path)]) == 1
    told = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in told[:-1]] == [str(tmp_path / name) for name in ("a.yaml", "z.yaml")]
    assert told[-1] == "2 valid policies, 2 problems"
    assert host.endswith("box.yaml")


def test_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "schema"]) == 0
    assert "KubeArmorHostPolicy" in json.dumps(json.loads(capsys.readouterr().out))


# ---- the cache ----


def test_what_was_read_once_is_not_read_again(
    container: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert explain(container, "--protocol", "raw", "--no-cache") == 1
    assert not (tmp_path / "cache").exists()
    assert explain(container, "--protocol", "raw") == 1
    (entry,) = (tmp_path / "cache/hauberk").iterdir()
    assert stat.S_IMODE(entry.stat().st_mode) == 0o600
    first = capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setattr(models, "examine", None)
        assert explain(container, "--protocol", "raw") == 1
    assert first.endswith(capsys.readouterr().out)
    Path(container).write_text(CONTAINER.replace("protocol: raw", "protocol: udp"))
    assert explain(container, "--protocol", "raw") == 0
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "nowhere")
    assert explain(container, "--protocol", "raw") == 0
    assert len(list((tmp_path / "cache/hauberk").iterdir())) == 2


# ---- render ----


def test_render_shows_what_is_refused(
    container: str, host: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["policy", "render", "--engine", "bpf_lsm", container]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["scope"] == "container"
    refused = {told["field"]: told for told in shown["refused"]}
    assert {"spec.network.matchProtocols[0]", "spec.presets[0]", "spec.process.matchPaths[0]"} <= refused.keys()
    assert refused["spec.presets[0]"]["line"] == CONTAINER.count("\n", 0, CONTAINER.index("presets")) + 1
    assert "yet" in refused["spec.presets[0]"]["why"]
    assert refused["spec.presets[0]"]["instead"]
    assert all(rule["section"] in {"process", "file"} for rule in shown["rules"])
    assert shown["table"]["states"] > 0
    (tmp_path / "root").mkdir()
    assert main(["policy", "render", "--engine", "bpf_lsm", container, "--rootfs", str(tmp_path / "root")]) == 0
    assert json.loads(capsys.readouterr().out)["rules"] == shown["rules"]
    assert main(["policy", "render", "--engine", "bpf_lsm", host, "--host"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["scope"] == "host"
    assert shown["rules"] == []
    assert shown["table"] is None
    assert [told["policy"] for told in shown["refused"]] == ["box"]


def test_render_shows_what_holds_packets(container: str, host: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "render", "--engine", "nftables", host, "--host"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["posture"] == {"egress": "block", "ingress": "block"}
    assert [(rule["section"], rule["value"]) for rule in shown["rules"]] == [("ingress", "10.0.0.0/8 tcp/443 on eth0")]
    assert shown["table"] is None
    assert "note" not in shown
    assert main(["policy", "render", "--engine", "nftables", container]) == 0
    assert json.loads(capsys.readouterr().out)["rules"] == []


ONLY_DEVICES = HOST.partition("---")[0]


def test_policies_that_no_engine_holds_are_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "devices.yaml"
    file.write_text(ONLY_DEVICES)
    assert main(["policy", "render", "--engine", "nftables", str(file)]) == 0
    assert json.loads(capsys.readouterr().out)["note"].endswith("the bundle's default decides")
    assert answer(capsys, str(file), "--device", "HID")["notes"] == [
        "no engine enforces any rule of these policies: on a machine the bundle's default decides"
    ]


PACKETS = """apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: names, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: web}}
  egress:
    - toFQDNs: [{matchPattern: "*.example.com"}]
      toPorts: [{ports: [{port: "443", protocol: TCP}]}]
    - toEntities: [cluster]
      icmps: [{fields: [{type: 8, family: IPv4}]}]
    - toEndpoints: [{matchLabels: {app: db}}]
  egressDeny:
    - toEndpoints: [{matchLabels: {app: bank}}]
      toPorts: [{ports: [{port: "80", protocol: TCP}]}]
"""


@pytest.fixture
def packets(tmp_path: Path) -> str:
    file = tmp_path / "packets.yaml"
    file.write_text(PACKETS)
    return str(file)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--port", "443", "--peer-name", "www.example.com"), 0),
        (("--port", "443", "--peer-name", "www.example.org", "--peer-name", "a.example.com"), 0),
        (("--port", "443", "--peer-name", "www.example.org"), 1),
        (("--port", "444", "--peer-name", "www.example.com"), 1),
        (("--port", "icmp/8", "--peer-entity", "cluster"), 0),
        (("--port", "icmp/8", "--peer-entity", "world"), 1),
        (("--port", "icmp/0", "--peer-entity", "cluster"), 1),
        (("--port", "vrrp", "--peer-label", "app=db", "--peer-namespace", "shop"), 0),
        (("--port", "vrrp", "--peer-label", "app=db", "--peer-namespace", "else"), 1),
        (("--peer-label", "app=db", "--peer-label", "tier=x", "--peer-namespace", "shop", "--interface", "eth0"), 0),
        (("--port", "80", "--peer-label", "app=bank", "--peer-namespace", "shop"), 1),
        (("--port", "udp/53", "--source-port", "68"), 1),
        (("--interface", "lo"), 0),
    ],
)
def test_questions_about_packets(packets: str, words: tuple[str, ...], code: int) -> None:
    assert explain(packets, "--operation", "send", "--peer", "192.0.2.7", *words) == code


def test_an_answer_says_what_was_not_said_of_a_peer(packets: str, capsys: pytest.CaptureFixture[str]) -> None:
    notes = answer(capsys, packets, "--operation", "send", "--peer", "192.0.2.7", "--port", "443")["notes"]
    assert [note.partition(": ")[0] for note in notes] == [
        "the question does not say by which domain name the peer was found",
        "the question does not say whether the peer is a workload of this machine",
    ]
    found = answer(capsys, packets, "--operation", "send", "--peer", "192.0.2.7 tcp/443 name a.example.com")
    assert found["notes"][0] == (
        "the rule names its peers as name *.example.com: the agent finds their addresses at run time"
    )
    found = answer(capsys, packets, "--operation", "send", "--peer", "192.0.2.7 tcp/80 labels app=db namespace shop")
    assert found["verdict"] == "allow"
    assert any(note.endswith("and deny is what the engine does") for note in found["notes"])


def test_peers_in_questions_of_programs(packets: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    peers: list[object] = [
        {"address": "192.0.2.7", "protocol": "tcp", "port": 443, "names": ["www.example.com"]},
        {"address": "192.0.2.7", "labels": {"app": "db"}, "namespace": "shop"},
        "192.0.2.7 icmp/8 entity cluster",
        "192.0.2.7 icmp/8",
    ]
    file = tmp_path / "questions"
    file.write_text("".join(json.dumps({"operation": "send", "object": peer}) + "\n" for peer in peers))
    assert explain(packets, "--questions", str(file)) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["verdict"] for one in told] == ["allow", "allow", "allow", "deny"]
    assert told[0]["object"] == "192.0.2.7 tcp/443 name www.example.com"
    for wrong in (
        {"operation": "send", "object": {"port": 1}},
        {"operation": "socket", "object": {"address": "1.1.1.1"}},
    ):
        file.write_text(json.dumps(wrong))
        assert explain(packets, "--questions", str(file)) == 2
        assert "question in line 1: found" in capsys.readouterr().err


def test_each_question_is_answered_where_no_policy_covers(
    packets: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "questions"
    file.write_text('{"operation": "send", "object": "10.0.0.1"}\n{"operation": "read", "path": "/x"}\n')
    assert explain(packets, "--label", "app=other", "--questions", str(file)) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(one["verdict"], one.get("object", one.get("path"))) for one in told] == [
        ("deny", "10.0.0.1"),
        ("deny", "/x"),
    ]
    assert all("no policy covers this workload" in one["reason"] for one in told)


def test_what_cannot_be_looked_at_is_no_wrong_question(
    container: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreadable(_: RootResolver, path: str) -> tuple[str, ...]:
        message = f"found {path} unreadable"
        raise FactsError(message)

    monkeypatch.setattr(RootResolver, "resolve", unreadable)
    monkeypatch.setattr(resolution, "expand", lambda rule_set, _: rule_set)
    (tmp_path / "root").mkdir()
    file = tmp_path / "questions"
    file.write_text('{"operation": "read", "path": "/x"}\n')
    assert explain(container, "--questions", str(file), "--rootfs", str(tmp_path / "root")) == 3
    assert "question in line 1: found /x unreadable" in capsys.readouterr().err


# ---- diff ----


def test_diff_of_the_same_ends_with_nothing(container: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "again.yaml").write_text(CONTAINER.replace("name: app", "name: other"))
    assert main(["policy", "diff", container, str(tmp_path / "again.yaml")]) == 0
    assert capsys.readouterr().out == "the policies mean the same\n"
    assert main(["policy", "diff", container, container, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"same": True, "target": None, "changes": []}


def test_diff_tells_each_change(container: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = tmp_path / "changed.yaml"
    changed.write_text(
        CONTAINER.replace("protocol: raw", "protocol: udp")
        .replace("ownerOnly: true", "action: Audit")
        .replace("-name, x", "-name, z")
        .replace("pts: false", "pts: false, fromSource: [{path: /bin/sh}]")
    )
    assert main(["policy", "diff", container, str(changed)]) == 1
    told = capsys.readouterr().out
    assert "becomes refused: socket udp by a program that no rule names\n" in told
    assert "becomes allowed: socket raw by a program that no rule names\n" in told
    assert "becomes audited: read /etc/shadow by a program that no rule names as its owner\n" in told
    assert "  before: allow: no file rule matches and the section is a deny list\n" in told
    assert "with the arguments -name x\n" in told
    assert "  for:    container with app=web\n" in told
    assert main(["policy", "diff", str(changed), container]) == 1
    told = capsys.readouterr().out
    assert "is no longer audited: read /etc/shadow" in told
    assert "without a terminal" not in told
    assert main(["policy", "diff", container, str(changed), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    (refused,) = (change for change in report["changes"] if change["question"]["object"] == "udp")
    assert refused["effect"] == "refused"
    assert refused["before"] == {
        "verdict": "allow",
        "rule": None,
        "reason": "no network rule matches and the section is a deny list",
        "covered": True,
    }
    assert refused["after"]["rule"]["field"] == "spec.network.matchProtocols[0]"
    assert refused["workloads"] == [{"host": False, "namespace": "", "labels": {"app": "web"}, "containerName": ""}]


def test_diff_of_conditions_says_under_which(tmp_path: Path, host: str, capsys: pytest.CaptureFixture[str]) -> None:
    quota = tmp_path / "quota.yaml"
    quota.write_text(HOST.replace("action: Block", "action: Block, limit: 1G, duration: 1h".replace(", ", "\n      ")))
    assert main(["policy", "diff", host, str(quota)]) == 1
    told = capsys.readouterr().out
    assert "becomes allowed: receive 10.0.0.0 tcp/443 on eth0\n" in told
    assert "  for:    host; host with kubearmor.io/hostname=box-1, tier=edge\n" in told
    assert main(["policy", "diff", str(quota), str(tmp_path / "none"), "--default", "allow"]) == 2
    none = tmp_path / "none.yaml"
    none.write_text(HOST.replace('"*"', "nobody").replace("box-1,box-2", "nobody"))
    assert main(["policy", "diff", str(quota), str(none), "--default", "allow"]) == 1
    told = capsys.readouterr().out
    assert "covered otherwise: host" in told
    assert "before, its policies decide; after, the default decides" in told


def test_diff_names_workloads_and_circumstances(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    selector = 'selector: {matchLabels: {app: web, kubearmor.io/container.name: "[nginx]"}}'
    named = CONTAINER.replace("selector: {matchLabels: {app: web}}", selector)
    elsewhere = CONTAINER.replace("name: app", "name: aside").replace("namespace: shop", "namespace: aside")
    elsewhere = elsewhere.replace("raw", "udp")
    old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    old.write_text(named)
    new.write_text(named.replace("/bin/tool, pts: false", "/bin/tool"))
    assert main(["policy", "diff", str(old), str(new)]) == 1
    told = capsys.readouterr().out
    assert "becomes refused: execute /bin/tool by a program that no rule names without a terminal\n" in told
    assert "  for:    container named nginx with app=web\n" in told
    second = elsewhere.replace("net_udp", "net_raw")
    old.write_text(f"{CONTAINER}---\n{second}")
    new.write_text(CONTAINER.replace("raw}]", "udp}]") + f"---\n{second}")
    assert main(["policy", "diff", str(old), str(new)]) == 1
    assert "in namespace shop" in capsys.readouterr().out


def test_diff_of_what_is_beyond_a_quota(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quota = "action: Block\n      limit: 1G\n      duration: 1h"
    old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    old.write_text(HOST.replace("action: Block", quota))
    new.write_text(HOST.replace("action: Block", quota.replace("Block", "Audit")))
    assert main(["policy", "diff", str(old), str(new)]) == 1
    assert "becomes allowed: receive 10.0.0.0 tcp/443 on eth0 beyond the quota\n" in capsys.readouterr().out


def test_diff_of_another_default_and_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labelled = terms.Terms(target=terms.Target(labels=(("app", "web"),)))
    one = a_bundle(tmp_path / "one", conditions=terms.NO_TERMS)
    assert main(["policy", "diff", one, a_bundle(tmp_path / "two", conditions=labelled)]) == 1
    told = capsys.readouterr().out
    assert 'other target: null before, {"labels": {"app": "web"}} after' in told
    assert told.endswith("the rules mean the same\n")
    assert main(["policy", "diff", one, a_bundle(tmp_path / "x", default="deny", conditions=terms.NO_TERMS)]) == 1
    assert "covered otherwise: workloads that no policy covers" in capsys.readouterr().out


# ---- what is named ----


def test_a_directory_is_read_in_order_and_with_all_below(tmp_path: Path) -> None:
    for name in ("b.yaml", "a/z.yml", "a.yaml", "a/notes.txt", ".yaml", "a/b/c.yaml", ".git/x.yaml", "a/.y.yml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "link.yaml").symlink_to("b.yaml")
    os.mkfifo(tmp_path / "fifo.yaml")
    (tmp_path / "loop").symlink_to(".")
    found = inputs.policy_files([str(tmp_path), str(tmp_path / "b.yaml")])
    names = [str(Path(name).relative_to(tmp_path)) for name, _ in found]
    assert names == ["a/b/c.yaml", "a/z.yml", "a.yaml", "b.yaml", "link.yaml"]
    (tmp_path / "LAST.YAML").write_text("")
    assert len(inputs.policy_files([str(tmp_path)])) == 6
    assert found[0][1] == b"a/b/c.yaml"


def test_files_are_read_whole_up_to_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "long.yaml"
    file.write_bytes(bytes(200_000))
    assert inputs.policy_files([str(file)]) == [(str(file), bytes(200_000))]
    monkeypatch.setattr(inputs, "_MAXIMUM_BYTES", 100_000)
    assert len(inputs.policy_files([str(file)])[0][1]) == 100_001
    reader, writer = os.pipe()
    os.write(writer, b"some")
    os.write(writer, b"thing")
    os.close(writer)
    assert inputs.policy_files([f"/dev/fd/{reader}"])[0][1] == b"something"
    os.close(reader)


@pytest.mark.parametrize("length", [8 * 1024 * 1024, documents.MAXIMUM_BYTES])
def test_nothing_at_the_end_of_a_long_file_is_lost(
    tmp_path: Path, length: int, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "long.yaml"
    comment = "#".ljust(length - len(CONTAINER) - 8, "x")
    file.write_text(f"{CONTAINER}{comment}\n---\nx: 1\n")
    assert main(["policy", "check", "--no-cache", str(file)]) == 1
    assert "1 problem" in capsys.readouterr().out


def test_a_link_that_leads_nowhere_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.yaml").write_text(CONTAINER)
    for name in ("b.yaml", "c.yaml"):
        (tmp_path / name).symlink_to("gone.yaml")
    assert main(["policy", "check", "--no-cache", str(tmp_path)]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2
    for name, line in zip("bc", told, strict=True):
        assert f"{name}.yaml unreadable (a symbolic link that leads nowhere)" in line


@pytest.mark.parametrize("words", [("policy", "schema"), ("policy", "--help"), ("completion", "bash")])
def test_an_answer_that_cannot_be_written_is_no_answer(words: tuple[str, ...]) -> None:
    with Path("/dev/full").open("wb") as full:
        command = [sys.executable, "-m", "hauberk.cli", *words]
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == 3
    assert ended.stderr.startswith("hauberk: found No space left on device, expected")
    assert ended.stderr.count("\n") == 1


def test_nothing_is_printed_that_a_terminal_obeys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = tmp_path / "\x1b[31m\nred.yaml"
    text = CONTAINER.replace("/etc/shadow", '"/etc/\\e[2J\\nshadow"').replace("app: web", 'app: "\\e[1m\\nweb"')
    name.write_text(text)
    broken = tmp_path / "\x1b[32m\nbroken.yaml"
    broken.write_text(BROKEN)
    empty = tmp_path / "\x1b[33m\nempty"
    empty.mkdir()
    question = ("--operation", "read", "--path", "/etc/\x1b[2J\nshadow")
    commands = (
        ("check", str(name), str(broken)),
        ("check", str(empty)),
        ("explain", str(broken), *question),
        ("explain", str(name), *question),
        ("diff", str(name), str(tmp_path / "app.yaml")),
    )
    (tmp_path / "app.yaml").write_text(CONTAINER)
    for command in commands:
        main(["policy", *command])
        told = capsys.readouterr()
        lines = (told.out + told.err).split("\n")
        assert len(lines) > 1
        assert all(line.isprintable() for line in lines)
        assert not any(line.startswith(("shadow", "web", "red", "broken")) for line in lines)


def test_a_directory_that_goes_away_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", fails)
    with pytest.raises(inputs.UsageError, match=r"unreadable \(Permission denied\), expected a directory"):
        inputs.policy_files([str(tmp_path)])
