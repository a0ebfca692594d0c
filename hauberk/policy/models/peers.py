# SPDX-License-Identifier: Apache-2.0
"""Entries of network policies: peers, ports, interfaces and quotas of one direction."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from hauberk.policy import traffic
from hauberk.policy.models.base import NOT_NULL, Attributes, Strict, refuse
from hauberk.policy.models.values import Cidr, Duration, Interface, Limit, Port, PortNumber

MAXIMUM_ELEMENTS = 4096
"""Most ports or interfaces of one entry."""
MAXIMUM_NETWORKS = 100_000
"""Most networks of one entry."""


class IpBlock(Strict):
    """A network of addresses."""

    cidr: Cidr


class Peer(Strict):
    """One peer; a block of addresses is the only form there is."""

    ipBlock: IpBlock


class PortRange(Strict):
    """A destination port, or with ``endPort`` the ports from one to the other."""

    port: Port
    endPort: Annotated[PortNumber | None, NOT_NULL] = None
    protocol: Literal["TCP", "UDP", "SCTP", "tcp", "udp", "sctp"] = "tcp"

    @model_validator(mode="after")
    def _forwards(self) -> Self:
        if self.endPort is not None and self.endPort < traffic.port_number(self.port):
            refuse(
                f"a port from {traffic.port_number(self.port)} on", "Swap port and endPort", f"{self.endPort}",
                ("endPort",),
            )  # fmt: skip
        return self


_SOME = Field(min_length=1, max_length=MAXIMUM_ELEMENTS)
_PEERS = Field(min_length=1, max_length=MAXIMUM_NETWORKS)
"""An absent list matches anything; an empty one is a mistake."""


class _Entry(Attributes):
    """What both directions have."""

    iface: Annotated[list[Interface], _SOME] = []
    ports: Annotated[list[PortRange], _SOME] = []
    limit: Annotated[Limit | None, NOT_NULL] = None
    duration: Annotated[Duration | None, NOT_NULL] = None

    @model_validator(mode="after")
    def _whole_quota(self) -> Self:
        if (self.limit is None) != (self.duration is None):
            found, missing = ("duration", "limit") if self.limit is None else ("limit", "duration")
            refuse(f"{missing} with {found}", f"Add {missing}, or remove {found}", f"{found} alone", (found,))
        return self


class Ingress(_Entry):
    """Traffic that comes in."""

    from_: Annotated[list[Peer], _PEERS, Field(alias="from")] = []


class Egress(_Entry):
    """Traffic that goes out."""

    to: Annotated[list[Peer], _PEERS] = []
