# SPDX-License-Identifier: Apache-2.0
"""The agent's gRPC service, on a Unix socket of root's: what it tells about itself, and how a successor gets in.

A submission is believed no more than a bundle on a disk: signatures decide. The rules about packets are taken away on
request in host mode only, whose machine is its operator's.

gRPC is loaded here and nowhere else in the agent, and with few threads: it is the largest part of the agent's memory.
"""

from __future__ import annotations

import os
import queue
from concurrent import futures
from typing import TYPE_CHECKING, Any, Final

import grpc

from guest_agent.agent import MAXIMUM_BUNDLE_BYTES, MAXIMUM_SIGNATURE_BYTES
from guest_agent.engines.network_port import Cgroup, EngineError, Interface
from guest_agent.events.alerts import printable
from guest_agent.events.stream import TooManySubscribersError
from guest_agent.successor import SubmitError
from hauberk import __version__
from hauberk._wire import hauberk_v1_agent_pb2 as messages
from hauberk._wire import hauberk_v1_agent_pb2_grpc as stubs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from guest_agent.agent import Agent
    from guest_agent.engines.network_port import Attachment
    from guest_agent.engines.port import Probe
    from guest_agent.events.alerts import Alert
    from guest_agent.network.controller import NamespaceStatus
    from guest_agent.records import Record
    from hauberk.policy.coverage import Unenforced

_THREADS: Final = 20  # 16 alert readers may follow, and each holds one
_POLL_SECONDS: Final = 0.5
_MAXIMUM_MESSAGE_BYTES: Final = MAXIMUM_BUNDLE_BYTES + MAXIMUM_SIGNATURE_BYTES + (1 << 16)


class AgentService(stubs.AgentServicer):
    """Answers from the agent's state."""

    def __init__(self, agent: Agent) -> None:
        """Serve this agent."""
        self._agent = agent

    def GetStatus(  # noqa: N802 - gRPC's name
        self, _request: messages.GetStatusRequest, _context: grpc.ServicerContext
    ) -> messages.Status:
        """Tell what is sealed and what this kernel offers."""
        agent = self._agent
        policy_set = agent.policy_set
        status = messages.Status(
            version=__version__,
            mode=agent.configuration.mode,
            sealed_digest=agent.engine.sealed_digest() or "",
            engines=_engines(agent),
            counters=agent.counters(),
            workloads=len(agent.registry),
            warnings=agent.warnings(),
            selections=[messages.PolicySelection(policy=name, selected=count) for name, count in agent.selected()],
        )
        if policy_set is not None:
            status.bundle_name = policy_set.name
            status.bundle_version = policy_set.version
            status.bundle_default = policy_set.default
            status.signed_by = policy_set.signed_by
            status.bundle_digest = policy_set.digest
            status.successors = policy_set.succession.number
            status.successor_rule = policy_set.succession.rule
            status.expires = policy_set.succession.expires
            status.policies.extend(policy.name for policy in policy_set.policies)
            status.unenforced.extend(map(_unenforced, policy_set.unenforced))
            status.postures.update(policy_set.postures)
        return status

    def ListWorkloads(  # noqa: N802 - gRPC's name
        self, _request: messages.ListWorkloadsRequest, _context: grpc.ServicerContext
    ) -> messages.ListWorkloadsResponse:
        """List the workloads that are not gone."""
        found = []
        for workload, record in self._agent.workloads():
            identity = workload.identity
            found.append(
                messages.Workload(
                    id=workload.workload_id,
                    container_id=workload.container_id,
                    state=workload.state.value,
                    pid=identity.pid if identity else 0,
                    cgroup=printable(identity.cgroup_path) if identity else "",
                    mount_namespace=identity.mount_namespace if identity else 0,
                    table_digest=workload.table_digest,
                    policies=record.policies if record else (),
                    container_name=printable(record.container_name) if record else "",
                    namespace=printable(record.namespace) if record else "",
                    aliases=map(printable, record.aliases) if record else (),
                    unenforced=record.unenforced if record else 0,
                )
            )
        return messages.ListWorkloadsResponse(workloads=found)

    def SubmitBundle(  # noqa: N802 - gRPC's name
        self, request: messages.SubmitBundleRequest, context: grpc.ServicerContext
    ) -> messages.SubmitBundleResponse:
        """Put a successor in force, or refuse it with FAILED_PRECONDITION and the reason."""
        try:
            done = self._agent.submit(request.bundle, request.signature)
        except SubmitError as error:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, printable(str(error)))
        return messages.SubmitBundleResponse(
            bundle_name=done.name,
            bundle_version=done.version,
            bundle_digest=done.digest,
            successors=done.number,
            workloads=done.workloads,
            refused=[
                messages.RefusedWorkload(container_id=container, reason=printable(reason))
                for container, reason in done.refused
            ],
        )

    def GetNetwork(  # noqa: N802 - gRPC's name
        self, _request: messages.GetNetworkRequest, _context: grpc.ServicerContext
    ) -> messages.NetworkStatus:
        """Tell what holds in each network namespace."""
        agent = self._agent
        status = messages.NetworkStatus(engine=_engine_of_packets(agent))
        if agent.network is None:
            return status
        status.problems.extend(map(printable, agent.network.problems()))
        known = {workload.workload_id: (workload.container_id, record) for workload, record in agent.workloads()}
        status.namespaces.extend(_namespace(one, known) for one in agent.network.status())
        return status

    def FlushNetwork(  # noqa: N802 - gRPC's name
        self, _request: messages.FlushNetworkRequest, context: grpc.ServicerContext
    ) -> messages.FlushNetworkResponse:
        """Take the rules about packets away, or refuse that with FAILED_PRECONDITION and the reason."""
        try:
            return messages.FlushNetworkResponse(namespaces=self._agent.flush_network())
        except EngineError as error:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, printable(str(error)))
            raise

    def WatchAlerts(  # noqa: N802 - gRPC's name
        self, request: messages.WatchAlertsRequest, context: grpc.ServicerContext
    ) -> Iterator[messages.Alert]:
        """Stream the alerts kept, and with follow those to come."""
        if not request.follow:
            for alert in self._agent.alerts.recent():
                yield _message(alert)
            return
        try:
            recent, subscription = self._agent.alerts.subscribe()
        except TooManySubscribersError as error:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
            return
        try:
            for alert in recent:
                yield _message(alert)
            while context.is_active():
                try:
                    following = subscription.take(_POLL_SECONDS)
                except queue.Empty:
                    continue
                if following is None:
                    return
                yield _message(following)
        finally:
            subscription.close()


