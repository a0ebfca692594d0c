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

CILIUM = """\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata:
  name: endpoints
  namespace: shop
spec:
  endpointSelector:
    matchLabels:
      k8s:app: web
    matchExpressions:
      - key: tier
        operator: NotIn
        values: [test]
      - key: any:canary
        operator: DoesNotExist
  description: the shop
  labels:
    - key: team
      value: a
      source: k8s
  log:
    value: shop
  enableDefaultDeny:
    ingress: true
    egress: false
  ingress:
    - fromCIDRSet:
        - cidr: 10.0.0.0/8
          except: [10.96.0.0/12]
        - cidr: fd00::/8
      toPorts:
        - ports:
            - port: "443"
              protocol: TCP
            - port: "8000"
              endPort: 8080
              protocol: SCTP
            - port: "0"
              protocol: UDP
            - port: "9000"
    - fromEndpoints:
        - {}
        - matchLabels:
            k8s:io.kubernetes.pod.namespace: monitoring
          matchExpressions:
            - key: container:role
              operator: Exists
        - matchLabels:
            reserved:health: ""
    - fromEntities: [world, cluster]
      icmps:
        - fields:
            - type: 8
            - type: EchoRequest
              family: IPv6
  ingressDeny:
    - fromCIDR: [203.0.113.0/24, 198.51.100.7]
  egress:
    - toFQDNs:
        - matchName: api.example.com
        - matchPattern: "*.cdn.example.com"
      toPorts:
        - ports:
            - port: "53"
              protocol: ANY
          rules:
            dns:
              - matchPattern: "*"
    - toEntities: [all]
    - toCIDR: [192.0.2.0/24]
    - toEndpoints:
        - matchLabels:
            app: database
  egressDeny:
    - toCIDRSet:
        - cidr: 169.254.0.0/16
          except: [169.254.20.10/32]
      toPorts:
        - ports:
            - port: "80"
              protocol: TCP
    - toEntities: [host]
      icmps:
        - fields:
            - type: "5"
              family: IPv4
"""

CLUSTERWIDE = """\
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata:
  name: nodes
specs:
  - nodeSelector:
      matchLabels:
        kubernetes.io/hostname: node-1
      matchExpressions:
        - key: role
          operator: In
          values: [edge, core]
    ingress:
      - toPorts:
          - ports:
              - port: "22"
                protocol: TCP
              - protocol: VRRP
    egressDeny:
      - toCIDR: [198.51.100.0/24]
    enableDefaultDeny:
      egress: false
"""

KUBERNETES = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: pods
  namespace: shop
spec:
  podSelector:
    matchLabels:
      app: web
    matchExpressions:
      - key: tier
        operator: In
        values: [front, back]
  policyTypes: [Ingress, Egress]
  ingress:
    - from:
        - ipBlock:
            cidr: 172.17.0.0/16
            except: [172.17.1.0/24]
        - podSelector:
            matchLabels:
              role: frontend
        - namespaceSelector:
            matchLabels:
              kubernetes.io/metadata.name: monitoring
          podSelector:
            matchExpressions:
              - key: scrape
                operator: Exists
      ports:
        - port: 6379
          protocol: TCP
        - port: 32000
          endPort: 32768
        - protocol: SCTP
  egress:
    - to:
        - ipBlock:
            cidr: 10.0.0.0/24
      ports:
        - port: domain
          protocol: UDP
    - {}
"""

CONTENT = """\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata:
  name: content
  annotations:
    hauberk.io/audit: "true"
spec:
  endpointSelector: {}
  ingress:
    - fromCIDR: [10.0.0.0/8]
      toPorts:
        - ports:
            - port: "22"
              protocol: TCP
        - ports:
            - port: "80"
              protocol: TCP
          rules:
            http:
              - method: GET
                path: /public
  ingressDeny:
    - fromCIDR: [203.0.113.0/24]
  egress:
    - toPorts:
        - ports:
            - port: "443"
              protocol: TCP
          serverNames: [api.example.com]
          terminatingTLS:
            secret: {name: x}
        - ports:
            - port: "9092"
          rules:
            kafka:
              - topic: orders
    - toPorts:
        - ports:
            - port: "53"
          rules:
            dns:
              - matchName: api.example.com
"""
"""A policy that audits, and so may say what passes within connections."""

OF_KUBEARMOR = (CONTAINER, HOST, CLUSTER, NETWORK, QUOTA)
ALL = (*OF_KUBEARMOR, CILIUM, CLUSTERWIDE, KUBERNETES)
