# SPDX-License-Identifier: Apache-2.0
"""Cases of KubeArmor's network policies, which are about machines: each of the nine is a host of its own here.

Among them is what KubeArmor's own enforcer is known to get wrong: families that leak into each other, orders that
decide, a default that cuts a machine from its neighbours.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from hauberk.policy.rules import Verdict
from tests.host.network.cases import Attempt, Case, Document, State, Stated, hosts, no, yes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_HOSTS: Final = hosts()
_FOUR: Final = "10.77.1.0/24"
_SIX: Final = "fd77::1:0/112"


def network_policy(name: str, labels: Document | None = None, **spec: Any) -> Document:  # noqa: ANN401 - any field of spec
    """Give a KubeArmorNetworkPolicy; unless labels of nodes are given, for the machine ``x/a``."""
    return {
        "apiVersion": "security.kubearmor.com/v1",
        "kind": "KubeArmorNetworkPolicy",
        "metadata": {"name": name},
        "spec": {"nodeSelector": {"matchLabels": labels or {"name": "x-a"}}, **spec},
    }


def entry(action: str | None, *cidrs: str, egress: bool = False, **more: Any) -> Document:  # noqa: ANN401 - any field
    """Give an entry for networks, with other fields as they are."""
    said: Document = {"to" if egress else "from": [{"ipBlock": {"cidr": cidr}} for cidr in cidrs]} if cidrs else {}
    return said | ({"action": action} if action else {}) | more


def ports(*entries: tuple[str, str] | tuple[str, str, int]) -> list[Document]:
    """Give ``ports`` of (protocol, port) or (protocol, port, endPort)."""
    return [
        {"protocol": protocol, "port": number} | ({"endPort": end[0]} if end else {})
        for protocol, number, *end in entries
    ]


def _one(
    name: str,
    features: set[str],
    *policies: Document,
    stated: Sequence[Stated],
    attempts: Sequence[Attempt] = (),
    posture: Verdict = Verdict.DENY,
) -> Case:
    state = State(policies, _HOSTS, tuple(stated), posture)
    return Case(name, "extended", (state,), frozenset({"KubeArmorNetworkPolicy", *features}), tuple(attempts))


def _families() -> Iterator[Case]:
    yield _one(
        "a blocked network of IPv4 with ports leaves IPv6 alone", {"family", "Block", "endPort"},
        network_policy("leak", egress=[entry("Block", _FOUR, egress=True, ports=ports(("UDP", "79", 81)))]),
        stated=[no("x/a", "y/a", "udp"), yes("x/a", "y/a", "udp", family=6), yes("x/a", "y/a", "tcp"),
                yes("x/a", "y/a", "udp", 8080)],
    )  # fmt: skip
    yield _one(
        "an allowed network of IPv4 without ports opens nothing of IPv6", {"family", "Allow"},
        network_policy("open", ingress=[entry("Allow", "10.0.0.0/8")]),
        stated=[yes("y/a", "x/a"), no("y/a", "x/a", family=6), no("internet", "x/a"), yes("x/a", "y/a", family=6)],
    )  # fmt: skip
    yield _one(
        "networks of both families", {"family", "Audit"},
        network_policy("both", ingress=[entry("Audit", _FOUR, _SIX)]),
        stated=[yes("y/a", "x/a"), yes("y/a", "x/a", family=6)],
    )  # fmt: skip


def _actions() -> Iterator[Case]:
    narrow, wide = ("10.77.1.17/32", "fd77::1:11/128"), (_FOUR, _SIX)
    orders = (("Block", "Allow"), ("Allow", "Block"), ("Audit", "Allow"), ("Allow", "Audit"), ("Block", "Audit"),
              ("Audit", "Block"))  # fmt: skip
    for exact, other in orders:
        stronger_first = "Block" in {exact, other}
        yield _one(
            f"{exact} of an address against {other} of its network", {exact, other, "precedence"},
            network_policy("exact", ingress=[entry(exact, *narrow)]),
            network_policy("wide", ingress=[entry(other, *wide)]),
            stated=[no("y/a", "x/a") if stronger_first else yes("y/a", "x/a")],
        )  # fmt: skip
    yield _one(
        "the same network blocked and allowed, in one policy", {"Block", "Allow", "precedence", "one policy"},
        network_policy("same", egress=[entry("Allow", _FOUR, egress=True), entry("Block", _FOUR, egress=True,
                                                                               ports=ports(("TCP", "http")))]),
        stated=[no("x/a", "y/a"), yes("x/a", "y/a", "tcp", 8080), no("x/a", "x/b")],
    )  # fmt: skip
    yield _one(
        "the action of the policy is that of its entries", {"action of spec"},
        network_policy("spec", action="Allow", ingress=[entry(None, _FOUR)],
                       egress=[entry("Block", _FOUR, egress=True)]),
        stated=[yes("y/a", "x/a"), no("x/b", "x/a"), no("x/a", "y/a"), yes("x/a", "x/b")],
    )  # fmt: skip
    yield _one(
        "an entry without an action blocks", {"no action"},
        network_policy("none", ingress=[entry(None, _FOUR)]),
        stated=[no("y/a", "x/a"), yes("x/b", "x/a")],
    )  # fmt: skip
    yield _one(
        "Allow in one direction leaves the other", {"directions"},
        network_policy("out", egress=[entry("Allow", _FOUR, egress=True)]),
        stated=[yes("internet", "x/a"), no("x/a", "internet"), yes("x/a", "y/a")],
    )  # fmt: skip
    for posture, passes in ((Verdict.ALLOW, True), (Verdict.AUDIT, True), (Verdict.DENY, False)):
        yield _one(
            f"what an allow-list leaves open is {posture.name.lower()}", {f"posture {posture.name}"},
            network_policy("list", ingress=[entry("Allow", _FOUR)]),
            stated=[yes("y/a", "x/a"), (yes if passes else no)("x/b", "x/a"),
                    (yes if passes else no)("x/b", "x/a", family=6)],
            posture=posture,
        )  # fmt: skip
    first = State((network_policy("list", ingress=[entry("Allow", _FOUR)]),), _HOSTS)
    yield Case(
        "the default changes while the policies stay", "extended",
        (first.stating(no("x/b", "x/a")), replace(first.stating(yes("x/b", "x/a")), posture=Verdict.AUDIT), first),
        frozenset({"posture changes"}),
    )  # fmt: skip


def _parts() -> Iterator[Case]:
    by_net1 = (
        Attempt(("x/b", "y/a", "internet"), ("x/a",), ("tcp", "udp", "sctp"), target_interface="net1"),
        Attempt(("x/a",), ("x/b", "y/a", "internet"), ("tcp", "udp", "sctp"), source_interface="net1"),
    )
    yield _one(
        "one interface, coming in", {"iface", "ingress"},
        network_policy("net1", ingress=[entry("Block", iface=["net1"])]),
        stated=[yes("y/a", "x/a"), no("y/a", "x/a", over="net1"),
                no("internet", "x/a", "udp", family=6, over="net1")],
        attempts=by_net1,
    )  # fmt: skip
    yield _one(
        "one interface, going out", {"iface", "egress"},
        network_policy("eth0", egress=[entry("Allow", iface=["net1"], ports=ports(("TCP", "80")))]),
        stated=[no("x/a", "y/a"), yes("y/a", "x/a"), yes("x/a", "y/a", over="net1"),
                no("x/a", "y/a", "udp", over="net1")],
        attempts=by_net1,
    )  # fmt: skip
    yield _one(
        "interfaces by the beginning of their names, and networks", {"iface", "wildcard"},
        network_policy("eth", ingress=[entry("Block", _FOUR, _SIX, iface=["eth*"])]),
        stated=[no("y/a", "x/a"), yes("x/b", "x/a"), yes("y/a", "x/a", over="net1")],
        attempts=by_net1,
    )  # fmt: skip
    yield _one(
        "interfaces and an allow-list", {"iface", "Allow"},
        network_policy("only", ingress=[
            entry("Allow", iface=["eth0", "wlan0"], ports=ports(("TCP", "http"), ("UDP", "8000", 9000)))]),
        stated=[yes("y/a", "x/a"), no("y/a", "x/a", "tcp", 8080), yes("y/a", "x/a", "udp", 8080, 6),
                no("y/a", "x/a", over="net1")],
        attempts=by_net1,
    )  # fmt: skip
    yield _one(
        "ports alone, of all protocols there are", {"SCTP"},
        network_policy("ports", egress=[
            entry("Block", egress=True, ports=ports(("TCP", "80"), ("UDP", "8080"), ("SCTP", "1", 100)))]),
        stated=[no("x/a", "y/a"), yes("x/a", "y/a", "tcp", 8080), no("x/a", "y/a", "udp", 8080, 6),
                no("x/a", "y/a", "sctp"), yes("x/a", "y/a", "sctp", 8080)],
    )  # fmt: skip
    yield _one(
        "an entry for everything", {"everything"},
        network_policy("nothing-in", ingress=[entry("Block")]),
        stated=[no("y/a", "x/a"), no("internet", "x/a", "udp", family=6), yes("x/a", "y/a", family=6)],
    )  # fmt: skip
    yield _one(
        "machines by a label that several have", {"nodeSelector"},
        network_policy("zone", {"zone": "y"}, ingress=[entry("Block", "10.77.0.0/24")]),
        stated=[no("x/a", "y/a"), no("x/c", "y/b"), yes("x/a", "z/a"), yes("x/a", "y/a", family=6)],
    )  # fmt: skip
    yield _one(
        "a label that no machine has", {"nodeSelector", "nobody"},
        network_policy("nobody", {"zone": "nowhere"}, ingress=[entry("Block")]),
        stated=[yes("y/a", "x/a")],
    )  # fmt: skip
    yield _one(
        "within a quota", {"quota"},
        network_policy("quota", egress=[entry("Allow", _FOUR, egress=True, limit="100MB", duration="24h")]),
        stated=[yes("x/a", "y/a"), no("x/a", "x/b"), no("x/a", "y/a", family=6)],
    )  # fmt: skip
    yield _one(
        "overlapping networks and ranges of many policies", {"overlap", "several policies"},
        *(network_policy(f"allow-{index}", ingress=[entry("Allow", f"10.77.{index}.0/{22 + index}",
                                                           ports=ports(("TCP", str(70 + index), 80 + 100 * index)))])
          for index in range(3)),
        network_policy("audit", ingress=[entry("Audit", "10.77.0.0/16", ports=ports(("TCP", "1", 8080)))]),
        network_policy("block", ingress=[entry("Block", "10.77.1.32/27")]),
        stated=[yes("y/a", "x/a"), no("y/c", "x/a"), no("internet", "x/a"), no("x/b", "x/a", "udp")],
    )  # fmt: skip


def kubearmor_cases() -> tuple[Case, ...]:
    """Give the cases."""
    return tuple(case for part in (_families, _actions, _parts) for case in part())
