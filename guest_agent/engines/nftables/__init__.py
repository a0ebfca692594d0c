# SPDX-License-Identifier: Apache-2.0
"""Packets held by nftables: a pure planner, an adapter that keeps the kernel to the plan, and a simulator."""
