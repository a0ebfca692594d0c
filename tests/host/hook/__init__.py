# SPDX-License-Identifier: Apache-2.0
"""The OCI hook under real runtimes, as root."""
