#!/usr/bin/env bash
# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
#
# Sets up and runs the main job, from a fresh clone with Python 3.11+ and pip:
# pretraining, a sweep of fine-tunes, soups and a report, on a laptop's CPU.
#
#   launch/local.sh                         into runs/digits
#   launch/local.sh DIR                     into DIR; goes on where it was
#   launch/local.sh DIR --config.sweep.size=16
#
# Environment: see launch/setup.sh.
set -euo pipefail
# A path given is meant from where the command was typed.
from="$PWD"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

workdir="$PWD/runs/digits"
if [[ $# -gt 0 && "$1" != -* ]]; then
  workdir="$1"
  [[ "$workdir" == /* ]] || workdir="$from/$workdir"
  shift
fi

. launch/setup.sh demo
soupjax --config=configs/digits.py --workdir="$workdir" "$@"
