# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Tests of soupjax.tasks.programs.report, with CPU devices as the slice."""

import re

import jax
import numpy as np
import pytest

from soupjax import sharding
from soupjax.tasks.programs import report, topology


def slice_of(memory):
  return topology.Topology("v0-8", "v0:8", tuple(jax.devices()), memory)


def program(**options):
  """A product of a split and a whole matrix, whose sum goes everywhere."""
  mesh = sharding.make_mesh({"data": 8})
  specs = [jax.ShapeDtypeStruct((64, 512), np.float32)]
  specs.append(jax.ShapeDtypeStruct((512, 32), np.float32))
  places = [sharding.along(mesh, "data"), sharding.replicated(mesh)]
  return report.Program(
    name="product",
    function=jax.jit(lambda a, b: (a @ b).sum(0)),
    args=tuple(report.on_mesh(specs, places)),
    **options,
  )


def test_bytes_operations_and_communication_of_a_program():
  result = report.compile_program(program(beside={"x": 5000}), slice_of(10**6))
  arguments = 4 * (64 * 512 // 8 + 512 * 32)
  assert result.memory.arguments == arguments
  assert result.needed == result.memory.peak + 5000
  assert result.flops == 2 * 64 * 512 * 32 / 8
  assert [(c.kind, c.num_bytes) for c in result.collectives] == [
    ("all-reduce", 4 * 32)
  ]
  text = report.table([result], slice_of(10**6))
  assert "8 devices (cpu) of 1.00 MB for programs" in text
  rows = dict(reversed(row) for row in re.findall(r"  +(\S+ \w+)  (.*)", text))
  assert rows["arguments"] == "81.9 kB"
  assert rows["beside the program: x"] == "5.00 kB"
  assert rows["in matrix products"] == "262 kFLOP"
  assert rows["in 1 all-reduce"] == "128 B"
  assert f"needed: {result.needed / 1e6:.1%} of the memory" in rows


def test_bytes_on_each_device():
  split, whole = program().args
  assert report.bytes_on_each([split]) == 4 * 64 * 512 // 8
  assert report.bytes_on_each({"a": whole}) == 4 * 512 * 32


def test_a_program_that_does_not_fit_is_an_error_with_advice():
  advice = "Halve the {}; {} are there.".format
  fits, large = program(), program(advice=advice, beside={"soup": 10**9})
  with pytest.raises(ValueError) as error:
    report.run([fits, large], slice_of(10**6))
  text = str(error.value)
  # The table first, with the program that fits.
  assert text.count("product, on each device") == 2
  *_, problem = text.splitlines()
  assert problem.startswith("product does not fit v0:8: it needs 1.00 GB")
  assert "999 MB too much" in problem
  assert problem.endswith("; 1000000 are there.")
  assert "product, on" in report.run([fits, large], slice_of(10**10))


def test_a_program_that_the_compiler_refuses_for_its_size(monkeypatch):
  def refuse(self):
    raise jax.errors.JaxRuntimeError(
      "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.00G "
      "of 15.75G hbm."
    )

  monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
  with pytest.raises(ValueError, match="needs 21.5 GB .* 4.56 GB too much"):
    report.run([program()], slice_of(int(15.75 * 2**30)))


def test_other_errors_of_the_compiler_are_not_hidden(monkeypatch):
  def refuse(self):
    raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

  monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
  with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
    report.run([program()], slice_of(None))


def test_a_slice_of_unknown_memory():
  result = report.run([program(beside={"x": 10**15})], slice_of(None))
  assert "unknown memory" in result and "\n  1.00 PB" not in result
  assert "1000 TB  needed\n" in result


@pytest.mark.parametrize(
  "count,text",
  [
    (0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (-26_400_000, "-26.4 MB"),
    (123_456, "123 kB"), (2.5e12, "2.50 TB"),
  ],
)  # fmt: skip
def test_amounts_have_three_digits(count, text):
  assert report._size(count) == text


def test_the_number_of_images_that_fit():
  # 512 images take 30 beside 10 that are fixed; 20 of them have room.
  assert report.fewer(512, 40, 30, 10, 16) == 336
  assert report.fewer(512, 40, 30, 10, 1) == 341
  assert report.fewer(512, 40, 10, 10, 16) == 0
  assert report.fewer(512, 40, 80, 10, 16) == 512
