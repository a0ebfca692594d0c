# SPDX-License-Identifier: Apache-2.0
"""Network policies with real packets, between network namespaces of the tests' own."""
