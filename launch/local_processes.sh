#!/usr/bin/env bash
# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
#
# Runs one job in several processes on this machine, to rehearse a cluster or to
# give each process some of the GPUs.
#
#   launch/local_processes.sh --count=2 -- --config=configs/mix.py ...
#   launch/local_processes.sh --count=2 --devices=4 -- ...    GPUs 0-3 and 4-7
#   launch/local_processes.sh --count=2 --dry_run -- ...      prints the commands
#
# Arguments after `--` go to soupjax, which must be on the PATH. Output lines of
# all processes but the first start with their number. If one fails, or on
# Ctrl-C, all are stopped; the same command then continues. The exit code is
# that of the process that failed first.
#
#   --count=N      number of processes
#   --devices=D    local GPUs per process (default: every process sees all, as
#                  on CPUs)
#   --port=P       port of the coordinator on localhost (default: a free one)
#   --dry_run      prints the commands and stops
set -euo pipefail

count="" devices="" port="" dry_run=""

fail() {
  echo "local_processes.sh: $*" >&2
  exit 2
}

while [[ $# -gt 0 && "$1" != "--" ]]; do
  case "$1" in
    --count=*) count="${1#*=}" ;;
    --devices=*) devices="${1#*=}" ;;
    --port=*) port="${1#*=}" ;;
    --dry_run) dry_run=1 ;;
    --help | -h)
      sed -n '5,22s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    *) fail "unknown option $1; arguments for soupjax come after --" ;;
  esac
  shift
done
[[ "$count" =~ ^[1-9][0-9]*$ ]] ||
  fail "--count=${count:-(none)}: give the number of processes"
[[ "$devices" =~ ^([1-9][0-9]*)?$ ]] ||
  fail "--devices=$devices: give the number of GPUs for each process"
[[ "$port" =~ ^[0-9]{0,5}$ && "${port:-1}" -lt 65536 ]] ||
  fail "--port=$port: give a number below 65536"
[[ $# -gt 1 ]] || fail "nothing to run: give -- --config=..."
shift
if [[ -z "$port" && -n "$dry_run" ]]; then
  port="PORT"
elif [[ -z "$port" ]]; then
  port="$(python3 -c 'import socket
with socket.socket() as s:
  s.bind(("localhost", 0))
  print(s.getsockname()[1])')"
fi
[[ -n "$dry_run" ]] || command -v soupjax > /dev/null ||
  fail "soupjax is not on the PATH: activate its virtual environment"

# Sets $variables, the environment of a process.
describe() {
  variables=(
    "JAX_COORDINATOR_ADDRESS=localhost:$port"
    "JAX_NUM_PROCESSES=$count"
    "JAX_PROCESS_ID=$1"
  )
  if [[ -n "$devices" ]]; then
    local ids
    ids="$(seq -s, $((devices * $1)) $((devices * $1 + devices - 1)))"
    variables+=("JAX_LOCAL_DEVICE_IDS=$ids")
  fi
}

if [[ -n "$dry_run" ]]; then
  for ((k = 0; k < count; k++)); do
    describe "$k"
    printf '%q ' "${variables[@]}" soupjax --distributed "$@" | sed 's/ $//'
    echo
  done
  exit 0
fi

processes=()
# Each process has 5 s to end by itself, so that it can report the reason.
stop() {
  trap '' INT TERM
  kill -TERM "${processes[@]}" 2> /dev/null || return 0
  for ((try = 0; try < 50; try++)); do
    kill -0 "${processes[@]}" 2> /dev/null || return 0
    sleep 0.1
  done
  kill -KILL "${processes[@]}" 2> /dev/null || true
}
trap 'stop; exit 130' INT
trap 'stop; exit 143' TERM
for ((k = 0; k < count; k++)); do
  describe "$k"
  if [[ $k -eq 0 ]]; then
    env "${variables[@]}" soupjax --distributed "$@" &
  else
    env "${variables[@]}" soupjax --distributed "$@" \
      > >(sed -u "s/^/[$k] /") 2> >(sed -u "s/^/[$k] /" >&2) &
  fi
  processes+=("$!")
done

left=("${processes[@]}")
while [[ ${#left[@]} -gt 0 ]]; do
  sleep 0.1
  running=()
  for process in "${left[@]}"; do
    if kill -0 "$process" 2> /dev/null; then
      running+=("$process")
    else
      code=0
      wait "$process" || code=$?
      if [[ $code -ne 0 ]]; then
        sleep 1 # Other processes often print more about the failure.
        echo "local_processes.sh: a process failed (exit code $code)" >&2
        stop
        exit "$code"
      fi
    fi
  done
  left=(${running[@]+"${running[@]}"})
done
