# SPDX-License-Identifier: Apache-2.0
"""What sets of nftables cost a packet by shape and size: ``python -m benchmarks.bench_network_sets [--elements N …]``.

The planner's shape rests on these figures. Every set is looked for in the input hook by packets of which none is in it,
each a flow of its own, and then dropped. ``far``: the elements are elsewhere; ``near``: they lie among the addresses of
the packets, and only the port decides. ``holding``: every element holds the address of the packets, with other ports.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any, Final

from benchmarks.network_rules import FLOOD_PORT, TABLE
from benchmarks.network_world import FLOOD_SOURCES, TRAFFIC, Receiver, World, run, world

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ELEMENTS: Final = (0, 1_000, 10_000, 100_000)
PACKETS: Final = 100_000
SECONDS: Final = 2.0
HOLDING_AT_MOST: Final = 10_000
"""Elements that hold one address: above it loading alone takes minutes."""
ENVIRONMENT_LACKS: Final = 3
_COMMON: Final = {"family": "inet", "table": TABLE}
_PROTOCOL: Final = {"meta": {"key": "l4proto"}}
_SOURCE: Final = {"payload": {"protocol": "ip", "field": "saddr"}}
_PORT: Final = {"payload": {"protocol": "th", "field": "dport"}}
_UDP_PORT: Final = {"payload": {"protocol": "udp", "field": "dport"}}
_ACCEPT: Final = {"accept": None}
_TYPES: Final = {"address": "ipv4_addr", "protocol": "inet_proto", "port": "inet_service"}
_KEYS: Final = {"address": _SOURCE, "protocol": _PROTOCOL, "port": _PORT}

Commands = list[dict[str, Any]]


def _set(parts: tuple[str, ...], elements: list[Any], *, interval: bool = True, verdicts: bool = False) -> Commands:
    types = [_TYPES[part] for part in parts]
    name = "m" if verdicts else "s"
    body = {**_COMMON, "name": name, "type": types if len(types) > 1 else types[0]}
    body |= ({"flags": ["interval"]} if interval else {}) | ({"map": "verdict"} if verdicts else {})
    made: Commands = [{"add": {"map" if verdicts else "set": body}}]
    return made + ([{"add": {"element": {**_COMMON, "name": name, "elem": elements}}}] if elements else [])


def _key(parts: tuple[str, ...]) -> dict[str, Any]:
    keys = [_KEYS[part] for part in parts]
    return keys[0] if len(keys) == 1 else {"concat": keys}


def _rule(chain: str, *expressions: dict[str, Any]) -> dict[str, Any]:
    return {"add": {"rule": {**_COMMON, "chain": chain, "expr": list(expressions)}}}


def _lookup(chain: str, parts: tuple[str, ...]) -> dict[str, Any]:
    return _rule(chain, {"match": {"op": "==", "left": _key(parts), "right": "@s"}}, _ACCEPT)


def _networks(number: int, generator: random.Random, *, near: bool) -> Iterator[Any]:
    for cell in generator.sample(range(1 << (16 if near else 18)), number):
        first = f"10.254.{cell >> 8}.{cell & 255}" if near else f"{11 + (cell >> 16)}.{cell >> 8 & 255}.{cell & 255}.0"
        length = 32 if near else generator.choice((24, 25, 26, 28, 32, 32))
        yield {"prefix": {"addr": first, "len": length}}


def _ports(generator: random.Random) -> Any:  # noqa: ANN401 - nft's JSON
    first = generator.randrange(1, 30000)
    return first if generator.random() < 0.6 else {"range": [first, first + generator.choice((1, 9, 99, 999))]}


def boxes(number: int, *, near: bool = False) -> Commands:
    """Networks with protocol and ports in one set."""
    generator = random.Random(7)  # noqa: S311 - made-up elements
    parts = ("address", "protocol", "port")
    elements = [
        {"concat": [network, generator.choice(("tcp", "udp")), _ports(generator)]}
        for network in _networks(number, generator, near=near)
    ]
    return [*_set(parts, elements), _lookup("input", parts)]


def holding(number: int) -> Commands:
    """One network that holds the packets' addresses, with ever other ports."""
    parts = ("address", "protocol", "port")
    network = {"prefix": {"addr": FLOOD_SOURCES, "len": 16}}
    return [
        *_set(parts, [{"concat": [network, "udp", port]} for port in range(1, 1 + number)]),
        _lookup("input", parts),
    ]


