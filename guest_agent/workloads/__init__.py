# SPDX-License-Identifier: Apache-2.0
"""Workloads: what they are, whether they are what they claim, and what is in force for them."""
