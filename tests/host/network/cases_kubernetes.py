# SPDX-License-Identifier: Apache-2.0
"""The 230 cases that implementations of Kubernetes NetworkPolicy are commonly compared by, in our own words.

They vary one policy in every direction it has: whom it covers, its rules, its peers, its ports; then come policies that
stand against each other, changes over time, and what Kubernetes' own end-to-end tests ask. (Their catalogue is that of
the public conformance generator Cyclonus; its count of each group is kept, and a unit test holds us to it.)

Where an agent on one machine knows less than a cluster, a case says the same with what it knows: a namespace is
selected by ``kubernetes.io/metadata.name``, the one label of it that is known; the name of a port is that of a
well-known service; a namespace that gets a label becomes pods that are of another namespace.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Final

from tests.host.network.cases import Case, Document, State, Stated, Workload

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from tests.host.network.cases import Group

COUNTS: Final[dict[Group, int]] = {
    "targets": 6, "rules": 4, "peers": 112, "ports": 70, "example": 1, "actions": 6, "conflicts": 16, "namespaces": 2,
    "upstream": 13,
}  # fmt: skip
"""How many cases each group has; 230 in all."""

NAMESPACE_NAME: Final = "kubernetes.io/metadata.name"
_DIRECTIONS: Final = ("ingress", "egress")
_UNSAID: Any = object()


def policy(
    name: str,
    namespace: str,
    pods: Document,
    *,
    ingress: Sequence[Document] | None = None,
    egress: Sequence[Document] | None = None,
) -> Document:
    """Give a NetworkPolicy that isolates in the directions it has rules for, be they none."""
    spec: Document = {"podSelector": pods, "policyTypes": []}
    for direction, rules in (("ingress", ingress), ("egress", egress)):
        if rules is not None:
            spec["policyTypes"].append(direction.capitalize())
            spec[direction] = list(rules)
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


def pods(*names: str) -> Document:
    """Give a selector of pods by one name (matchLabels), or by several (matchExpressions)."""
    if len(names) == 1:
        return {"matchLabels": {"pod": names[0]}}
    return {"matchExpressions": [{"key": "pod", "operator": "In", "values": list(names)}]}


def namespaces(*names: str, operator: str = "In") -> Document:
    """Give a selector of namespaces by their names."""
    if len(names) == 1 and operator == "In":
        return {"matchLabels": {NAMESPACE_NAME: names[0]}}
    return {"matchExpressions": [{"key": NAMESPACE_NAME, "operator": operator, "values": list(names)}]}


def port(protocol: str | None = None, number: int | str | None = None, end: int | None = None) -> Document:
    """Give an entry of ``ports`` with what is said of it."""
    said = {"protocol": protocol, "port": number, "endPort": end}
    return {field: value for field, value in said.items() if value is not None}


def rule(direction: str, peers: Sequence[Document] | None, ports: Sequence[Document] | None) -> Document:
    """Give a rule; None leaves a part out."""
    parts = {"from" if direction == "ingress" else "to": peers, "ports": ports}
    return {part: list(entries) for part, entries in parts.items() if entries is not None}


DNS: Final = rule("egress", None, [port("UDP", 53), port("TCP", 53)])


def base(  # noqa: PLR0913 - each part can be another
    *,
    namespace: str = "x",
    covers: Document = _UNSAID,
    direction: str = "",
    peers: Sequence[Document] = _UNSAID,
    ports: Sequence[Document] = _UNSAID,
    rules: Sequence[Document] = _UNSAID,
) -> Document:
    """Give the policy that most cases vary.

    ``x/a`` gets TCP 80 from b and c of x and y, and may send TCP 80 to a and b of y and z, and look up names. Peers,
    ports or all rules of ``direction`` can be others.
    """
    own = {
        "ingress": [{"podSelector": pods("b", "c"), "namespaceSelector": namespaces("x", "y")}],
        "egress": [{"podSelector": pods("a", "b"), "namespaceSelector": namespaces("y", "z")}],
    }
    found: dict[str, Sequence[Document]] = {}
    for one in _DIRECTIONS:
        here = one == direction
        of_peers = peers if here and peers is not _UNSAID else own[one]
        of_ports = ports if here and ports is not _UNSAID else [port("TCP", 80)]
        found[one] = [rule(one, of_peers, of_ports), *([DNS] if one == "egress" else [])]
        if here and rules is not _UNSAID:
            found[one] = rules
    return policy("base", namespace, pods("a") if covers is _UNSAID else covers, **found)


def _one(
    name: str, group: Group, features: Iterable[str], *policies: Document, stated: tuple[Stated, ...] = ()
) -> Case:
    return Case(name, group, (State(policies, stated=stated),), frozenset(features))


def _targets() -> Iterator[Case]:
    for name in ("x", "y", "z"):
        yield _one(f"the policy is in namespace {name}", "targets", {"target-namespace"}, base(namespace=name))
    for words, selector in (("all pods", {}), ("a by label", pods("a")), ("a and b by expression", pods("a", "b"))):
        yield _one(f"the policy covers {words}", "targets", {f"target: {words}"}, base(covers=selector))


def _rules() -> Iterator[Case]:
    for direction in _DIRECTIONS:
        choices: tuple[tuple[str, list[Document]], ...] = (("no rule", []), ("an empty rule", [{}]))
        for words, rules in choices:
            yield _one(f"{direction} has {words}", "rules", {direction, words}, base(direction=direction, rules=rules))


def _blocks() -> dict[str, Document]:
    """Give the networks around z/c (see :func:`tests.host.network.topology.everybody`)."""
    return {
        "a network": {"ipBlock": {"cidr": "10.77.1.0/24"}},
        "a network with an exception": {"ipBlock": {"cidr": "10.77.1.0/24", "except": ["10.77.1.32/28"]}},
    }


def _peer_kinds() -> dict[str, Document]:
    of_pods = {"all pods": {}, "pods by label": pods("c"), "": None}
    of_namespaces = {"the own namespace": None, "all namespaces": {}, "namespaces by label": namespaces("x")}
    kinds: dict[str, Document] = {}
    for (namespace, selecting), (pod, selected) in itertools.product(of_namespaces.items(), of_pods.items()):
        peer = {"namespaceSelector": selecting, "podSelector": selected}
        if any(part is not None for part in peer.values()):
            words = f"{pod} of {namespace}" if pod else namespace
            kinds[words] = {part: selector for part, selector in peer.items() if selector is not None}
    return kinds | _blocks()


def _peers() -> Iterator[Case]:
    kinds = _peer_kinds()
    for direction in _DIRECTIONS:
        yield _one(f"{direction}: no peers", "peers", {direction, "no peers"}, base(direction=direction, peers=[]))
        for words, peer in kinds.items():
            yield _one(f"{direction}: {words}", "peers", {direction, words}, base(direction=direction, peers=[peer]))
        for (words, peer), (more_words, more) in itertools.combinations(kinds.items(), 2):
            yield _one(
                f"{direction}: {words}; {more_words}",
                "peers",
                {direction, "several peers", words, more_words},
                base(direction=direction, peers=[peer, more]),
            )


SERVICE_OF: Final = {80: "http", 8080: "http-alt", 443: "https"}
"""Names for the ports that pods serve, and for one that none does."""


def _port_entries() -> dict[str, Document]:
    entries: dict[str, Document] = {}
    for protocol, number in itertools.product((None, "TCP", "UDP", "SCTP"), (None, 80, 8080)):
        words = f"{protocol or 'no protocol'}, {number or 'no port'}"
        entries[words] = port(protocol, number)
    for protocol, number in itertools.product(("TCP", "UDP", "SCTP"), (80, 8080)):
        entries[f"{protocol}, {SERVICE_OF[number]}"] = port(protocol, SERVICE_OF[number])
    for protocol, end in itertools.product(("TCP", "UDP", "SCTP"), (80, 8084)):
        entries[f"{protocol}, 53 to {end}"] = port(protocol, 53, end)
    entries["TCP, a service that pods serve otherwise"] = port("TCP", "sip")
    entries["UDP, a service that no pod serves"] = port("UDP", SERVICE_OF[443])
    entries["TCP, a port that no pod serves"] = port("TCP", 7981)
    return entries


def _pairs_of_ports() -> tuple[tuple[Document, Document], ...]:
    return (
        ({}, port(None, 80)),
        ({}, port(None, SERVICE_OF[80])),
        ({}, port("UDP")),
        (port(None, 80), port(None, 8080)),
        (port(None, 80), port(None, SERVICE_OF[8080])),
        (port(None, 80), port("UDP", SERVICE_OF[8080])),
        (port("UDP", 80), port("UDP", SERVICE_OF[8080])),
    )


def _port_words(entry: Document) -> str:
    return " ".join(str(value) for value in entry.values()) or "empty"


def _ports() -> Iterator[Case]:
    for direction in _DIRECTIONS:
        yield _one(f"{direction}: no ports", "ports", {direction, "no ports"}, base(direction=direction, ports=[]))
        for words, entry in _port_entries().items():
            protocol, _, what = words.partition(", ")
            yield _one(
                f"{direction}: {words}",
                "ports",
                {direction, protocol, what, *(["endPort"] if "endPort" in entry else [])},
                base(direction=direction, ports=[entry]),
            )
        for pair in _pairs_of_ports():
            yield _one(
                f"{direction}: {' and '.join(map(_port_words, pair))}",
                "ports",
                {direction, "several ports"},
                base(direction=direction, ports=pair),
            )


def _example() -> Iterator[Case]:
    named = policy("named-port", "x", {}, ingress=[{"ports": [port(None, SERVICE_OF[8080])]}])
    begun = State((named,))
    with_another = begun.changed(Workload.of("w/a"))
    yield Case("one named port, while another namespace comes and goes", "example", (begun, with_another, begun))


def _actions() -> Iterator[Case]:
    begun = State((base(),))
    yield Case(
        "a policy comes and goes", "actions", (begun, begun.without("base"), begun), frozenset({"policy deleted"})
    )
    updated = begun.applied(base(direction="ingress", ports=[port("UDP", 8080)]))
    yield Case("a policy changes", "actions", (begun, updated), frozenset({"policy updated"}))
    more = begun.changed(Workload.of("y-2/a"), Workload.of("y-2/b"))
    yield Case("a namespace comes and goes", "actions", (begun, more, begun), frozenset({"namespace deleted"}))
    by_namespace = State((base(direction="ingress", peers=[{"namespaceSelector": namespaces("qrs")}]),))
    moved = by_namespace.changed(*(Workload.of(f"y/{pod}", "qrs") for pod in "abc"))
    yield Case(
        "pods come into the namespace that a rule names, and leave it",
        "actions",
        (by_namespace, moved, by_namespace),
        frozenset({"namespace of pods changed"}),
    )
    yield Case(
        "a pod comes and goes",
        "actions",
        (begun, begun.changed(Workload.of("x/d")), begun),
        frozenset({"pod deleted"}),
    )
    peer = {"podSelector": {"matchLabels": {"new-label": "abc"}}, "namespaceSelector": namespaces("y", "z")}
    by_label = State((base(direction="ingress", peers=[peer]),))
    labelled = by_label.changed(Workload.of("y/b", **{"new-label": "abc"}))
    yield Case(
        "a pod gets the label that a rule names, and loses it",
        "actions",
        (by_label, labelled, by_label),
        frozenset({"labels of a pod changed"}),
    )


def _conflicts() -> Iterator[Case]:
    source, target = ("x", pods("b")), ("y", pods("c"))
    everywhere, nowhere = {"ipBlock": {"cidr": "0.0.0.0/0"}}, {"ipBlock": {"cidr": "0.0.0.0/31"}}
    everybody: Document = {"namespaceSelector": {}}
    nobody: Document = {"namespaceSelector": {"matchLabels": {"never": "qrs123"}}}

    def one(
        of: tuple[str, Document], direction: str, name: str, *peers: Document, everything: bool = False
    ) -> Document:
        rules = [{}] if everything else [rule(direction, peers, None)] if peers else []
        return policy(f"{name}-{direction}", *of, ingress=rules if direction == "ingress" else None,
                      egress=rules if direction == "egress" else None)  # fmt: skip

    pairs: dict[str, tuple[Document, ...]] = {
        "the source may send nothing, the target takes everything": (
            one(source, "egress", "none"),
            one(target, "ingress", "all", everything=True),
        ),
        "the source may send everything, the target takes nothing": (
            one(source, "egress", "all", everything=True),
            one(target, "ingress", "none"),
        ),
    }
    for direction, of in (("egress", source), ("ingress", target)):
        pairs[f"{direction}: nothing and everything"] = (
            one(of, direction, "none"),
            one(of, direction, "all", everything=True),
        )
    for direction in ("egress", "ingress"):
        nothing = one(source, direction, "none")
        by_pod, by_address = one(source, direction, "pods", everybody), one(source, direction, "all", everywhere)
        no_address, no_pod = one(source, direction, "no-address", nowhere), one(source, direction, "no-pod", nobody)
        pairs |= {
            f"{direction}: nothing and all pods": (nothing, by_pod),
            f"{direction}: nothing and all addresses": (nothing, by_address),
            f"{direction}: no address and all pods": (no_address, by_pod),
            f"{direction}: no pod and all addresses": (no_pod, by_address),
        }
    for direction in ("egress", "ingress"):
        pairs[f"{direction}: no address"] = (one(source, direction, "no-address", nowhere),)
        pairs[f"{direction}: no pod"] = (one(source, direction, "no-pod", nobody),)
    for words, policies in pairs.items():
        egress = any("egress" in document["spec"] for document in policies)
        dns = (policy("allow-dns", *source, egress=[DNS]),) if egress else ()
        direction, colon, what = words.partition(": ")
        features = {direction, *what.split(" and ")} if colon else {"both ends"}
        yield _one(words, "conflicts", {"conflict", *features}, *policies, *dns)


def _of_namespaces() -> Iterator[Case]:
    for direction in _DIRECTIONS:
        yield _one(
            f"{direction}: a namespace by the label that Kubernetes gives it",
            "namespaces",
            {direction, "namespace by its default label"},
            base(direction=direction, peers=[{"namespaceSelector": namespaces("z")}]),
        )


def _upstream() -> Iterator[Case]:
    yield _one(
        "nothing may come in", "upstream", {"deny ingress"}, policy("deny-ingress", "x", {}, ingress=[]),
        stated=(Stated("y/a", "x/a", "tcp", 80, passes=False), Stated("x/a", "y/a", "tcp", 80, passes=True)),
    )  # fmt: skip
    yield _one(
        "nothing may come in or go out but look-ups", "upstream", {"deny all"},
        policy("deny-all", "x", {}, ingress=[], egress=[DNS]),
        stated=(Stated("x/a", "y/a", "tcp", 80, passes=False), Stated("y/a", "z/a", "tcp", 80, passes=True)),
    )  # fmt: skip
    both = {"namespaceSelector": namespaces("x", operator="NotIn"), "podSelector": pods("b", "c")}
    yield _one(
        "pods by namespace and label at once", "upstream", {"NotIn"},
        policy("both", "x", pods("a"), ingress=[{"from": [both]}]),
        stated=(Stated("y/b", "x/a", "tcp", 80, passes=True), Stated("x/b", "x/a", "tcp", 80, passes=False)),
    )  # fmt: skip
    from_y = [{"namespaceSelector": namespaces("y")}]
    first, second = (
        policy(f"from-y-{number}", "x", pods("a"), ingress=[{"from": from_y, "ports": [port("TCP", number)]}])
        for number in (8080, 80)
    )
    alone = State((first,)).stating(Stated("y/a", "x/a", "tcp", 80, passes=False))
    stacked = alone.applied(second).stating(Stated("y/a", "x/a", "tcp", 80, passes=True))
    yield Case("policies that cover the same pod add up", "upstream", (alone, alone, stacked), frozenset({"stacked"}))
    everything = State((policy("allow-all", "x", {}, ingress=[{}]),))
    yield Case("everything may come in", "upstream", (everything, everything), frozenset({"allow all"}))
    named = State((policy("named", "x", {}, ingress=[{"ports": [port(None, SERVICE_OF[8080])]}]),))
    yield Case(
        "one named port may come in", "upstream",
        (named.stating(Stated("y/a", "x/a", "tcp", 8080, passes=True)), named), frozenset({"named port"}),
    )  # fmt: skip
    yield Case(
        "a policy that allows all comes to allow nothing", "upstream",
        (everything, everything.applied(policy("allow-all", "x", {}, ingress=[]))), frozenset({"policy updated"}),
    )  # fmt: skip
    by_namespace = State((policy("of-updated", "x", pods("a"), ingress=[{"from": [
        {"namespaceSelector": namespaces("updated")}]}]),))  # fmt: skip
    moved = by_namespace.changed(*(Workload.of(f"y/{pod}", "updated") for pod in "abc"))
    yield Case(
        "pods of a namespace that came later may come in", "upstream",
        (by_namespace, moved.stating(Stated("y/c", "x/a", "udp", 80, passes=True))),
        frozenset({"namespace of pods changed"}),
    )  # fmt: skip
    wanted = {"podSelector": {"matchLabels": {"pod": "b", "pod2": "updated"}}}
    by_label = State((policy("of-labelled", "x", pods("a"), ingress=[{"from": [wanted]}]),))
    labelled = by_label.changed(Workload.of("x/b", pod2="updated"))
    yield Case(
        "a pod that got a label may come in", "upstream",
        (by_label, labelled.stating(Stated("x/b", "x/a", "tcp", 80, passes=True))),
        frozenset({"labels of a pod changed"}),
    )  # fmt: skip
    isolated = {"matchLabels": {"target": "isolated"}}
    by_target = State((policy("isolated", "x", isolated, ingress=[]),))
    now = by_target.changed(Workload.of("x/a", target="isolated"))
    yield Case(
        "a pod that got a label is isolated", "upstream",
        (by_target, now.stating(Stated("x/b", "x/a", "tcp", 80, passes=False))),
        frozenset({"labels of the target changed"}),
    )  # fmt: skip
    together = State((policy(
        "together", "x", pods("a"), ingress=[{"from": [{"podSelector": pods("b")}]}],
        egress=[{"ports": [port(None, 80), port("UDP", 53)]}]),))  # fmt: skip
    yield Case("both directions in one policy", "upstream", (together, together), frozenset({"ingress and egress"}))
    to_ya = {"namespaceSelector": namespaces("y"), "podSelector": pods("a")}
    from_xa = {"namespaceSelector": namespaces("x"), "podSelector": pods("a")}
    client = State((
        policy("client", "x", pods("a"), egress=[{"to": [to_ya]}, {"ports": [port("UDP", 53)]}]),
        policy("server-a", "y", pods("a"), ingress=[{"from": [from_xa]}]),
        policy("server-b", "y", pods("b"), ingress=[{"from": [from_xa]}]),
    )).stating(Stated("x/a", "y/a", "tcp", 80, passes=True), Stated("x/a", "y/b", "tcp", 80, passes=False))  # fmt: skip
    yield Case("the sender's policy refuses what the receiver's allows", "upstream", (client,), frozenset({"conflict"}))
    closed = State((policy("deny-all", "x", {}, ingress=[], egress=[]),))
    yield Case("a policy that is gone holds no more", "upstream", (closed, closed.without("deny-all")),
               frozenset({"policy deleted"}))  # fmt: skip


def kubernetes_cases() -> tuple[Case, ...]:
    """Give the 230 cases."""
    groups = (_targets, _rules, _peers, _ports, _example, _actions, _conflicts, _of_namespaces, _upstream)
    return tuple(case for group in groups for case in group())
