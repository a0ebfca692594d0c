# SPDX-License-Identifier: Apache-2.0
"""The OCI hook and the agent end of its socket, without root."""
