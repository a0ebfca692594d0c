# SPDX-License-Identifier: Apache-2.0
"""The configuration is read strictly, and by a child."""

from __future__ import annotations

from pathlib import Path

import pytest

from guest_agent import configuration
from guest_agent.configuration import ConfigurationError, load, parse


def test_what_is_given_is_taken_and_what_is_not_has_its_default(tmp_path: Path) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text(
        "mode: sealed\nbundle: /etc/b.json\nmanagers: [/usr/bin/runc]\nalertLog: /var/log/a\ntableRegions: 2\n"
    )
    found = load(path)
    assert (found.mode, found.bundle, found.managers) == ("sealed", Path("/etc/b.json"), ("/usr/bin/runc",))
    assert (found.alert_log, found.table_regions) == (Path("/var/log/a"), 2)
    assert found.hook_socket == Path("/run/hauberk/hook.sock")
    assert all(Path(entry).is_file() for entry in (*found.helpers, *found.kernel_helpers))


def test_defaults_are_those_that_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hook").touch()
    (tmp_path / "directory").mkdir()
    monkeypatch.setattr(
        configuration, "_HELPERS", tuple(f"{tmp_path}/{name}" for name in ("none", "hook", "directory"))
    )
    assert parse({"mode": "host"}, "agent.yaml").helpers == (f"{tmp_path}/hook",)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "agent.yaml"),
        ("- mode\n", "no mapping"),
        ("{}\n", "there is no default"),
        ("mode: lenient\n", "expected sealed or host"),
        ("mode: sealed\nmanger: [/a]\n", "did you mean managers"),
        ("mode: sealed\nmode: host\n", "mode"),
        ("mode: sealed\nbundle: relative\n", "absolute path"),
        ("mode: sealed\nmanagers: /usr/bin/runc\n", "list of absolute paths"),
        ("mode: sealed\nmanagers: [runc]\n", "list of absolute paths"),
        ("mode: sealed\ntableRegions: 0\n", "from 1 to"),
        ("mode: sealed\ntableRegions: true\n", "from 1 to"),
        ("mode: sealed\n---\nmode: host\n", "holds 2 documents"),
        ("mode: [sealed\n", "agent.yaml"),
        ("mode: sealed\nengines: [nftables]\n", "expected bpf_lsm for mode sealed"),
        ("mode: host\nengines: []\n", "a list of bpf_lsm or nftables"),
        ("mode: host\nengines: [iptables]\n", "a list of bpf_lsm or nftables"),
        ("mode: host\nengines: nftables\n", "a list of bpf_lsm or nftables"),
        ("mode: host\nnodeLabels: {a: 1}\n", "nodeLabels: found"),
        ("mode: host\nnetworkManagement: [{cidr: 192.0.2.1/24}]\n", "networkManagement: found"),
        ("mode: host\nnetworkEntities: {host: [192.0.2.0/24]}\n", "networkEntities: found"),
        ("mode: host\nnetworkResolvers: [127.0.0.53]\n", "networkResolvers: found"),
    ],
)
def test_a_configuration_that_could_be_misunderstood_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=reason):
        load(path)


def test_a_file_that_is_missing_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load(tmp_path / "none.yaml")
    (tmp_path / "agent.yaml").write_bytes(b"mode: \xff\n")
    with pytest.raises(ConfigurationError, match=r"agent\.yaml"):
        load(tmp_path / "agent.yaml")
    (tmp_path / "agent.yaml").write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(ConfigurationError, match="larger than"):
        load(tmp_path / "agent.yaml")


def test_settings_about_networks(tmp_path: Path) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text(
        "mode: host\nengines: [nftables, nftables]\nnodeLabels: {role: edge}\n"
        "networkManagement: [{cidr: 192.0.2.0/24, ports: [22]}]\n"
        "networkEntities: {cluster: [10.0.0.0/8]}\nnetworkResolvers: [192.0.2.53]\n"
    )
    found = load(path)
    assert (found.engines, found.node_labels) == (("nftables",), (("role", "edge"),))
    assert (found.entities, found.resolvers) == ((("cluster", ("10.0.0.0/8",)),), ("192.0.2.53",))
    [exemption] = found.management
    assert exemption.match.cidrs == ("192.0.2.0/24",)
    assert parse({"mode": "sealed"}, "agent.yaml").engines == ("bpf_lsm", "nftables")


def test_a_path_with_a_zero_byte_is_none() -> None:
    with pytest.raises(ConfigurationError, match="absolute path"):
        parse({"mode": "host", "bundle": "/a\0b"}, "agent.yaml")
