# SPDX-License-Identifier: Apache-2.0
"""What runs inside containers in the vm lane and the demo, and what makes those containers."""
