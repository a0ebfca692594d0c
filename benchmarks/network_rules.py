# SPDX-License-Identifier: Apache-2.0
"""Rules of the benchmark of network policies, in the forms that are compared: ours, and files for ``nft -f``.

One rule is one network and one range of ports. Networks lie apart, as hand-written sets with ranges need it; most ports
are a few well-known ones, the rest are ranges; every eighth network is of IPv6. None is about the packets of the flood,
so each of these has to be looked for everywhere; one more rule lets pass what the other measurements send.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final, NamedTuple

from hauberk.policy.rules import Action, ObjectKind, Origin, PeerMatch, Rule, RuleSet, Section

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ECHO_PORT: Final = 7
ACCEPT_PORT: Final = 9
SINK_PORT: Final = 10
FLOOD_PORT: Final = 40000
TABLE: Final = "benchmark"
_LISTED_PORT: Final = 443
_PASSING: Final = ((ECHO_PORT, ECHO_PORT, "udp"), (ACCEPT_PORT, SINK_PORT, "tcp"))
_WELL_KNOWN: Final = (53, 80, 123, 443, 5432, 6443, 8443, 9000, *range(2000, 2100))
_CELLS: Final = 1 << 18  # networks of 256 addresses from 11.0.0.0 on
_BEFORE: Final = "add table inet {table}\ndelete table inet {table}\n"
_HEAD: Final = f"""table inet {TABLE} {{
%s  chain input {{
    type filter hook input priority -5; policy accept;
    ct state established,related accept
    iifname "lo" accept
    ct state invalid drop
%s    udp dport {ECHO_PORT} accept
    tcp dport {ACCEPT_PORT}-{SINK_PORT} accept
    limit rate 100/second burst 200 packets log prefix "benchmark" group 18498
    drop
  }}
}}
"""


class Allowed(NamedTuple):
    """A network and a range of ports."""

    family: int
    network: str
    protocol: str
    first: int
    last: int

    @property
    def ports(self) -> str:
        """The ports as nft writes them."""
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


def make(number: int, seed: int = 1) -> list[Allowed]:
    """Make up so many, the same each time."""
    generator = random.Random(seed)  # noqa: S311 - made-up networks
    found = []
    for index, cell in enumerate(generator.sample(range(_CELLS), number)):
        if index % 8:
            length = generator.choice((24, 25, 26, 28, 32, 32))
            family, network = 4, f"{11 + (cell >> 16)}.{cell >> 8 & 255}.{cell & 255}.0/{length}"
        else:
            family, network = 6, f"2001:db8:{cell >> 16:x}:{cell & 0xFFFF:x}::/64"
        first = last = generator.choice(_WELL_KNOWN)
        if generator.random() < 0.4:
            first = generator.randrange(1024, 30000)
            last = first + generator.choice((1, 9, 99, 999))
        found.append(Allowed(family, network, generator.choice(("tcp", "udp")), first, last))
    return found


def rule_set(allowed: Iterable[Allowed]) -> RuleSet:
    """Give them as rules of a policy for what comes in; what no rule allows is refused."""
    rules = [
        Rule(
            Section.INGRESS, ObjectKind.PEER, one.network, Action.ALLOW, Origin("benchmark", f"spec.ingress[{index}]"),
            match=PeerMatch(cidrs=(one.network,), ports=((one.first, one.last, one.protocol),)),
        )
        for index, one in enumerate(allowed)
    ]  # fmt: skip
    passing = PeerMatch(ports=_PASSING)
    rules.append(
        Rule(Section.INGRESS, ObjectKind.PEER, "any", Action.ALLOW, Origin("benchmark", "spec"), match=passing)
    )
    return RuleSet(tuple(rules))


def list_rule_set(allowed: Iterable[Allowed]) -> RuleSet:
    """Give their networks as one rule with a port, as a list of sources is written."""
    match = PeerMatch(cidrs=tuple(one.network for one in allowed), ports=((_LISTED_PORT, _LISTED_PORT, "tcp"),))
    listed = Rule(Section.INGRESS, ObjectKind.PEER, "list", Action.ALLOW, Origin("benchmark", "spec"), match=match)
    return RuleSet((listed, *rule_set(()).rules))


def policy(allowed: Iterable[Allowed]) -> str:
    """Give them as the text of a policy."""
    lines = [
        "apiVersion: security.kubearmor.com/v1", "kind: KubeArmorNetworkPolicy", "metadata: {name: benchmark}",
        "spec:", "  nodeSelector: {matchLabels: {kubernetes.io/hostname: '*'}}", "  action: Allow", "  ingress:",
    ]  # fmt: skip
    for one in allowed:
        end = "" if one.first == one.last else f", endPort: {one.last}"
        lines.append(f"    - from: [{{ipBlock: {{cidr: '{one.network}'}}}}]")
        lines.append(f"      ports: [{{protocol: {one.protocol.upper()}, port: '{one.first}'{end}}}]")
    return "\n".join(lines) + "\n"


def linear(allowed: Iterable[Allowed]) -> str:
    """Give them as a list of rules, as most generators of rules write them."""
    rules = "".join(
        f"    {'ip' if one.family == 4 else 'ip6'} saddr {one.network} {one.protocol} dport {one.ports} accept\n"
        for one in allowed
    )
    return _BEFORE.format(table=TABLE) + _HEAD % ("", rules)


def hand_written(allowed: Sequence[Allowed]) -> str:
    """Give them as sets, as somebody who knows nftables writes them."""
    sets, rules = "", ""
    for family, name in ((4, "ip"), (6, "ip6")):
        elements = ",\n".join(
            f"      {one.network} . {one.protocol} . {one.ports}" for one in allowed if one.family == family
        )
        body = f"    elements = {{\n{elements}\n    }}\n" if elements else ""
        kind = f"ipv{family}_addr . inet_proto . inet_service"
        sets += f"  set allowed{family} {{\n    type {kind}; flags interval;\n{body}  }}\n"
        rules += f"    {name} saddr . meta l4proto . th dport @allowed{family} accept\n"
    return _BEFORE.format(table=TABLE) + _HEAD % (sets, rules)


def hand_written_list(allowed: Sequence[Allowed]) -> str:
    """Give their networks as sets with one port, as somebody who knows nftables writes a list of sources."""
    sets, rules = "", ""
    for family, name in ((4, "ip"), (6, "ip6")):
        elements = ",\n".join(f"      {one.network}" for one in allowed if one.family == family)
        body = f"    type ipv{family}_addr; flags interval;\n    elements = {{\n{elements}\n    }}\n"
        sets += f"  set listed{family} {{\n{body}  }}\n"
        rules += f"    tcp dport {_LISTED_PORT} {name} saddr @listed{family} accept\n"
    return _BEFORE.format(table=TABLE) + _HEAD % (sets, rules)
