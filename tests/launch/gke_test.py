# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""launch/gke.sh, with a kubectl that only writes down what it gets."""

import os
import pathlib
import subprocess

import pytest
import yaml

HERE = pathlib.Path(__file__).parent
SCRIPT = HERE.parents[1] / "launch" / "gke.sh"
NAMES = ["--name=b16", "--image=registry/soupjax:1"]
CONFIG = "--config=configs/finetune/vit_b16_i1k.py"
JOB = ["--", CONFIG, "--workdir=/mnt/soupjax/b16"]
NOTE = '--config.note=a "b" \\n $(X)'
MEMBERS = [
  *(*NAMES, "--members=16", "--parallel=4", "--claim=soups", "--chips=1"),
  *("--accelerator=nvidia-h100-80gb", "--namespace=ml"),
]
HOSTS = [
  *("--name=g14", NAMES[1], "--hosts=4", "--chips=4", "--topology=4x4"),
  "--accelerator=tpu-v5-lite-podslice",
]
ON_HOSTS = ["--", CONFIG, "--workdir=gs://soups/g14", "--sweep_index=3"]


def run(*arguments, path=""):
  return subprocess.run(
    [SCRIPT, *arguments],
    capture_output=True,
    text=True,
    env={**os.environ, "PATH": f"{path}:{os.environ['PATH']}"},
    timeout=60,
  )


@pytest.mark.parametrize(
  "name,arguments",
  [("members", [*MEMBERS, *JOB, NOTE]), ("hosts", [*HOSTS, *ON_HOSTS])],
)
def test_dry_run_prints_the_jobset(name, arguments):
  at = arguments.index("--")
  done = run(*arguments[:at], "--dry_run", *arguments[at:])
  assert done.returncode == 0, done.stderr
  golden = (HERE / f"gke_{name}_golden.yaml").read_text()
  assert done.stdout == golden
  assert "${" not in golden


def spec_of(name):
  jobset = yaml.safe_load((HERE / f"gke_{name}_golden.yaml").read_text())
  assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
  assert jobset["kind"] == "JobSet"
  (replicated,) = jobset["spec"]["replicatedJobs"]
  job = replicated["template"]["spec"]
  assert job["completionMode"] == "Indexed"
  pod = job["template"]["spec"]
  # Both are needed for a podFailurePolicy with indices.
  assert pod["restartPolicy"] == "Never"
  assert pod["securityContext"]["runAsNonRoot"]
  (container,) = pod["containers"]
  env = {
    e["name"]: e.get("value", e.get("valueFrom")) for e in container["env"]
  }
  return jobset, job, pod, container, env


INDEX = {
  "fieldRef": {
    "fieldPath": "metadata.annotations['batch.kubernetes.io/"
    "job-completion-index']"
  }
}


def test_a_completion_index_is_a_member_of_the_sweep():
  jobset, job, pod, container, env = spec_of("members")
  assert (job["completions"], job["parallelism"]) == (16, 4)
  assert env == {"SWEEP_INDEX": INDEX}
  assert container["args"] == [
    *("--sweep_index=$(SWEEP_INDEX)", *JOB[1:]),
    NOTE.replace("$(", "$$("),  # Kubernetes makes $( of it.
  ]
  assert container["resources"]["limits"] == {"nvidia.com/gpu": 1}
  # One member that fails stops no other, and a preemption does not count.
  assert job["backoffLimitPerIndex"] == 20 and "backoffLimit" not in job
  assert "failurePolicy" not in jobset["spec"]
  actions = [rule["action"] for rule in job["podFailurePolicy"]["rules"]]
  assert actions == ["Ignore", "FailIndex"]
  (claim,) = [v for v in pod["volumes"] if v["name"] == "shared"]
  assert claim["persistentVolumeClaim"] == {"claimName": "soups"}


def test_a_completion_index_is_a_process():
  jobset, job, pod, container, env = spec_of("hosts")
  assert (job["completions"], job["parallelism"]) == (4, 4)
  # The first pod's name in the headless service of the JobSet.
  (replicated,) = jobset["spec"]["replicatedJobs"]
  name = jobset["metadata"]["name"]
  port = container["ports"][0]["containerPort"]
  address = f"{name}-{replicated['name']}-0-0.{name}:{port}"
  assert env == {
    "JAX_PROCESS_ID": INDEX,
    "JAX_NUM_PROCESSES": "4",
    "JAX_COORDINATOR_ADDRESS": address,
  }
  assert container["args"] == ["--distributed", *ON_HOSTS[1:]]
  assert container["resources"]["limits"] == {"google.com/tpu": 4}
  assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"
  # All processes start again together.
  assert job["backoffLimit"] == 0 and "backoffLimitPerIndex" not in job
  assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 20


def test_kubectl_gets_the_jobset(tmp_path):
  kubectl = tmp_path / "kubectl"
  kubectl.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/args\ncat\nexit 3\n')
  kubectl.chmod(0o755)
  done = run(*MEMBERS, *JOB, path=tmp_path)
  assert (tmp_path / "args").read_text() == "--namespace=ml create -f -\n"
  assert yaml.safe_load(done.stdout)["kind"] == "JobSet"
  assert done.returncode == 3  # That of kubectl, such as for a name in use.


@pytest.mark.parametrize(
  "arguments,text",
  [
    (["--members=2", *JOB], "--name and --image"),
    (["--typo=1", *JOB], "unknown option --typo=1"),
    (["--name=A_B", NAMES[1], *JOB], "--name=A_B"),
    ([*NAMES, *JOB], "give --members=N for a sweep, or --hosts=N"),
    ([*NAMES, "--members=2", "--hosts=2", *JOB], "exclude each other"),
    ([*NAMES, "--hosts=2", "--parallel=1", *JOB], "--parallel is for"),
    ([*NAMES, "--members=x", *JOB], "--members=x: give a positive number"),
    ([*NAMES, "--hosts=2", "--claim=a b", *JOB], "--claim=a b: it contains"),
    ([*NAMES, "--hosts=2", "--chips=1", *JOB], "--accelerator and --chips"),
    ([*HOSTS[:4], HOSTS[5], *ON_HOSTS], "give --topology"),
    ([*NAMES, "--members=2"], "nothing to run"),
    ([*NAMES, "--members=2", "--", "--workdir=gs://b/x"], "give --config"),
    ([*NAMES, "--members=2", *JOB], "give --claim, mounted there"),
    ([*NAMES, "--hosts=2", "--", CONFIG, "--workdir=runs"], "disks of pods"),
    ([*MEMBERS, *JOB, "--sweep_index=1"], "--members already sets"),
    ([*MEMBERS, *JOB, "--config.note=a\nb"], "has a line break"),
  ],
)
def test_bad_arguments_are_named(tmp_path, arguments, text):
  kubectl = tmp_path / "kubectl"
  kubectl.write_text(f"#!/bin/sh\ntouch {tmp_path}/called\n")
  kubectl.chmod(0o755)
  done = run(*arguments, path=tmp_path)
  assert done.returncode == 2, done.stdout
  assert text in done.stderr
  assert not (tmp_path / "called").exists()