def exact(number: int) -> Commands:
    """Addresses with protocol and port, no ranges."""
    generator = random.Random(7)  # noqa: S311
    parts = ("address", "protocol", "port")
    elements = [
        {"concat": [network["prefix"]["addr"], "tcp", generator.randrange(1, 65536)]}
        for network in _networks(number, generator, near=False)
    ]
    return [*_set(parts, elements, interval=False), _lookup("input", parts)]


def tree(number: int, *, near: bool = False) -> Commands:
    """Networks alone."""
    networks = list(_networks(number, random.Random(7), near=near))  # noqa: S311
    return [*_set(("address",), networks), _lookup("input", ("address",))]


def ports_first(number: int) -> Commands:
    """A map of ports that leads to a set of networks."""
    entries = [
        [{"concat": [protocol, port]}, {"jump": {"target": "c"}}]
        for protocol, port in (("udp", FLOOD_PORT), *(("tcp", 1000 + index) for index in range(15)))
    ]
    parts = ("protocol", "port")
    return [
        {"add": {"chain": {**_COMMON, "name": "c"}}},
        *tree(number)[:-1],
        *_set(parts, entries, interval=False, verdicts=True),
        _lookup("c", ("address",)),
        _rule("input", {"vmap": {"key": _key(parts), "data": "@m"}}),
    ]


def listed(number: int) -> Commands:
    """Rules one after the other."""
    generator = random.Random(7)  # noqa: S311
    return [
        _rule(
            "input",
            {"match": {"op": "==", "left": _SOURCE, "right": network}},
            {"match": {"op": "==", "left": _UDP_PORT, "right": _ports(generator)}},
            _ACCEPT,
        )
        for network in _networks(number, generator, near=False)
    ]


SHAPES: Final[dict[str, tuple[Callable[[int], Commands], int]]] = {
    "network . protocol . ports, far": (boxes, 1 << 18),
    "network . protocol . ports, near": (lambda number: boxes(number, near=True), 1 << 16),
    "network . protocol . ports, holding": (holding, HOLDING_AT_MOST),
    "address . protocol . port, no ranges": (exact, 1 << 18),
    "network alone, far": (tree, 1 << 18),
    "network alone, near": (lambda number: tree(number, near=True), 1 << 16),
    "map of ports to networks": (ports_first, 1 << 18),
    "rules in a list": (listed, 10_000),
}


def load(receiver: Receiver, commands: Commands) -> float:
    """Put a table in force and tell how many seconds that took."""
    base: Commands = [
        {"add": {"table": {"family": "inet", "name": TABLE}}},
        {
            "add": {
                "chain": {
                    **_COMMON,
                    "name": "input",
                    "type": "filter",
                    "hook": "input",
                    "prio": -5,
                    "policy": "drop",
                }
            }
        },
        _rule("input", {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": "established"}}, _ACCEPT),
    ]
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump({"nftables": base + commands}, file)
        file.flush()
        begin = time.perf_counter()
        run("ip", "netns", "exec", receiver.name, "nft", "-j", "-f", file.name)
        return time.perf_counter() - begin


def flood(made: World, receiver: Receiver) -> float:
    """Tell how many nanoseconds of the processor a packet takes."""

    def nanoseconds(count: int) -> int:
        return made.send("flood", FLOOD_SOURCES, receiver.address, FLOOD_PORT, count)[1]

    count = min(PACKETS, int(SECONDS * 1e9 / nanoseconds(256)))
    return statistics.median(nanoseconds(count) for _ in range(5))


def main() -> int:
    """Measure every shape in every size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elements", type=int, nargs="*", default=list(ELEMENTS))
    arguments = parser.parse_args()
    if not TRAFFIC.exists():
        print(f"found no {TRAFFIC}, expected the benchmark's sender; run `make {TRAFFIC}`", file=sys.stderr)
        return ENVIRONMENT_LACKS
    print(f"{'':40}{'elements':>10}{'ns/packet':>12}{'load, ms':>12}")
    for title, (shape, most) in SHAPES.items():
        for number in arguments.elements:
            if number > most:
                continue
            with world() as made:
                receiver = made.receiver()
                seconds = load(receiver, shape(number))
                print(f"{title:40}{number:10,}{flood(made, receiver):12,.0f}{seconds * 1e3:12,.0f}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
