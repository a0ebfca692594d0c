# SPDX-License-Identifier: Apache-2.0
# The one thing that installs anything (`make fuzz`: the fuzzer). `make setup` is safe to repeat: what is there is left alone.
# The caller's PIP_*, *_proxy and SSL_* variables reach pip, apt and debootstrap unchanged.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory --no-builtin-rules
ifndef SIDE_BY_SIDE
.NOTPARALLEL:
endif

SYSTEM_PYTHON := /usr/bin/python3
VENV := .venv
PYTHON := $(VENV)/bin/python
STAMPS := .cache/stamps
PYTEST := $(PYTHON) -m pytest

# System packages, each for a reason.
APT := \
  python3 python3-venv \
  clang libbpf-dev linux-libc-dev libbpf1 \
  gcc libc6-dev \
  runc crun nftables iproute2 util-linux procps kmod \
  podman netavark containerd \
  qemu-system-x86 debootstrap busybox-static e2fsprogs apt-utils
# python3*: the interpreter the hook and the guest use too · clang, libbpf: BPF objects and their loader
# gcc, libc6-dev: the programs that tests and demo run inside containers · runc … kmod: the host lane
# podman, containerd: what starts containers with our hooks in the host lane (tests run daemons of their own, in temporary directories);
#   netavark: the smaller of the two network stacks podman may depend on
# qemu … e2fsprogs: the VM lane

BPF_SOURCES := $(wildcard guest_agent/engines/*/*.bpf.c)
PROTO_SOURCES := $(shell find proto -name '*.proto' 2>/dev/null)

include $(wildcard tests/vm/containers/build.mk)

.PHONY: help setup system environment build vm nft-release demo test test-long test-unit test-host test-vm test-unit-then-vm lint bench-hook bench-lsm bench-network bench-policy fuzz clean
.DEFAULT_GOAL := help

help:
	@echo 'setup      everything that is needed, into .venv and .cache (apt packages too; needs root)'
	echo 'demo       setup, then the main job, one line per step'
	echo 'test       setup, then lint and the unit, host and vm lanes'
	echo 'test-long  test, then large volumes and repetitions'
	echo 'fuzz       every reader of hostile bytes for SECONDS_EACH=60, or TARGETS="policies …"'
	echo 'lint | test-unit | test-host | test-vm | bench-hook | bench-lsm | bench-network | bench-policy | clean'

setup: system environment build vm

system:
	@missing=""
	for package in $(APT); do
	  dpkg-query -W -f '$${db:Status-Status}' "$$package" 2>/dev/null | grep -qx installed || missing="$$missing $$package"
	done
	if [ -n "$$missing" ]; then
	  echo "setup: installing$$missing"
	  log=$$(mktemp)
	  { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install $$missing; } \
	    >"$$log" 2>&1 </dev/null || { cat "$$log" >&2; echo "setup: apt failed (see above); it needs root and Debian 12's mirrors" >&2; exit 1; }
	  rm -f "$$log"
	fi

environment: $(STAMPS)/environment

$(PYTHON):
	@$(SYSTEM_PYTHON) -m venv $(VENV)

$(STAMPS)/environment: pyproject.toml $(PYTHON)
	@echo 'setup: Python packages into $(VENV)'
	mkdir -p $(STAMPS)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --editable '.[agent,nri,host,dev]'
	touch $@

# Stubs and BPF objects; an editable install has made them once, this follows the sources.
build: $(STAMPS)/build $(if $(CONTAINER_PROGRAMS),container-programs)

$(STAMPS)/build: $(STAMPS)/environment hatch_build.py $(BPF_SOURCES) $(wildcard guest_agent/engines/*/*.bpf.h) $(PROTO_SOURCES)
	@$(PYTHON) hatch_build.py
	touch $@

vm: $(STAMPS)/environment
	@$(PYTHON) -m tests.vm.harness prepare

# A current nft for tests beside the machine's; unpacked, never installed.
nft-release: $(STAMPS)/environment
	@$(PYTHON) -m tests.host.network.nft_release >/dev/null

demo: setup
	@$(PYTHON) -m tests.demo

lint: environment build
	@$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/mypy --scripts-are-modules hooks/hauberk-hook
	$(VENV)/bin/mypy --scripts-are-modules hooks/hauberk-add-hooks
	$(VENV)/bin/mypy --scripts-are-modules hooks/hauberk-fail-open
	$(VENV)/bin/lint-imports --cache-dir .cache/import-linter

test-unit: environment build
	@$(PYTHON) -m coverage run -m pytest tests/unit -m 'not long'
	$(PYTHON) -m coverage report

test-host: environment build nft-release
	@$(PYTEST) tests/host -m 'not long'

test-vm: environment build vm
	@$(PYTEST) tests/vm -m 'not long'

test-unit-then-vm:
	@$(MAKE) test-unit
	$(MAKE) test-vm

# Each lane ends the run if it fails; a lane without a test, or with a skipped one, fails (tests/conftest.py).
# The unit lane takes a processor, and every guest of the vm lane one; the host lane mostly waits, so it goes beside both.
test: setup lint
	@$(MAKE) --jobs=2 --output-sync=target SIDE_BY_SIDE=yes test-host test-unit-then-vm
	echo 'test: lint, unit, host and vm lanes passed'

test-long: test
	@$(PYTEST) tests -m long
	echo 'test-long: passed'

# What it finds is kept in .cache/fuzz.
SECONDS_EACH := 60
TARGETS :=

fuzz: environment build
	@$(PYTHON) -c 'import atheris' 2>/dev/null || $(PYTHON) -m pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	$(PYTHON) -m tests.fuzz --seconds-each $(SECONDS_EACH) $(TARGETS)

bench-hook: setup
	@$(PYTHON) -m benchmarks.bench_hook

bench-lsm: setup
	@$(PYTHON) -m benchmarks.bench_lsm

bench-policy: environment build
	@$(PYTHON) -m benchmarks.bench_policy

# Needs root: it makes network namespaces of its own and removes them. ARGUMENTS="--rounds 3 --rules 0 1000".
ARGUMENTS :=

bench-network: setup .cache/benchmarks/network_traffic
	@$(PYTHON) -m benchmarks.bench_network $(ARGUMENTS)

.cache/benchmarks/network_traffic: benchmarks/network_traffic.c
	@mkdir -p $(@D)
	$(CC) -std=gnu11 -O2 -Wall -Wextra -Werror -Wno-missing-field-initializers -o $@ $<

clean:
	@rm -rf .cache $(VENV) build dist
	find guest_agent hauberk -name '*.bpf.o' -delete
	find hauberk/_wire -name '*_pb2*' -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
