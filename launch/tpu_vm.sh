#!/usr/bin/env bash
# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
#
# Runs soupjax on a Cloud TPU: asks for one, waits, copies this checkout to every
# worker, runs the same command on all of them, and deletes the TPU at the end.
#
#   launch/tpu_vm.sh --name=soup --zone=us-west4-a --type=v5litepod-16 \
#     -- --config=configs/finetune/vit_b16_i1k.py --workdir=gs://BUCKET/run \
#     --sweep
#   launch/tpu_vm.sh ... --dry_run -- ...       prints the commands, and checks
#     that the job fits by compiling it here for these TPUs (docs/tpu.md)
#   for i in 0 1 2 3; do launch/tpu_vm.sh --name=soup-$i ... -- \
#     ... --sweep_index=$i & done; wait         one TPU per member
#
# Arguments after `--` go to soupjax. A preempted TPU is deleted and requested
# again; the run continues from the last train state. So --workdir must outlive
# the workers and be shared by all: put it in a bucket, gs://BUCKET/DIR
# (docs/buckets.md), or on an NFS share that is mounted at /mnt/soupjax (a
# Filestore instance in the same network). Other failures are not retried.
#
#   --name=NAME       name of the queued resource and of its node
#   --zone=ZONE       zone of the TPU
#   --type=TYPE       accelerator type, such as v5litepod-16
#   --share=HOST:/DIR mounted at /mnt/soupjax (default: none)
#   --version=V       runtime version (default: v2-alpha-tpuv5-lite)
#   --project=P       project (default: that of gcloud's configuration)
#   --spot            asks for a cheaper TPU that may be preempted
#   --retries=N       new requests after preemptions, at most (default: 20)
#   --poll=SECONDS    time between checks of the state (default: 30)
#   --keep            does not delete the TPU at the end
#   --dry_run         prints the commands, compiles and stops
set -euo pipefail

name="" zone="" type="" share="" version="v2-alpha-tpuv5-lite" project=""
spot="" retries=20 poll=30 keep="" dry_run=""

fail() {
  echo "tpu_vm.sh: $*" >&2
  exit 2
}

while [[ $# -gt 0 && "$1" != "--" ]]; do
  case "$1" in
    --name=*) name="${1#*=}" ;;
    --zone=*) zone="${1#*=}" ;;
    --type=*) type="${1#*=}" ;;
    --share=*) share="${1#*=}" ;;
    --version=*) version="${1#*=}" ;;
    --project=*) project="${1#*=}" ;;
    --retries=*) retries="${1#*=}" ;;
    --poll=*) poll="${1#*=}" ;;
    --spot) spot=1 ;;
    --keep) keep=1 ;;
    --dry_run) dry_run=1 ;;
    --help | -h)
      sed -n '5,39s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    *) fail "unknown option $1; arguments for soupjax come after --" ;;
  esac
  shift
done
[[ -n "$name" && -n "$zone" && -n "$type" ]] ||
  fail "--name, --zone and --type are needed; see --help"
