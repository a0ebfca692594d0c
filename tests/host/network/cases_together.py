# SPDX-License-Identifier: Apache-2.0
"""Cases of a machine with policies of its own and pods in its network namespace that have others: both must agree.

They are for pods that share a machine's namespace and are told apart by cgroup. What the machine's policies say of its
packets they say of its pods' too, whoever's socket it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.host.network.cases import NINE_WORKLOADS, Case, Document, State, Stated, Workload, no, yes
from tests.host.network.cases_cilium import cilium, to_ports
from tests.host.network.cases_kubearmor import entry, network_policy, ports
from tests.host.network.cases_kubernetes import policy, port

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_MACHINES: Final = tuple(Workload(name, (("name", name),), "", host=True) for name in "xyz")
_X: Final = {"name": "x"}
_OF_Y: Final = ("10.77.1.17/32", "10.77.1.18/32", "10.77.1.33/32")
_A: Final = {"matchLabels": {"pod": "a"}}


def _one(name: str, features: set[str], *policies: Document, stated: Sequence[Stated]) -> Case:
    state = State(policies, (*NINE_WORKLOADS, *_MACHINES), tuple(stated))
    return Case(name, "extended", (state,), frozenset({"machine and pods", *features}))


def _cases() -> Iterator[Case]:
    yield _one(
        "a machine's policy holds for pods that have none", {"Block"},
        network_policy("host", _X, ingress=[entry("Block", *_OF_Y, ports=ports(("TCP", "80")))]),
        stated=[no("y/a", "x/a"), no("y/b", "x/c"), yes("y/a", "x/a", "tcp", 8080), yes("z/a", "x/a")],
    )  # fmt: skip
    yield _one(
        "what the machine allows, a pod's policy refuses", {"Allow", "NetworkPolicy"},
        network_policy("host", _X, ingress=[entry("Allow", "0.0.0.0/0", "::/0")]),
        policy("pod", "x", _A, ingress=[]),
        stated=[no("y/a", "x/a"), no("y/a", "x/a", family=6), yes("y/a", "x/b")],
    )  # fmt: skip
    yield _one(
        "what a pod's policy allows, the machine refuses", {"Block", "NetworkPolicy"},
        network_policy("host", _X, egress=[entry("Block", "203.0.113.0/24", egress=True)]),
        policy("pod", "x", _A, egress=[{}]),
        stated=[no("x/a", "internet"), no("x/b", "internet"), yes("x/a", "internet", family=6), yes("x/a", "y/a")],
    )  # fmt: skip
    yield _one(
        "both are allow-lists, and what passes is on both", {"Allow", "NetworkPolicy", "lists"},
        network_policy("host", _X, ingress=[entry("Allow", ports=ports(("TCP", "80"), ("UDP", "80")))]),
        policy("pod", "x", _A, ingress=[{"ports": [port("TCP", 80), port("TCP", 8080)]}]),
        stated=[yes("y/a", "x/a"), no("y/a", "x/a", "tcp", 8080), no("y/a", "x/a", "udp"), yes("y/a", "x/b", "udp"),
                no("y/a", "x/b", "udp", 8080)],
    )  # fmt: skip
    yield _one(
        "the machine reports what a pod's policy refuses, and the other way round", {"Audit"},
        network_policy("host", _X, ingress=[entry("Audit", "10.77.0.0/16", ports=ports(("TCP", "1", 8080)))],
                       egress=[entry("Block", *_OF_Y, egress=True)]),
        cilium("pod", "x", _A, ingress_deny=[{"toPorts": to_ports(("TCP", "80"))}], default_deny={"ingress": False}),
        stated=[no("y/a", "x/a"), yes("y/a", "x/a", "tcp", 8080), yes("y/a", "x/b"), no("x/a", "y/a")],
    )  # fmt: skip
    yield _one(
        "neighbours with different policies, and a machine at each end", {"neighbours"},
        network_policy("host-x", _X, egress=[entry("Allow", "10.77.1.0/24", "fd77::1:0/112", egress=True)]),
        network_policy("host-y", {"name": "y"}, ingress=[entry("Block", ports=ports(("UDP", "8080")))]),
        policy("a", "x", _A, egress=[{"ports": [{"protocol": "UDP"}]}]),
        policy("b", "x", {"matchLabels": {"pod": "b"}}, egress=[{"ports": [{"protocol": "TCP"}]}]),
        stated=[yes("x/a", "y/a", "udp"), no("x/a", "y/a", "udp", 8080), no("x/a", "y/a"), yes("x/b", "y/a"),
                no("x/b", "y/a", "udp"), yes("x/c", "y/a"), no("x/c", "internet"), no("x/a", "internet", "udp")],
    )  # fmt: skip


def cases_together() -> tuple[Case, ...]:
    """Give the cases."""
    return tuple(_cases())
