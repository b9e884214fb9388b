#!/usr/bin/env bash
# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
#
# Sets up and runs the whole workflow on a laptop's CPU, from a fresh clone with
# Python 3.11+ and pip: pretraining, a sweep of fine-tunes, soups and a report.
# The three commands are printed as they run; change them for your own data.
#
#   launch/local.sh                         writes to runs/digits
#   launch/local.sh DIR                     writes to DIR; resumes after a kill
#   launch/local.sh DIR --dry_run           only prints the plan of each command
#
# Environment: see launch/setup.sh.
set -euo pipefail
# A relative DIR is relative to where the command was typed.
from="$PWD"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

workdir="$PWD/runs/digits"
if [[ "${1:-}" == --help || "${1:-}" == -h ]]; then
  sed -n '5,11s/^# \{0,1\}//p' launch/local.sh
  exit 0
fi
if [[ $# -gt 0 && "$1" != -* ]]; then
  workdir="$1"
  [[ "$workdir" == /* ]] || workdir="$from/$workdir"
  shift
fi

base="$workdir/pretrained"
sweep="$workdir/sweep"
commands=(
  "soupjax --config=configs/finetune/digits.py:pretrain --workdir=$(printf %q "$base")"
  "soupjax --config=configs/finetune/digits.py --sweep --workdir=$(printf %q "$sweep") \
--config.init.path=$(printf %q "$base/ingredients/last")"
  "soupjax --config=configs/cook.py:sweep=$(printf %q "$sweep") --workdir=$(printf %q "$workdir/soups") \
--config.cook.metric=loss,prec@1"
)

dry_run=""
if [[ $# -eq 1 && "$1" =~ ^--dry_run(=true)?$ ]]; then
  dry_run=" --dry_run"
elif [[ $# -gt 0 ]]; then
  echo "launch/local.sh takes a directory and --dry_run, not: $*" >&2
  echo "To change anything else, edit and type the commands that it runs:" >&2
  printf '  %s\n' "${commands[@]}" >&2
  exit 2
fi

. launch/setup.sh demo
step=0
for command in "${commands[@]}"; do
  step=$((step + 1))
  printf '\n[%s/%s] %s\n' "$step" "${#commands[@]}" "$command$dry_run"
  # The plan of cooking reads the sweep, which a dry run does not write.
  if [[ -n "$dry_run" && $step -eq 3 && ! -e "$sweep/config.json" ]]; then
    echo "$sweep is made by step 2; the plan of this step reads it."
    continue
  fi
  eval "$command$dry_run"
done
