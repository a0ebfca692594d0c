# SPDX-License-Identifier: Apache-2.0
"""Policies: documents -> models -> rules in one normal form -> decisions.

Import the submodule that is needed: ``rules`` (the normal form and precedence), ``globs`` (matching), ``documents``
and ``models`` (reading YAML, with located errors), ``vocabulary`` and ``traffic`` (the words and texts that documents
hold), ``schema`` (the same for editors), ``normalise`` and ``selectors`` (which rules a workload gets),
``resolution`` (what paths lead to in a root file system), ``explain`` (what would happen if). YAML and pydantic are
imported only when a document is read.
"""
