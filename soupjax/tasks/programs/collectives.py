# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Communication between devices, read from the text of a compiled program."""

from collections.abc import Iterator
import dataclasses
import re

KINDS = (
  *("all-gather", "all-reduce", "reduce-scatter", "all-to-all"),
  *("ragged-all-to-all", "collective-permute", "collective-broadcast"),
)
_BITS = {"pred": 8, "c64": 64, "c128": 128}
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) .*\{$")
_INSTRUCTION = re.compile(
  r"^  (?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)$"
)
_ARRAY = re.compile(r"\b([a-z]\w*?\d*\w*)\[([\d,]*)\]")
_CALLED = re.compile(
  r"(calls|to_apply|body|condition|called_computations|branch_computations"
  r"|true_computation|false_computation)=(\{[^}]*\}|%?[\w.-]+)"
)


@dataclasses.dataclass(frozen=True)
class Collective:
  """Communication of one kind in a program.

  Attributes:
    kind: one of `KINDS`.
    count: number of calls in one run of the program, counting every iteration
      of a loop.
    num_bytes: bytes on each device, summed over calls. Of a call, the larger of
      its operands and its result.
  """

  kind: str
  count: int
  num_bytes: int


@dataclasses.dataclass
class _Instruction:
  name: str
  shape: str
  opcode: str
  rest: str

  def called(self) -> Iterator[tuple[str, str]]:
    """Yields (attribute, name) of each computation that it runs."""
    for attribute, names in _CALLED.findall(self.rest):
      for name in names.strip("{}").split(","):
        yield attribute, name.strip().removeprefix("%")


def collectives(text: str) -> list[Collective]:
  """Lists the communication of a program by kind.

  Args:
    text: the optimised program, from `jax.stages.Compiled.as_text`.

  Returns:
    The kinds that occur, by decreasing bytes. Loops of unknown length count as
    one iteration.
  """
  computations, entry = _parse(text)
  rounds = _rounds(computations, entry)
  # Parts of one operation, such as its start and its end, share a channel.
  operations: dict[str, tuple[str, int, int]] = {}
  for name, instructions in computations.items():
    if not rounds.get(name):
      continue
    shapes = {i.name: i.shape for i in instructions}
    for instruction in instructions:
      kind = instruction.opcode.removesuffix("-start")
      if kind not in KINDS:
        continue
      if kind == "all-reduce" and "all-reduce-scatter" in name:
        kind = "reduce-scatter"  # The form in which TPU compilers write it.
      channel = re.search(r"channel_id=(\d+)", instruction.rest)
      key = channel.group(1) if channel else f"{name}/{instruction.name}"
      part = (kind, rounds[name], _size(instruction, shapes))
      operations[key] = max(operations.get(key, part), part, key=lambda p: p[1])
  totals: dict[str, Collective] = {}
  for kind, count, size in operations.values():
    before = totals.get(kind, Collective(kind, 0, 0))
    totals[kind] = Collective(
      kind, before.count + count, before.num_bytes + count * size
    )
  return sorted(totals.values(), key=lambda c: (-c.num_bytes, c.kind))


def _parse(text: str) -> tuple[dict[str, list[_Instruction]], str]:
  """Returns the instructions of every computation, and the entry's name."""
  computations: dict[str, list[_Instruction]] = {}
  entry, current = "", None
  for line in text.splitlines():
    if line and not line[0].isspace():
      match = _COMPUTATION.match(line)
      current = computations.setdefault(match.group(1), []) if match else None
      if match and line.startswith("ENTRY"):
        entry = match.group(1)
    elif current is not None and (match := _INSTRUCTION.match(line)):
      current.append(_Instruction(*match.groups()))
  return computations, entry


def _rounds(computations, entry: str) -> dict[str, int]:
  """Returns how often one run of the program runs each computation."""
  rounds = dict.fromkeys(computations, 0)

  def visit(name, times):
    rounds[name] += times
    for instruction in computations.get(name, ()):
      if instruction.opcode.endswith(("-done", "-update")):
        continue  # Counted at its start.
      for attribute, called in instruction.called():
        if called not in computations:
          continue
        is_body = attribute in ("body", "condition")
        visit(
          called,
          times * (_trips(computations, instruction) if is_body else 1),
        )

  if entry:
    visit(entry, 1)
  return rounds


def _trips(computations, loop: _Instruction) -> int:
  """Returns the number of iterations of a loop; 1 if it is unknown."""
  if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest):
    return int(known.group(1))
  condition = dict(loop.called()).get("condition", "")
  instructions = {i.name: i for i in computations.get(condition, ())}
  for instruction in instructions.values():
    if instruction.opcode != "compare" or "=LT" not in instruction.rest:
      continue
    for name in re.findall(r"%([\w.-]+)", instruction.rest.split(")")[0]):
      other = instructions.get(name)
      if other and other.opcode == "constant" and other.rest[:1].isdigit():
        return int(other.rest.split(")")[0])
  return 1


def _size(instruction: _Instruction, shapes) -> int:
  """Returns the bytes of one call of a collective, on a device."""
  operands = re.findall(r"%([\w.-]+)", instruction.rest.split(")")[0])
  before = sum(_bytes(shapes.get(name, "")) for name in operands)
  after = _bytes(instruction.shape)
  if instruction.opcode.endswith("-start") and instruction.shape[0] == "(":
    after -= before  # The result of a start also contains its operands.
  return max(before, after)


def _bytes(shape: str) -> int:
  """Returns the bytes of an array or a tuple of arrays, from its HLO shape."""
  total = 0
  for dtype, sizes in _ARRAY.findall(shape.replace("/*index=", " ")):
    number = re.search(r"\d+", dtype)
    bits = _BITS.get(dtype, int(number.group()) if number else 0)
    count = 1
    for size in filter(None, sizes.split(",")):
      count *= int(size)
    total += count * bits // 8
  return total
