# SPDX-License-Identifier: Apache-2.0
"""``hauberk policy check | explain | render | diff | schema``: for authors of policies, without a kernel.

Here stand the options alone; what a command does is in a module of its own, which is imported when it runs. YAML and
pydantic are imported later still, when a policy is met that the cache does not know.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

OPERATIONS = (
    "execute", "map", "read", "write", "socket", "resolve", "capability", "syscall", "preset", "attach", "receive",
    "send",
)  # fmt: skip
"""What can be asked: the values of :class:`hauberk.policy.rules.Operation`."""
ENGINES = ("bpf_lsm", "nftables")
POSTURES = ("block", "audit", "allow")


def register(subparsers: Any) -> None:  # noqa: ANN401 - argparse's own type is private
    """Add ``policy`` and its commands."""
    policy = subparsers.add_parser("policy", help="check policies and ask what they would do")
    # its name is given, as argparse would format a usage text to find it, which takes longer than all the rest
    commands = policy.add_subparsers(title="commands", dest="policy_command", required=True, prog=policy.prog)
    _add_check(commands)
    _add_explain(commands)
    _add_render(commands)
    _add_diff(commands)
    schema = commands.add_parser("schema", help="print a JSON Schema of all kinds of policies, for editors")
    schema.set_defaults(run=_lazily("hauberk.cli.checking", "schema"))


def _lazily(module: str, name: str) -> Callable[[argparse.Namespace], int]:
    """Give a command that imports its module when it runs."""

    def run(arguments: argparse.Namespace) -> int:
        result: int = getattr(importlib.import_module(module), name)(arguments)
        return result

    return run


def _add_check(commands: Any) -> None:  # noqa: ANN401 - argparse's own type is private
    check = commands.add_parser(
        "check",
        help="report every problem of policies, with file, line and field",
        description="Exit code 0: all documents are valid, perhaps with warnings; 1: one at least is not. "
        "All documents of all files are looked at.",
    )
    _add_files(check)
    check.add_argument("--format", choices=("text", "json", "github"), default="text", help="form of the report")
    check.set_defaults(run=_lazily("hauberk.cli.checking", "check"))


def _add_explain(commands: Any) -> None:  # noqa: ANN401 - argparse's own type is private
    explain = commands.add_parser(
        "explain",
        help="ask whether an operation would be allowed, and why",
        description="Exit code 0: allowed or audited; 1: denied, or a policy is invalid. Where nothing is said about "
        "the workload, all policies for containers are taken to cover it, or all policies for hosts with --host or "
        "where there are no others.",
    )
    _add_files(explain)
    _add_question(explain)
    explain.add_argument(
        "--rootfs", metavar="DIR", help="resolve the symbolic links of this root file system, and look up owners there"
    )
    explain.add_argument("--json", action="store_true", help="answer in JSON")
    _add_workload(explain)
    explain.set_defaults(run=_lazily("hauberk.cli.asking", "explain"))


def _add_question(explain: argparse.ArgumentParser) -> None:
    what = explain.add_argument_group("question", "one operation, and the object it is done to")
    what.add_argument("--operation", choices=OPERATIONS, help="may be left out where the object says it")
    what.add_argument("--path", help="absolute path of a file; with --syscall the path the call is about")
    what.add_argument("--protocol", metavar="WORD", help="protocol or socket type: tcp, raw, raw/icmp")
    what.add_argument("--domain", metavar="NAME", help="domain name that is looked up")
    what.add_argument("--capability", metavar="NAME", help="net_raw or CAP_NET_RAW")
    what.add_argument("--syscall", metavar="NAME", help="system call")
    what.add_argument("--preset", metavar="NAME", help="what a preset is about: filelessExec")
    what.add_argument(
        "--device", metavar="CLASS[:SUB[:PROTO]]", help="USB device that is plugged in: MASS-STORAGE, 8:6:80"
    )
    what.add_argument("--level", type=int, metavar="N", help="ports between the device and the host, 1 for a root port")
    what.add_argument("--peer", metavar="ADDRESS", help="the other end of packets; with --operation receive or send")
    what.add_argument(
        "--port", metavar="[PROTO/]N", help="destination port of packets: 443, udp/53; or icmp/TYPE, icmpv6/TYPE, vrrp"
    )
    what.add_argument("--source-port", metavar="N", help="source port of packets, for those that no policy is about")
    what.add_argument("--interface", metavar="NAME", help="network interface of packets")
    what.add_argument(
        "--peer-name", action="append", metavar="NAME", help="domain name that the peer was found by; repeatable"
    )
    what.add_argument(
        "--peer-entity", action="append", metavar="WORD", help="what the peer is to the machine: world; repeatable"
    )
    what.add_argument(
        "--peer-label", action="append", metavar="K=V", help="label of the peer, a workload of the machine; repeatable"
    )
    what.add_argument("--peer-namespace", metavar="NS", help="namespace of the peer, a workload of the machine")
    who = explain.add_argument_group("who acts, and how")
    who.add_argument("--source", metavar="EXE", help="executable that acts; default: one that no rule names")
    who.add_argument(
        "--parent", metavar="EXE", help="executable of its parent; decides nothing, and the answer says so"
    )
    owner = who.add_mutually_exclusive_group()
    owner.add_argument("--owner", action="store_true", default=None, help="it acts as the object's owner (default)")
    owner.add_argument("--not-owner", dest="owner", action="store_false", help="it does not")
    owner.add_argument("--uid", type=int, metavar="N", help="user that acts; the owner is looked up with --rootfs")
    who.add_argument("--owner-uid", type=int, metavar="N", help="user that owns the object; with --uid")
    who.add_argument(
        "--argument", action="append", metavar="WORD", help="argument of a program that is executed; repeatable"
    )
    terminal = who.add_mutually_exclusive_group()
    terminal.add_argument(
        "--terminal", action="store_true", default=None, help="it has a controlling terminal (default: not known)"
    )
    terminal.add_argument("--no-terminal", dest="terminal", action="store_false", help="it has none")
    who.add_argument("--beyond-quota", action="store_true", help="more went through than quotas allow")
    explain.add_argument(
        "--questions",
        metavar="FILE",
        help="many questions as JSON lines ('-': standard input); an answer for each, likewise",
    )


def _add_render(commands: Any) -> None:  # noqa: ANN401 - argparse's own type is private
    render = commands.add_parser(
        "render",
        help="show what an engine would load for a workload, and which rules it would refuse",
        description="JSON. Exit code 0, also where rules are refused; 1: no policy covers the workload, or one is "
        "invalid.",
    )
    _add_files(render)
    render.add_argument("--engine", choices=ENGINES, required=True)
    render.add_argument("--rootfs", metavar="DIR", help="resolve the symbolic links of this root file system")
    _add_workload(render)
    render.set_defaults(run=_lazily("hauberk.cli.rendering", "render"))


def _add_diff(commands: Any) -> None:  # noqa: ANN401 - argparse's own type is private
    diff = commands.add_parser(
        "diff",
        help="show what becomes allowed, refused and audited from one set of policies to another",
        description="Compares meanings, not texts, for every workload that the policies tell apart. Exit code 0: no "
        "answer differs; 1: some do, or a policy is invalid.",
    )
    diff.add_argument("old", metavar="OLD", help="a policy file, a directory of them, or a bundle")
    diff.add_argument("new", metavar="NEW", help="likewise")
    diff.add_argument("--json", action="store_true", help="answer in JSON")
    _add_posture(diff)
    diff.add_argument(
        "--default",
        choices=("deny", "audit", "allow"),
        help="what a workload gets that no policy covers (default: deny; a bundle's own)",
    )
    _add_cache(diff)
    diff.set_defaults(run=_lazily("hauberk.cli.comparing", "diff"))


def _add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE|DIR",
        help="policy files, directories with *.yaml and *.yml, or one bundle",
    )
    _add_cache(parser)


def _add_cache(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-cache", action="store_true", help="read policies as if they had never been read")


def _add_workload(parser: argparse.ArgumentParser) -> None:
    workload = parser.add_argument_group("workload")
    workload.add_argument(
        "--label", action="append", default=[], metavar="K=V", help="label of the pod or container; repeatable"
    )
    workload.add_argument("--container-name", default="", metavar="N", help="name of the container")
    workload.add_argument("--namespace", default="", metavar="NS", help="namespace of the workload")
    workload.add_argument(
        "--image-digest", default="", metavar="sha256:…", help="of the container's image, for a bundle with a target"
    )
    workload.add_argument("--host", action="store_true", help="the workload is the host itself")
    workload.add_argument(
        "--node-label", action="append", default=[], metavar="K=V", help="label of the host; repeatable"
    )
    workload.add_argument("--host-name", default="", metavar="N", help="name of the host")
    workload.add_argument(
        "--annotation",
        action="append",
        default=[],
        metavar="K=V",
        help="kubearmor-policy or kubearmor-…-posture of the workload; repeatable",
    )
    _add_posture(workload)


def _add_posture(parser: Any) -> None:  # noqa: ANN401 - a parser or one of its groups, whose type is private
    parser.add_argument(
        "--posture", choices=POSTURES, help="what allow-lists do with the rest (default: block; a bundle's own)"
    )
