#!/usr/bin/env bash
# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
#
# Runs soupjax on a Cloud TPU slice: asks for it as a queued resource, installs
# this checkout on every worker, runs the same command on all of them, asks again
# when the slice is preempted, and gives it back at the end.
#
#   launch/tpu_vm.sh [--dry_run] NAME SOUPJAX_ARGUMENTS...
#
#   BUCKET=my-bucket launch/tpu_vm.sh g14-7 --sweep_index=7 \
#     --config=configs/finetune/vit_g14_i1k.py --workdir=/bucket/g14
#
# NAME is that of the slice: one a member of a sweep, all with one --workdir. A
# member that was preempted goes on from its last state. --dry_run prints the
# commands and runs none.
#
#   ZONE      default us-east5-a
#   TYPE      of the slice, default v6e-32
#   RUNTIME   image, default v2-alpha-tpuv6e; its Python is too old, uv brings one
#   SPOT      1 (default) for preemptible machines, 0 for others
#   BUCKET    mounted as /bucket on every worker, with gcsfuse, for --workdir.
#             With hierarchical namespace: renames must be atomic.
#   RETRIES   how often to ask for a new slice, default 100
#   KEEP      1 leaves the slice there at the end
#   POLL      seconds between looks at its state, default 60
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

dry_run=0
if [[ "${1:-}" == --dry_run ]]; then
  dry_run=1
  shift
fi
if [[ $# -lt 2 || "$1" == -* ]]; then
  sed -n '5,28s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
name="$1"
shift

zone="${ZONE:-us-east5-a}"
archive="${TMPDIR:-/tmp}/soupjax-$name.tar.gz"
printf -v arguments ' %q' "$@"

setup="set -e; mkdir -p ~/soupjax; tar -xzf ~/soupjax.tar.gz -C ~/soupjax"
setup+="; cd ~/soupjax; curl -LsSf https://astral.sh/uv/install.sh | sh"
setup+="; ~/.local/bin/uv venv --quiet --allow-existing --python 3.12"
setup+="; ~/.local/bin/uv pip install --quiet '.[tpu]'"
if [[ -n "${BUCKET:-}" ]]; then
  setup+="; mountpoint -q /bucket || { sudo mkdir -p /bucket"
  setup+="; sudo chown \$USER /bucket; gcsfuse --implicit-dirs $BUCKET /bucket; }"
fi
main="cd ~/soupjax; .venv/bin/soupjax --distributed$arguments"

run() {
  if ((dry_run)); then
    printf '%q ' "$@" && echo
  else
    "$@"
  fi
}

tpus() {
  run gcloud compute tpus "$@" --zone="$zone"
}

on_all_workers() {
  tpus tpu-vm ssh "$name" --worker=all --command="$1"
}

state() {
  gcloud compute tpus queued-resources describe "$name" --zone="$zone" \
    --format='value(state.state)' 2> /dev/null || echo MISSING
}

create() {
  local options=()
  [[ "${SPOT:-1}" == 0 ]] || options+=(--spot)
  tpus queued-resources create "$name" --node-id="$name" \
    --accelerator-type="${TYPE:-v6e-32}" \
    --runtime-version="${RUNTIME:-v2-alpha-tpuv6e}" \
    ${options[@]+"${options[@]}"}
}

delete() {
  tpus queued-resources delete "$name" --force --quiet
}

# Waits for the slice; 1 if it will not come.
wait_until_active() {
  if ((dry_run)); then
    echo "# wait until $name is ACTIVE"
    return 0
  fi
  while true; do
    case "$(state)" in
      ACTIVE) return 0 ;;
      FAILED | SUSPEND* | DELETING | MISSING) return 1 ;;
      *) sleep "${POLL:-60}" ;;
    esac
  done
}

give_back() {
  [[ "${KEEP:-0}" == 1 ]] || delete
}

run git archive --format=tar.gz --output="$archive" HEAD
for ((attempt = 0; attempt <= ${RETRIES:-100}; attempt++)); do
  if ((dry_run)) || [[ "$(state)" == MISSING ]]; then
    create
  fi
  status=0
  if wait_until_active; then
    tpus tpu-vm scp "$archive" "$name:soupjax.tar.gz" --worker=all \
      && on_all_workers "$setup" \
      && on_all_workers "$main" \
      || status=$?
    if ((status == 0)); then
      give_back
      exit 0
    fi
    # A preempted slice needs a while until it says so.
    sleep "${POLL:-60}"
    if [[ "$(state)" == ACTIVE ]]; then
      echo "The run on $name failed; the slice is still there to look at." >&2
      echo "To give it back: gcloud compute tpus queued-resources delete" \
        "$name --zone=$zone --force" >&2
      exit "$status"
    fi
  fi
  echo "$name was preempted or did not come: asking again." >&2
  delete || true
done
echo "Gave up on $name after ${RETRIES:-100} retries." >&2
exit 1
