#!/usr/bin/env bash
# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
#
# Runs soupjax on Kubernetes (GKE, or another cluster with JobSet): the members
# of a sweep, one pod each, or one job with a process in each pod. Fills in
# launch/gke.yaml and passes it to kubectl; the cluster does the rest.
#
#   launch/gke.sh --name=soup --image=REGISTRY/soupjax --members=16 --parallel=4 \
#     --accelerator=nvidia-h100-80gb --chips=1 --claim=soups -- \
#     --config=configs/finetune/vit_b16_i1k.py --workdir=/mnt/soupjax/run
#   launch/gke.sh --name=soup --image=REGISTRY/soupjax --hosts=4 --chips=4 \
#     --accelerator=tpu-v5-lite-podslice --topology=4x4 --claim=soups -- \
#     --config=... --workdir=/mnt/soupjax/run --sweep
#   launch/gke.sh ... --dry_run -- ...      prints the JobSet and stops
#
# Arguments after `--` go to soupjax. Preempted pods restart and continue from
# the last train state. So --workdir must outlive them and be shared by all: put
# it in a bucket, or on a ReadWriteMany claim, which is mounted at /mnt/soupjax.
#
#   --name=NAME         name of the JobSet
#   --image=IMAGE       image built from launch/Dockerfile
#   --members=N         pod i fine-tunes member i of get_sweep()
#   --parallel=P        maximum number of members at a time (default: all)
#   --hosts=N           N pods are the processes of one job (--distributed)
#   --accelerator=TYPE  GKE's node label, such as nvidia-h100-80gb
#   --topology=AxB      topology of the whole TPU slice, such as 4x4
#   --chips=N           GPUs or TPU chips of each pod
#   --claim=CLAIM       PersistentVolumeClaim mounted at /mnt/soupjax
#   --retries=N         restarts, not counting preemptions (default: 20)
#   --context=C, --namespace=N    for kubectl (default: its configuration)
#   --dry_run           prints the JobSet and stops
set -euo pipefail

name="" image="" members="" parallel="" hosts="" accelerator="" topology=""
chips="" claim="" retries=20 dry_run="" kubectl=(kubectl)

fail() {
  echo "gke.sh: $*" >&2
  exit 2
}

while [[ $# -gt 0 && "$1" != "--" ]]; do
  case "$1" in
    --name=*) name="${1#*=}" ;;
    --image=*) image="${1#*=}" ;;
    --members=*) members="${1#*=}" ;;
    --parallel=*) parallel="${1#*=}" ;;
    --hosts=*) hosts="${1#*=}" ;;
    --accelerator=*) accelerator="${1#*=}" ;;
    --topology=*) topology="${1#*=}" ;;
    --chips=*) chips="${1#*=}" ;;
    --claim=*) claim="${1#*=}" ;;
    --retries=*) retries="${1#*=}" ;;
    --context=* | --namespace=*) kubectl+=("$1") ;;
    --dry_run) dry_run=1 ;;
    --help | -h)
      sed -n '5,36s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    *) fail "unknown option $1; arguments for soupjax come after --" ;;
  esac
  shift
done
[[ -n "$name" && -n "$image" ]] ||
  fail "--name and --image are needed; see --help"
