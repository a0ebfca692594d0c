# SPDX-License-Identifier: Apache-2.0
"""The fuzzing targets, without the fuzzer."""
