# SPDX-License-Identifier: Apache-2.0
"""Cases of Cilium's policies, and of what Kubernetes' have that the catalogue leaves out: IPv6, ICMP, strangers.

Each is about one thing that its name says, and states what has to come of it. The meaning is that of Cilium's
documentation of its policies at layers 3 and 4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.host.network.cases import Attempt, Case, Document, State, Stated, addresses_of, no, yes
from tests.host.network.cases_kubernetes import base, pods, policy, port

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_ENTITIES: Final = {
    "cluster": ("10.77.0.0/16", "fd77::/64"),
    "host": addresses_of("office"),
}
"""In these cases ``office`` is the machine that pods run on, as seen from outside of it."""
_INTERNET: Final = ("203.0.113.0/24", "2001:db8:113::/64")


def cilium(  # noqa: PLR0913 - the parts of a policy
    name: str,
    namespace: str | None,
    selector: Document,
    *,
    ingress: Sequence[Document] | None = None,
    egress: Sequence[Document] | None = None,
    ingress_deny: Sequence[Document] | None = None,
    egress_deny: Sequence[Document] | None = None,
    default_deny: Document | None = None,
) -> Document:
    """Give a CiliumNetworkPolicy; without a namespace one for all of them."""
    parts = {
        "ingress": ingress, "egress": egress, "ingressDeny": ingress_deny, "egressDeny": egress_deny,
        "enableDefaultDeny": default_deny,
    }  # fmt: skip
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy" if namespace else "CiliumClusterwideNetworkPolicy",
        "metadata": metadata,
        "spec": {"endpointSelector": selector} | {part: said for part, said in parts.items() if said is not None},
    }


def to_ports(*entries: tuple[str, str] | tuple[str, str, int]) -> list[Document]:
    """Give ``toPorts`` of (protocol, port) or (protocol, port, endPort)."""
    return [
        {
            "ports": [
                {"protocol": protocol, "port": number} | ({"endPort": end[0]} if end else {})
                for protocol, number, *end in entries
            ]
        }
    ]


def icmps(*entries: tuple[str, int | str]) -> list[Document]:
    """Give ``icmps`` of (family, type)."""
    return [{"fields": [{"family": family, "type": kind} for family, kind in entries]}]


def _one(
    name: str, features: set[str], *policies: Document, stated: Sequence[Stated], attempts: Sequence[Attempt] = ()
) -> Case:
    state = State(policies, stated=tuple(stated))
    return Case(name, "extended", (state,), frozenset(features), tuple(attempts), _ENTITIES)


_A: Final = pods("a")
_ANYBODY: Final[Document] = {}


def _families() -> Iterator[Case]:
    four, six = "10.77.1.0/24", "fd77::1:0/112"
    yield _one(
        "networks of IPv4 allow nothing of IPv6", {"family", "toCIDR"},
        cilium("four", "x", _A, egress=[{"toCIDR": [four]}]),
        stated=[yes("x/a", "y/a"), no("x/a", "y/a", family=6), no("x/a", "x/b")],
    )  # fmt: skip
    yield _one(
        "networks of IPv6 allow nothing of IPv4", {"family", "fromCIDR"},
        cilium("six", "x", _A, ingress=[{"fromCIDR": [six]}]),
        stated=[yes("y/a", "x/a", family=6), no("y/a", "x/a"), no("x/b", "x/a", family=6)],
    )  # fmt: skip
    yield _one(
        "what is denied to networks of IPv4 leaves IPv6 alone", {"family", "egressDeny"},
        cilium("deny-four", "x", _A, egress_deny=[{"toCIDR": [four]}], default_deny={"egress": False}),
        stated=[no("x/a", "y/a"), yes("x/a", "y/a", family=6), yes("x/a", "x/b")],
    )  # fmt: skip
    yield _one(
        "networks of both families with exceptions", {"family", "except", "toCIDRSet"},
        cilium("both", "x", _A, egress=[{"toCIDRSet": [
            {"cidr": four, "except": ["10.77.1.32/28"]}, {"cidr": six, "except": ["fd77::1:20/124"]}]}]),
        stated=[yes("x/a", "y/a"), no("x/a", "y/c"), yes("x/a", "y/a", family=6), no("x/a", "z/c", family=6)],
    )  # fmt: skip
    yield _one(
        "an exception of one network that another one holds", {"except", "overlap"},
        cilium("overlap", "x", _A, egress=[{"toCIDRSet": [
            {"cidr": four, "except": ["10.77.1.32/28"]}, {"cidr": "10.77.1.40/32"}]}]),
        stated=[yes("x/a", "z/c"), no("x/a", "y/c"), yes("x/a", "z/b")],
    )  # fmt: skip
    yield _one(
        "an exception of a denied network", {"except", "egressDeny", "fromCIDRSet"},
        cilium("deny-except", "x", _A, ingress_deny=[{"fromCIDRSet": [{"cidr": four, "except": ["10.77.1.17/32"]}]}],
               default_deny={"ingress": False}),
        stated=[yes("y/a", "x/a"), no("y/b", "x/a"), yes("x/b", "x/a")],
    )  # fmt: skip
    yield _one(
        "IPv6 blocks of Kubernetes with exceptions", {"family", "except", "ipBlock"},
        base(direction="egress", peers=[{"ipBlock": {"cidr": six, "except": ["fd77::1:20/124"]}}]),
        stated=[yes("x/a", "y/a", family=6), no("x/a", "z/a", family=6), no("x/a", "y/a")],
    )  # fmt: skip
    yield _one(
        "strangers by their network", {"strangers", "ipBlock"},
        policy("strangers", "x", _A, ingress=[{"from": [{"ipBlock": {"cidr": _INTERNET[0]}}]}],
               egress=[{"to": [{"ipBlock": {"cidr": _INTERNET[1]}}], "ports": [port("UDP", 80)]}]),
        stated=[yes("internet", "x/a"), no("office", "x/a"), no("internet", "x/a", family=6),
                yes("x/a", "internet", "udp", family=6), no("x/a", "internet", "tcp", family=6)],
    )  # fmt: skip
    yield _one(
        "everything of one family", {"family", "prefix of length 0"},
        cilium("all-six", "x", _A, egress=[{"toCIDR": ["::/0"]}]),
        stated=[yes("x/a", "internet", family=6), no("x/a", "internet"), no("x/a", "y/a")],
    )  # fmt: skip


def _denied() -> Iterator[Case]:
    yield _one(
        "what is denied counts more than what is allowed, however exactly", {"egressDeny", "precedence"},
        cilium("deny", "x", _A, egress=[{"toCIDR": ["10.77.1.17/32"]}, {"toEntities": ["all"]}],
               egress_deny=[{"toCIDR": ["10.77.0.0/16"]}]),
        stated=[no("x/a", "y/a"), yes("x/a", "internet"), yes("x/a", "y/a", family=6)],
    )  # fmt: skip
    yield _one(
        "one policy denies what another allows", {"ingressDeny", "precedence", "several policies"},
        cilium("allow", "x", _ANYBODY, ingress=[{"fromEntities": ["all"]}]),
        cilium("deny", "x", _A, ingress_deny=[{"toPorts": to_ports(("TCP", "80"))}]),
        stated=[no("y/a", "x/a"), yes("y/a", "x/a", "tcp", 8080), yes("y/a", "x/b")],
    )  # fmt: skip
    yield _one(
        "Cilium denies what Kubernetes allows", {"ingressDeny", "precedence", "several kinds"},
        policy("allow", "x", _A, ingress=[{}]),
        cilium("deny", "x", _A, ingress_deny=[{"fromCIDR": ["10.77.1.17", "fd77::1:11"]}]),
        stated=[no("y/a", "x/a"), no("y/a", "x/a", family=6), yes("y/b", "x/a")],
    )  # fmt: skip
    yield _one(
        "a range of ports is denied", {"egressDeny", "endPort", "udp"},
        cilium("deny-range", "x", _A, egress_deny=[{"toPorts": to_ports(("UDP", "8000", 8100))}],
               default_deny={"egress": False}),
        stated=[no("x/a", "y/a", "udp", 8080), yes("x/a", "y/a", "udp", 80), yes("x/a", "y/a", "tcp", 8080)],
    )  # fmt: skip
    yield _one(
        "a policy that denies alone makes a list of its direction", {"ingressDeny", "default deny"},
        cilium("deny-alone", "x", _A, ingress_deny=[{"fromCIDR": ["203.0.113.0/24"]}]),
        stated=[no("y/a", "x/a"), no("internet", "x/a"), yes("x/a", "y/a")],
    )  # fmt: skip
    yield _one(
        "denied to an entity", {"egressDeny", "entity"},
        cilium("deny-world", "x", _A, egress_deny=[{"toEntities": ["world"]}], default_deny={"egress": False}),
        stated=[no("x/a", "internet"), no("x/a", "internet", family=6), yes("x/a", "y/a")],
    )  # fmt: skip
    yield _one(
        "denied to the host", {"ingressDeny", "entity host"},
        cilium("deny-host", "x", _A, ingress_deny=[{"fromEntities": ["host"]}], default_deny={"ingress": False}),
        stated=[no("office", "x/a"), yes("internet", "x/a"), yes("y/a", "x/a")],
    )  # fmt: skip

    yield _one(
        "denied to endpoints, of which there may be more elsewhere", {"ingressDeny", "fromEndpoints"},
        cilium("deny-pods", "x", _A, ingress_deny=[{"fromEndpoints": [pods("b")], "toPorts": to_ports(("TCP", "80"))}],
               default_deny={"ingress": False}),
        stated=[no("x/b", "x/a"), no("y/a", "x/a"), no("internet", "x/a", family=6), yes("x/b", "x/a", "tcp", 8080)],
    )  # fmt: skip
    yield _one(
        "denied to an entity that this machine knows nothing of", {"egressDeny", "entity unknown"},
        cilium("deny-remote", "x", _A, egress_deny=[{"toEntities": ["remote-node"], "toPorts": to_ports(("UDP", "0"))}],
               default_deny={"egress": False}),
        stated=[no("x/a", "y/a", "udp"), no("x/a", "internet", "udp"), yes("x/a", "y/a")],
    )  # fmt: skip


def _isolating() -> Iterator[Case]:
    yield _one(
        "an entry that names nothing isolates", {"default deny", "empty entry"},
        cilium("isolate", "x", _A, ingress=[{}]),
        stated=[no("y/a", "x/a"), no("x/b", "x/a", family=6), yes("x/a", "y/a")],
    )  # fmt: skip
    yield _one(
        "an allowing policy that isolates nobody", {"enableDefaultDeny", "ingress"},
        cilium("no-default", "x", _A, ingress=[{"fromCIDR": ["10.77.1.0/24"]}], default_deny={"ingress": False}),
        stated=[yes("y/a", "x/a"), yes("x/b", "x/a"), yes("internet", "x/a")],
    )  # fmt: skip
    yield _one(
        "of two policies one isolates", {"enableDefaultDeny", "several policies"},
        cilium("no-default", "x", _A, egress=[{"toCIDR": ["10.77.1.0/24"]}], default_deny={"egress": False}),
        cilium("default", "x", _A, egress=[{"toCIDR": ["203.0.113.0/24"]}]),
        stated=[yes("x/a", "y/a"), yes("x/a", "internet"), no("x/a", "x/b"), no("x/a", "office")],
    )  # fmt: skip
    yield _one(
        "a policy of all namespaces", {"cluster policy"},
        cilium("cluster", None, pods("c"), ingress=[{"fromEndpoints": [pods("a")]}]),
        stated=[yes("x/a", "z/c"), no("x/b", "z/c"), no("internet", "y/c"), yes("x/b", "z/b")],
    )  # fmt: skip


def _selected() -> Iterator[Case]:
    yield _one(
        "endpoints of the own namespace", {"fromEndpoints"},
        cilium("own", "x", _A, ingress=[{"fromEndpoints": [pods("b")]}]),
        stated=[yes("x/b", "x/a"), no("y/b", "x/a"), yes("x/b", "x/a", family=6)],
    )  # fmt: skip
    elsewhere = {"matchLabels": {"pod": "b", "k8s:io.kubernetes.pod.namespace": "y"}}
    yield _one(
        "endpoints of a namespace that is named", {"toEndpoints", "namespace"},
        cilium("other", "x", _A, egress=[{"toEndpoints": [elsewhere], "toPorts": to_ports(("TCP", "8080"))}]),
        stated=[yes("x/a", "y/b", "tcp", 8080), no("x/a", "y/b"), no("x/a", "x/b", "tcp", 8080)],
    )  # fmt: skip
    apart = {"matchExpressions": [{"key": "pod", "operator": "NotIn", "values": ["a", "b"]}]}
    yield _one(
        "endpoints by expressions", {"fromEndpoints", "NotIn"},
        cilium("apart", "y", pods("b"), ingress=[{"fromEndpoints": [apart]}]),
        stated=[yes("y/c", "y/b"), no("y/a", "y/b"), no("x/c", "y/b")],
    )  # fmt: skip
    exists = {"matchExpressions": [{"key": "pod", "operator": "Exists"}, {"key": "none", "operator": "DoesNotExist"}]}
    yield _one(
        "endpoints that have a label and another not", {"Exists", "DoesNotExist"},
        cilium("exists", "z", exists, ingress=[{"fromEndpoints": [exists]}]),
        stated=[yes("z/b", "z/a"), no("y/b", "z/a")],
    )  # fmt: skip
    for entity, passes, refused in (
        ("world", "internet", "y/a"), ("cluster", "y/a", "internet"), ("host", "office", "internet"),
    ):  # fmt: skip
        yield _one(
            f"the entity {entity}", {f"entity {entity}", "fromEntities", "toEntities"},
            cilium("entity", "x", _A, ingress=[{"fromEntities": [entity]}], egress=[{"toEntities": [entity]}]),
            stated=[yes(passes, "x/a"), no(refused, "x/a"), yes("x/a", passes, family=6),
                    no("x/a", refused, family=6)],
        )  # fmt: skip
    yield _one(
        "every entity", {"entity all"},
        cilium("all", "x", _A, egress=[{"toEntities": ["all"], "toPorts": to_ports(("UDP", "80"))}]),
        stated=[yes("x/a", "internet", "udp"), yes("x/a", "y/a", "udp", family=6), no("x/a", "y/a")],
    )  # fmt: skip
    yield _one(
        "an entity that this machine knows nothing of allows nothing", {"entity unknown"},
        cilium("remote", "x", _A, ingress=[{"fromEntities": ["remote-node"]}]),
        stated=[no("y/a", "x/a"), no("internet", "x/a"), no("office", "x/a")],
    )  # fmt: skip
    names = {"www.example.com": addresses_of("internet"), "intranet.example.com": addresses_of("office")}
    for words, entry, refused in (
        ("a name", {"matchName": "www.example.com"}, "office"),
        ("a pattern of names", {"matchPattern": "intra*.example.com"}, "internet"),
    ):
        allowed = "internet" if refused == "office" else "office"
        state = State((cilium("names", "x", _A, egress=[{"toFQDNs": [entry]}]),)).stating(
            yes("x/a", allowed), yes("x/a", allowed, family=6), no("x/a", refused), no("x/a", "y/a")
        )
        yield Case(f"{words} whose addresses are known", "extended", (state,), frozenset({"toFQDNs", words}),
                   entities=_ENTITIES, names=names)  # fmt: skip


def _kinds_of_packets() -> Iterator[Case]:
    yield _one(
        "any protocol on a port", {"protocol ANY"},
        cilium("any", "x", _A, ingress=[{"toPorts": to_ports(("ANY", "80"))}]),
        stated=[yes("y/a", "x/a"), yes("y/a", "x/a", "udp"), yes("y/a", "x/a", "sctp"),
                no("y/a", "x/a", "udp", 8080)],
    )  # fmt: skip
    yield _one(
        "all ports of one protocol", {"port 0"},
        cilium("zero", "x", _A, ingress=[{"toPorts": to_ports(("UDP", "0"))}]),
        stated=[yes("y/a", "x/a", "udp", 8080), no("y/a", "x/a"), no("y/a", "x/a", "sctp")],
    )  # fmt: skip
    yield _one(
        "SCTP alone", {"SCTP"},
        cilium("sctp", "x", _A, egress=[{"toPorts": to_ports(("SCTP", "8080"))}]),
        stated=[yes("x/a", "y/a", "sctp", 8080), no("x/a", "y/a", "sctp"),
                yes("x/a", "y/a", "sctp", 8080, family=6)],
    )  # fmt: skip
    yield _one(
        "a range of ports to a network", {"endPort", "toCIDR"},
        cilium("range", "x", _A, egress=[
            {"toCIDR": ["10.77.1.0/24"], "toPorts": to_ports(("TCP", "79", 81), ("UDP", "8000", 9000))}]),
        stated=[yes("x/a", "y/a"), no("x/a", "y/a", "tcp", 8080), yes("x/a", "y/a", "udp", 8080), no("x/a", "x/b")],
    )  # fmt: skip
    more = (
        Attempt(("x/a", "y/a"), ("x/a", "y/a"), ("icmp",), (8, 13), (4,)),
        Attempt(("x/a", "y/a"), ("x/a", "y/a"), ("icmpv6",), (128, 139), (6,)),
    )
    yield _one(
        "a type of ICMP", {"icmps"},
        cilium("echo", "x", _A, ingress=[{"icmps": icmps(("IPv4", 8))}]),
        stated=[yes("y/a", "x/a", "icmp", 8), no("y/a", "x/a", "icmp", 13), no("y/a", "x/a", "icmpv6", 128, 6),
                no("y/a", "x/a")],
        attempts=more,
    )  # fmt: skip
    yield _one(
        "types of both ICMPs by name, from a network", {"icmps", "names of types"},
        cilium("echoes", "x", _A, ingress=[{
            "fromCIDR": ["10.77.1.0/24", "fd77::1:0/112"],
            "icmps": icmps(("IPv4", "EchoRequest"), ("IPv6", "EchoRequest"))}]),
        stated=[yes("y/a", "x/a", "icmp", 8), yes("y/a", "x/a", "icmpv6", 128, 6), no("x/b", "x/a", "icmp", 8),
                no("y/a", "x/a", "icmpv6", 139, 6)],
        attempts=more,
    )  # fmt: skip
    yield _one(
        "a denied type of ICMP", {"icmps", "egressDeny"},
        cilium("no-echo", "x", _A, egress_deny=[{"icmps": icmps(("IPv6", 128), ("IPv4", 13))}],
               default_deny={"egress": False}),
        stated=[yes("x/a", "y/a", "icmp", 8), no("x/a", "y/a", "icmp", 13), no("x/a", "y/a", "icmpv6", 128, 6),
                yes("x/a", "y/a", "icmpv6", 139, 6)],
        attempts=more,
    )  # fmt: skip
    yield _one(
        "neighbours are found where nothing is allowed", {"exempt", "default deny"},
        policy("closed", "x", {}, ingress=[], egress=[{"to": [{"ipBlock": {"cidr": "fd77::1:11/128"}}]}]),
        stated=[yes("x/a", "y/a", family=6), no("x/a", "y/b", family=6), no("y/a", "x/a", family=6)],
    )  # fmt: skip


def cilium_cases() -> tuple[Case, ...]:
    """Give the cases."""
    parts = (_families, _denied, _isolating, _selected, _kinds_of_packets)
    return tuple(case for part in parts for case in part())
