# SPDX-License-Identifier: Apache-2.0
"""The fixed words of policies: protocols, capabilities, presets, USB classes, services, types of ICMP, entities.

Data alone, so that the models, the rules and an engine name the same things without importing each other. System calls
have a module of their own, for their number.
"""

from __future__ import annotations

PROTOCOLS = (
    "tcp", "udp", "raw", "icmp", "icmpv6", "sctp", "stream", "dgram", "rdm", "seqpacket", "dccp", "packet", "all",
)  # fmt: skip
"""What ``matchProtocols`` names: protocols and socket types. Policies write them in lower or in upper case."""

CAPABILITIES = (
    "chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap",
    "linux_immutable", "net_bind_service", "net_broadcast", "net_admin", "net_raw", "ipc_lock", "ipc_owner",
    "sys_module", "sys_rawio", "sys_chroot", "sys_ptrace", "sys_pacct", "sys_admin", "sys_boot", "sys_nice",
    "sys_resource", "sys_time", "sys_tty_config", "mknod", "lease", "audit_write", "audit_control", "setfcap",
    "mac_override", "mac_admin", "syslog", "wake_alarm", "block_suspend", "audit_read", "perfmon", "bpf",
    "checkpoint_restore",
)  # fmt: skip
"""Linux's capabilities without ``CAP_``, each at the index that is its number (capabilities(7), linux/capability.h)."""

PRESETS = ("anonymousMapExec", "filelessExec", "protectEnv", "exec", "protectProc")
"""Names of KubeArmor's presets."""

DEVICE_CLASSES = {
    "AUDIO": 1, "COMMUNICATION-CDC": 2, "HID": 3, "PHYSICAL": 5, "IMAGE": 6, "PRINTER": 7, "MASS-STORAGE": 8, "HUB": 9,
    "CDC-DATA": 10, "SMART-CARD": 11, "CONTENT-SECURITY": 13, "VIDEO": 14, "PERSONAL-HEALTHCARE": 15,
    "AUDIO/VIDEO": 16, "BILLBOARD": 17, "TYPE-C-BRIDGE": 18, "BULK-DISPLAY": 19, "MCTP": 20, "I3C": 60,
    "DIAGNOSTIC": 220, "WIRELESS-CONTROLLER": 224, "MISCELLANEOUS": 239, "APPLICATION-SPECIFIC": 254,
    "VENDOR-SPECIFIC": 255,
}  # fmt: skip
"""USB class codes by name (usb.org, "Defined Class Codes"). Policies write names in any case."""

ALL_DEVICES = "ALL"
"""The class that stands for every device."""

SERVICES = {
    "ftp": 21, "ssh": 22, "telnet": 23, "smtp": 25, "dns": 53, "domain": 53, "bootps": 67, "bootpc": 68, "tftp": 69,
    "http": 80, "kerberos": 88, "pop3": 110, "sunrpc": 111, "ntp": 123, "imap2": 143, "imap": 143, "snmp": 161,
    "snmp-trap": 162, "bgp": 179, "ldap": 389, "https": 443, "submissions": 465, "syslog": 514, "submission": 587,
    "ldaps": 636, "domain-s": 853, "rsync": 873, "imaps": 993, "pop3s": 995, "ms-sql-s": 1433, "nfs": 2049,
    "mysql": 3306, "ms-wbt-server": 3389, "sip": 5060, "postgresql": 5432, "amqp": 5672, "redis": 6379,
    "http-alt": 8080,
}  # fmt: skip
"""Port numbers by service name (IANA). A list of our own: /etc/services differs between the machine where a policy is
checked and the one where it is enforced.
"""

ICMP_TYPES = {
    4: {
        "EchoReply": 0, "DestinationUnreachable": 3, "Redirect": 5, "Echo": 8, "EchoRequest": 8,
        "RouterAdvertisement": 9, "RouterSelection": 10, "TimeExceeded": 11, "ParameterProblem": 12, "Timestamp": 13,
        "TimestampReply": 14, "Photuris": 40, "ExtendedEchoRequest": 42, "ExtendedEchoReply": 43,
    },
    6: {
        "DestinationUnreachable": 1, "PacketTooBig": 2, "TimeExceeded": 3, "ParameterProblem": 4, "EchoRequest": 128,
        "EchoReply": 129, "MulticastListenerQuery": 130, "MulticastListenerReport": 131, "MulticastListenerDone": 132,
        "RouterSolicitation": 133, "RouterAdvertisement": 134, "NeighborSolicitation": 135,
        "NeighborAdvertisement": 136, "RedirectMessage": 137, "RouterRenumbering": 138,
        "ICMPNodeInformationQuery": 139, "ICMPNodeInformationResponse": 140,
        "InverseNeighborDiscoverySolicitation": 141, "InverseNeighborDiscoveryAdvertisement": 142,
        "HomeAgentAddressDiscoveryRequest": 144, "HomeAgentAddressDiscoveryReply": 145, "MobilePrefixSolicitation": 146,
        "MobilePrefixAdvertisement": 147, "DuplicateAddressRequestCodeSuffix": 157,
        "DuplicateAddressConfirmationCodeSuffix": 158, "ExtendedEchoRequest": 160, "ExtendedEchoReply": 161,
    },
}  # fmt: skip
"""Types of ICMP by family and by the name that Cilium's policies use (IANA, "ICMP Type Numbers", "ICMPv6 Parameters").
"""

ENTITIES = (
    "all", "world", "cluster", "host", "remote-node", "kube-apiserver", "health", "init", "ingress", "unmanaged",
    "none",
)  # fmt: skip
"""What Cilium's policies call peers that have no labels."""
LOCAL_ENTITIES = frozenset(("all", "none", "host", "world"))
"""Those that a machine knows without being told."""

PORTLESS_PROTOCOLS = ("VRRP", "IGMP", "GRE", "IPIP", "IPV6", "ESP", "AH")
"""Protocols on top of IP that Cilium's policies can name and that have no ports."""


def device_class(text: str) -> int | None:
    """Give the USB class code that a policy's ``class`` names, None for ``ALL``.

    Names count in any case; numbers are decimal or ``0x`` and hexadecimal, from 1 to 255. Raises :class:`ValueError`
    for anything else.
    """
    name = text.upper()
    if name == ALL_DEVICES:
        return None
    if name in DEVICE_CLASSES:
        return DEVICE_CLASSES[name]
    digits, base = (text[2:], 16) if text[:2] in ("0x", "0X") else (text, 10)
    if digits.isascii() and digits.isalnum():
        number = int(digits, base)
        if 1 <= number <= 255:  # noqa: PLR2004 - one byte; class 0 means "look at the interfaces" and names no class
            return number
    message = f"{text[:80]!r} is no class of USB devices"
    raise ValueError(message)