def _engines(agent: Agent) -> list[messages.Engine]:
    of_packets = _engine_of_packets(agent)
    return [_engine(agent.engine.name, agent.engine.probe()), *([] if of_packets is None else [of_packets])]


def _engine_of_packets(agent: Agent) -> messages.Engine | None:
    if agent.packets is None or agent.packets_probe is None:
        return None
    return _engine(agent.packets.name, agent.packets_probe)


def _engine(name: str, probe: Probe) -> messages.Engine:
    return messages.Engine(name=name, available=probe.available, reason=probe.reason, details=dict(probe.details))


def _namespace(told: NamespaceStatus, known: Mapping[int, tuple[str, Record | None]]) -> messages.NetworkNamespace:
    found = messages.NetworkNamespace(inode=told.inode, own=told.own, digest=told.held, problem=printable(told.problem))
    for endpoint in told.endpoints:
        container, record = known.get(endpoint.identifier, ("", None))
        found.endpoints.append(
            messages.NetworkEndpoint(
                id=endpoint.identifier,
                container_id=container,
                container_name=printable(record.container_name) if record else "",
                attachment=_attachment(endpoint.attachment),
                rules=sum(len(rule_set.rules) for rule_set in endpoint.rule_sets),
            )
        )
    for quota in told.quotas:
        found.quotas.append(
            messages.NetworkQuota(
                name=quota.name,
                policy=printable(quota.policy),
                direction=quota.direction.value,
                container_id=known.get(quota.endpoint or 0, ("", None))[0],
                used_bytes=quota.used_bytes,
                limit_bytes=quota.limit_bytes,
                seconds=quota.seconds,
            )
        )
    return found


def _attachment(attachment: Attachment) -> str:
    match attachment:
        case Cgroup():
            return f"cgroup {attachment.identifier}"
        case Interface():
            return f"interface {printable(attachment.name)}"
        case _:
            return "whole"


def _unenforced(told: Unenforced) -> messages.UnenforcedRule:
    origin = told.origin
    return messages.UnenforcedRule(
        policy=printable(origin.policy),
        field=origin.field,
        file=printable(origin.file),
        line=origin.line,
        column=origin.column,
        rule=printable(told.rule),
        reason=told.reason,
        instead=told.instead,
    )


def _message(alert: Alert) -> messages.Alert:
    """Give an alert as a message, which takes whole characters only: one strange name must not end a stream."""
    members: dict[str, Any] = {
        key: printable(value) if isinstance(value, str) else value for key, value in alert.items()
    }
    return messages.Alert(**members)


def serve(agent: Agent, path: Path) -> grpc.Server:
    """Listen on a Unix socket, mode 0600. Raises OSError when that cannot be."""
    server = grpc.server(
        futures.ThreadPoolExecutor(_THREADS, thread_name_prefix="grpc"),
        options=(("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", _MAXIMUM_MESSAGE_BYTES)),
        maximum_concurrent_rpcs=_THREADS,
    )
    stubs.add_AgentServicer_to_server(AgentService(agent), server)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.exists() and not path.is_socket():
        message = f"{path} exists and is not a socket; it is left alone: move it away and start the agent again"
        raise OSError(message)
    path.unlink(missing_ok=True)
    before = os.umask(0o177)
    try:
        if not server.add_insecure_port(f"unix:{path}"):
            message = f"cannot listen on {path}; is its directory writable for root?"
            raise OSError(message)
        server.start()
    except RuntimeError as error:
        message = f"cannot listen on {path}: {error}"
        raise OSError(message) from error
    finally:
        os.umask(before)
    return server