case "$share" in
  "") mount="" ;;
  gs://*) fail "--share=$share: a bucket is not mounted; give --workdir=$share/DIR" ;;
  ?*:/*)
    mount="sudo apt-get install --quiet --yes nfs-common &&\
 sudo mkdir -p /mnt/soupjax && (mountpoint -q /mnt/soupjax ||\
 (sudo chown \$USER /mnt/soupjax && sudo mount -t nfs $share /mnt/soupjax)) && "
    ;;
  *) fail "--share=$share: give HOST:/DIR" ;;
esac
[[ $# -gt 1 ]] || fail "nothing to run: give -- --config=... --workdir=..."
shift
config="" workdir=""
for argument in "$@"; do
  case "$argument" in
    --config=*) config="${argument#*=}" ;;
    --workdir=*) workdir="${argument#*=}" ;;
  esac
done
[[ -n "$config" ]] || fail "give --config=FILE after --"
[[ "$workdir" == gs://?* || (-n "$share" && "$workdir" == /mnt/soupjax/?*) ]] ||
  fail "--workdir=${workdir:-(none)}: disks of TPU workers are lost with them;" \
    "give gs://BUCKET/DIR, or /mnt/soupjax/... with --share=HOST:/DIR"

# The checkout, from whatever directory this is called.
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
where=(--zone="$zone")
[[ -z "$project" ]] || where+=(--project="$project")

# Prints a command; runs it unless this is a dry run.
run() {
  printf '%q ' "$@" | sed 's/ $//' >&3
  echo >&3
  [[ -n "$dry_run" ]] || "$@"
}
exec 3>&1

on_all_workers() {
  run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all \
    --command="$1"
}

state() {
  gcloud compute tpus queued-resources describe "$name" "${where[@]}" \
    --format="value(state.state)" 2> /dev/null || echo MISSING
}

ask() {
  local options=(--node-id="$name" --accelerator-type="$type")
  options+=(--runtime-version="$version")
  [[ -z "$spot" ]] || options+=(--spot)
  run gcloud compute tpus queued-resources create "$name" "${where[@]}" \
    "${options[@]}"
}

delete() {
  run gcloud compute tpus queued-resources delete "$name" "${where[@]}" \
    --quiet --force
}

# Waits until the TPU is ready; fails if it cannot become ready.
wait_for_it() {
  [[ -z "$dry_run" ]] || {
    echo "# wait until its state is ACTIVE, checking every $poll s"
    return 0
  }
  local now=""
  while true; do
    now="$(state)"
    case "$now" in
      ACTIVE) return 0 ;;
      FAILED | SUSPENDED | SUSPENDING | MISSING) return 1 ;;
    esac
    echo "# $name: $now"
    sleep "$poll"
  done
}

set_up_and_run() {
  # Packs only the files that git tracks: no runs, no virtual environments.
  local archive
  archive="$(mktemp -d)/soupjax.tar.gz"
  if [[ -z "$dry_run" ]]; then
    git -C "$root" ls-files -z |
      tar -C "$root" --null --files-from=- -czf "$archive"
  else
    archive="soupjax.tar.gz"
    echo "# pack the files of the checkout that git tracks into $archive"
  fi
  run gcloud compute tpus tpu-vm scp "$archive" "$name:soupjax.tar.gz" \
    "${where[@]}" --worker=all || return
  # Runtimes come with an old Python; uv installs a newer one.
  on_all_workers "\
${mount}mkdir -p soupjax && tar -C soupjax -xzf soupjax.tar.gz && cd soupjax &&\
 python3 -m pip install --quiet --user uv &&\
 ~/.local/bin/uv venv --quiet --allow-existing --python=3.12 .venv &&\
 ~/.local/bin/uv pip install --quiet --python=.venv/bin/python\
 --editable='.[tpu,gs]'" || return
  local command
  command="$(printf '%q ' .venv/bin/soupjax --distributed "$@")"
  on_all_workers "cd soupjax && ${command% }"
}

# Compiles the programs for TPUs of this type; no TPU is needed.
compile() {
  if ! command -v soupjax > /dev/null; then
    echo "tpu_vm.sh: soupjax is not installed here, so nothing was compiled:" \
      "pip install '.[tpu]' to check whether the job fits --type=$type." >&2
    return 0
  fi
  echo "# compile for $type on this machine"
  soupjax "$@" --dry_run --topology="$type"
}

for ((attempt = 0; attempt <= retries; attempt++)); do
  [[ -n "$dry_run" || "$(state)" == ACTIVE ]] || ask
  [[ -z "$dry_run" ]] || ask
  code=0
  if wait_for_it; then
    set_up_and_run "$@" || code=$?
    if [[ $code -eq 0 || -n "$dry_run" ]]; then
      [[ -n "$keep" ]] || delete
      [[ -z "$dry_run" ]] || compile "$@"
      exit 0
    fi
    # Only the loss of the TPU is worth another try, and a preemption takes a
    # while to show in the state.
    sleep "$poll"
    if [[ "$(state)" == ACTIVE ]]; then
      echo "tpu_vm.sh: soupjax failed (exit code $code); not retried." >&2
      [[ -n "$keep" ]] || delete
      exit "$code"
    fi
  fi
  echo "# $name was preempted or not allocated ($(state)): asking again"
  delete || true
done
echo "tpu_vm.sh: given up after $retries retries." >&2
exit 1
