# SPDX-License-Identifier: Apache-2.0
"""Valid documents of all kinds, which together hold every field of the language."""

from __future__ import annotations

CONTAINER = """\
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata:
  name: everything
  namespace: prod
  labels: {team: a}
spec:
  selector:
    matchLabels:
      app: web
      kubearmor.io/container.name: "[a, b]"
    matchExpressions:
      - key: label
        operator: NotIn
        values: [tier=test]
  severity: 5
  tags: [x, y]
  message: spec
  action: Audit
  process:
    severity: 6
    tags: [p]
    message: section
    action: Block
    matchPaths:
      - path: /bin/sh
        ownerOnly: true
        pts: false
        allowedArgs: ["-c", "true"]
        fromSource:
          - path: /usr/bin/nginx
        severity: 10
        tags: [z]
        message: rule
        action: Allow
      - execname: bash
    matchDirectories:
      - dir: /tmp/
        recursive: true
        ownerOnly: false
        pts: true
        fromSource: [{path: /bin/cat}]
    matchPatterns:
      - pattern: /home/*/bin/**
        ownerOnly: true
  file:
    matchPaths:
      - path: /etc/shadow
        readOnly: true
        pts: true
    matchDirectories:
      - dir: /
        readOnly: false
        fromSource: [{path: /bin/cat}]
    matchPatterns:
      - pattern: /**/*.key
        readOnly: true
        ownerOnly: true
  network:
    severity: 4
    matchProtocols:
      - protocol: tcp
        pts: true
        fromSource: [{path: /usr/bin/curl}]
        action: Allow
      - protocol: UDP, icmp
    matchDNSQueries:
      - domain: example.com
        fromSource: [{path: /usr/bin/curl}]
      - domain: a.example, _b.example.
  capabilities:
    matchCapabilities:
      - capability: net_raw
        fromSource: [{path: /bin/ping}]
      - capability: sys_admin,bpf
  syscalls:
    severity: 2
    tags: [calls]
    message: calls
    matchSyscalls:
      - syscall: [unlink, unlinkat]
        fromSource:
          - path: /bin/rm
          - dir: /opt/
            recursive: true
    matchPaths:
      - path: /etc/
        recursive: true
        syscall: [openat2]
      - path: /etc/passwd
        syscall: [chmod]
        fromSource: [{dir: /usr/bin/}]
  presets:
    - name: filelessExec
      action: Block
    - name: protectEnv
  apparmor: |
    deny /etc/ssl/** w,
status: {status: OK}
"""

HOST = """\
apiVersion: security.kubearmor.com/v1
kind: KubeArmorHostPolicy
metadata:
  name: host
spec:
  nodeSelector:
    matchLabels:
      kubearmor.io/hostname: node-1,node-2
      kubearmor.io/hostnamereg: node-*
      kubernetes.io/os: linux
  severity: 1
  action: Block
  process:
    matchPaths:
      - path: /usr/bin/apt
  file:
    matchPatterns:
      - pattern: /tmp/*
  network:
    matchProtocols:
      - protocol: raw
        fromSource: [{path: /usr/bin/ping}]
    matchDNSQueries:
      - domain: example.com
  capabilities:
    matchCapabilities:
      - capability: sys_module
        fromSource: [{path: /usr/sbin/modprobe}]
  syscalls:
    matchSyscalls:
      - syscall: [mount]
  device:
    severity: 9
    tags: [usb]
    message: no sticks
    action: Audit
    matchDevice:
      - class: MASS-STORAGE
        subClass: 6
        protocol: 80
        level: 1
        severity: 8
        tags: [stick]
        message: stick
        action: Block
      - class: hid
      - class: "0x0e"
      - class: "14"
      - class: ALL
  apparmor: deny /x w,
"""

CLUSTER = """\
apiVersion: security.kubearmor.com/v1
kind: KubeArmorClusterPolicy
metadata:
  name: cluster
spec:
  selector:
    matchExpressions:
      - key: namespace
        operator: NotIn
        values: [kube-system, monitoring]
      - key: label
        operator: In
        values: [app=web]
  process:
    matchPaths:
      - execname: apt
  file:
    matchDirectories:
      - dir: /etc/
        recursive: true
        readOnly: true
  network:
    matchProtocols:
      - protocol: SEQPACKET
  capabilities:
    matchCapabilities:
      - capability: checkpoint_restore
  syscalls:
    matchPaths:
      - path: /etc/
        syscall: [rmdir]
  presets:
    - name: anonymousMapExec
      action: Audit
  apparmor: deny /x w,
"""

NETWORK = """\
apiVersion: security.kubearmor.com/v1
kind: KubeArmorNetworkPolicy
metadata:
  name: packets
spec:
  nodeSelector:
    matchLabels:
      kubearmor.io/hostname: "*"
  severity: 3
  tags: [net]
  message: packets
  action: Allow
  ingress:
    - from:
        - ipBlock:
            cidr: 10.0.0.0/8
        - ipBlock:
            cidr: fd00::/8
      iface: [eth0, "wg*"]
      ports:
        - port: "443"
          protocol: TCP
        - port: ssh
        - port: "8000"
          endPort: 8080
          protocol: sctp
      severity: 2
      tags: [in]
      message: in
      action: Block
  egress:
    - to:
        - ipBlock:
            cidr: 192.0.2.7
      ports:
        - port: dns
          protocol: udp
    - limit: 500MB
      duration: 1h30m
"""

QUOTA = """\
apiVersion: security.kubearmor.com/v1
kind: KubeArmorNetworkPolicy
metadata:
  name: quota
spec:
  selector:
    matchLabels:
      app: web
    matchExpressions:
      - key: label
        operator: In
        values: [tier=front]
  level: Policy
  ingress:
    - limit: "5"
      duration: 24h
  egress:
    - limit: 64K
      duration: 45s
      action: Audit
"""

ALL = (CONTAINER, HOST, CLUSTER, NETWORK, QUOTA)
