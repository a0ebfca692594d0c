# SPDX-License-Identifier: Apache-2.0
"""Proof, without enforcement, that the container material works."""
