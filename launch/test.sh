#!/usr/bin/env bash
# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
#
# Sets up and runs the tests, from a fresh clone with Python 3.11+ and pip.
#
#   launch/test.sh                          everything
#   launch/test.sh tests/soups -x           arguments go to pytest
#
#   EXTRAS   extras of soupjax to install (default: test);
#            test,torch-tests also compares with PyTorch's models
#
# Environment: see launch/setup.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

. launch/setup.sh "${EXTRAS:-test}"
ruff check .
ruff format --check .
# Continuous integration has two cores; each file stays on one of them, in the
# order that tests/conftest.py sets.
python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