# Pods are called NAME-run-0-INDEX-xxxxx, which may have at most 63 characters.
[[ "$name" =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
  fail "--name=$name: at most 40 lower-case letters, digits and dashes"
for option in image accelerator topology claim; do
  [[ "${!option}" =~ ^[A-Za-z0-9./:@_-]*$ ]] ||
    fail "--$option=${!option}: it contains a character that is not allowed"
done
[[ -n "$members" ]] || [[ -n "$hosts" ]] ||
  fail "give --members=N for a sweep, or --hosts=N for one job"
[[ -z "$members" ]] || [[ -z "$hosts" ]] ||
  fail "--members and --hosts exclude each other: a member has one pod here;" \
    "start one JobSet per member, with --hosts=$hosts and -- --sweep_index=..."
[[ -z "$parallel" || -n "$members" ]] || fail "--parallel is for --members"
for option in members hosts parallel chips; do
  [[ "${!option}" =~ ^([1-9][0-9]*)?$ ]] ||
    fail "--$option=${!option}: give a positive number"
done
[[ "$retries" =~ ^[0-9]+$ ]] || fail "--retries=$retries: give a number"
if [[ -n "$accelerator$topology$chips" ]]; then
  [[ -n "$accelerator" && -n "$chips" ]] ||
    fail "--accelerator and --chips go together"
  [[ -n "$topology" || "$accelerator" != tpu* ]] ||
    fail "--accelerator=$accelerator: give --topology, such as 4x4"
fi
[[ $# -gt 1 ]] || fail "nothing to run: give -- --config=... --workdir=..."
shift

config="" workdir=""
for argument in "$@"; do
  case "$argument" in
    --config=*) config="${argument#*=}" ;;
    --workdir=*) workdir="${argument#*=}" ;;
    --distributed* | --sweep | --sweep=* | --sweep_index*)
      [[ -z "$members" ]] ||
        fail "$argument: --members already sets --sweep_index in every pod"
      ;;
  esac
done
[[ -n "$config" ]] || fail "give --config=FILE after --"
case "$workdir" in
  /mnt/soupjax/?*)
    [[ -n "$claim" ]] || fail "--workdir=$workdir: give --claim, mounted there"
    ;;
  gs://?* | s3://?*) ;;
  *)
    fail "--workdir=${workdir:-(none)}: disks of pods are lost with them; give" \
      "/mnt/soupjax/... (with --claim) or a bucket"
    ;;
esac

# Prints a YAML string. Kubernetes replaces $(VAR), but not $$(VAR).
quoted() {
  local text="$1"
  [[ "$text" != *[[:cntrl:]]* ]] || fail "an argument has a line break: $text"
  text="${text//\\/\\\\}"
  text="${text//\"/\\\"}"
  printf '"%s"' "${text//\$(/\$\$(}"
}

keep=()
[[ -z "$members" ]] || keep+=(members)
[[ -z "$hosts" ]] || keep+=(hosts)
[[ -z "$claim" ]] || keep+=(claim)
[[ -z "$accelerator" ]] || keep+=(accelerator)
[[ -z "$topology" ]] || keep+=(topology)
[[ -z "$topology" || -z "$hosts" ]] || keep+=(slice)
[[ -z "$accelerator" || -n "$topology" ]] || keep+=(gpu)

# Prints the JobSet: the lines of gke.yaml that apply, filled in.
fill_in() {
  local file line kind indent argument
  file="$(dirname "${BASH_SOURCE[0]}")/gke.yaml"
  while IFS= read -r line; do
    [[ "$line" =~ ^\ *# ]] && continue
    if [[ "$line" =~ ^(.*)\ \#\ ([a-z]+)$ ]]; then
      line="${BASH_REMATCH[1]}"
      kind="${BASH_REMATCH[2]}"
      [[ " ${keep[*]} " == *" $kind "* ]] || continue
    fi
    if [[ "$line" =~ ^(\ *-\ )\$\{ARGUMENTS\}$ ]]; then
      indent="${BASH_REMATCH[1]}"
      for argument in "$@"; do
        printf '%s%s\n' "$indent" "$(quoted "$argument")"
      done
      continue
    fi
    line="${line//\$\{NAME\}/$name}"
    line="${line//\$\{IMAGE\}/$image}"
    line="${line//\$\{COUNT\}/${members:-$hosts}}"
    line="${line//\$\{PARALLEL\}/${parallel:-${members:-$hosts}}}"
    line="${line//\$\{RETRIES\}/$retries}"
    line="${line//\$\{ACCELERATOR\}/$accelerator}"
    line="${line//\$\{TOPOLOGY\}/$topology}"
    line="${line//\$\{CHIPS\}/$chips}"
    line="${line//\$\{CLAIM\}/$claim}"
    printf '%s\n' "$line"
  done < "$file"
}

for argument in "$@"; do
  quoted "$argument" > /dev/null # Fails here if an argument cannot be quoted.
done
if [[ -n "$dry_run" ]]; then
  echo "# ${kubectl[*]} create -f - <<'END'"
  fill_in "$@"
  echo "# END"
  exit 0
fi
command -v kubectl > /dev/null || fail "kubectl is not on the PATH"
fill_in "$@" | "${kubectl[@]}" create -f -
echo "# Show its state, follow its logs, or delete it:"
echo "${kubectl[*]} get jobset,pods -l jobset.sigs.k8s.io/jobset-name=$name"
echo "${kubectl[*]} logs -f -l jobset.sigs.k8s.io/jobset-name=$name --prefix"
echo "${kubectl[*]} delete jobset $name"
