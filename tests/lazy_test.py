# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Names of packages whose modules are imported at first use."""

import soupjax as sj


def test_dir_lists_every_public_name_once():
  names = dir(sj)
  assert len(names) == len(set(names))
  assert "importlib" not in names
  assert {"uniform_soup", "evaluators", "models", "rules"} <= set(names)
