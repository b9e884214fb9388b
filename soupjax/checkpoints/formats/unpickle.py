# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Interprets the pickle in a torch file without Python's unpickler.

A pickle is a program for a stack machine. This machine knows containers, plain
values and the functions that the caller allows. It imports nothing and calls
nothing else. Pickles are untrusted, so the number of steps is limited and the
memory is bounded by the size of the pickle.
"""

from collections.abc import Callable, Mapping
import pickle
import pickletools
from typing import Any, NamedTuple

MAX_STEPS = 2_000_000
_MAX_INTEGER = 1 << 62
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
# Opcodes whose argument is the value itself.
_VALUES = {
  *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
  *("FLOAT", "BINFLOAT", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE"),
  *("BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING"),
  *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_PUTS = {"PUT", "BINPUT", "LONG_BINPUT"}
_GETS = {"GET", "BINGET", "LONG_BINGET"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Function(NamedTuple):
  """A function that a pickle may call."""

  call: Callable[..., Any]


def refused(reason: str) -> pickle.UnpicklingError:
  """Returns the error for a pickle that is refused."""
  return pickle.UnpicklingError(reason)


def interpret(
  data: bytes,
  names: Mapping[tuple[str, str], Any],
  reference: Callable[[Any], Any],
) -> Any:
  """Returns the value that a pickle describes.

  Args:
    data: the pickle.
    names: (module, name) -> value; only a `Function` is callable.
    reference: returns the value of a persistent id.

  Raises:
    pickle.UnpicklingError: if it needs anything else.
    ValueError: if it is not a valid pickle.
  """
  machine = _Machine(names, reference)
  # Raises ValueError at an opcode that is unknown or cut short.
  for step, (opcode, argument, _) in enumerate(pickletools.genops(data)):
    if step >= MAX_STEPS:
      raise refused(f"its list of tensors has more than {MAX_STEPS} steps")
    try:
      machine.run(opcode.name, argument, step)
    except (IndexError, KeyError) as e:
      raise refused(f"step {step} of its list of tensors lacks {e!r}") from e
  return machine.pop()


class _Machine:
  """A stack and a memory, and the effect of each opcode on them."""

  def __init__(self, names, reference):
    self._names, self._reference = names, reference
    self._stack: list[Any] = []
    self._outer: list[list[Any]] = []  # The stacks below each mark.
    self._memory: dict[int, Any] = {}

  def pop(self):
    return self._stack.pop()

  def _pop_mark(self):
    items, self._stack = self._stack, self._outer.pop()
    return items

  def run(self, name: str, argument: Any, step: int) -> None:
    """Runs one opcode."""
    stack = self._stack
    if name in _VALUES:
      stack.append(argument)
    elif name in _GETS:
      stack.append(self._memory[argument])
    elif name in _PUTS:
      # Honest pickles count from 0; the pickle module would reserve memory for
      # any number.
      if not 0 <= argument <= step:
        raise refused(f"it stores a value under the number {argument}")
      self._memory[argument] = stack[-1]
    elif name == "MEMOIZE":
      self._memory[len(self._memory)] = stack[-1]
    elif name in _CONSTANTS:
      stack.append(_CONSTANTS[name])
    elif name in _EMPTY:
      stack.append(_EMPTY[name]())
    elif name == "MARK":
      self._outer.append(stack)
      self._stack = []
    elif name in _TUPLES:
      count = _TUPLES[name]
      if len(stack) < count:
        raise IndexError(name)
      stack[-count:] = [tuple(stack[-count:])]
    elif name == "BUILD":
      # Attributes, such as the _metadata of a state_dict, are not needed.
      stack.pop()
    elif name not in ("PROTO", "FRAME", "STOP"):
      self._run_rare(name, argument)

  def _run_rare(self, name, argument):
    stack = self._stack
    if name in ("TUPLE", "LIST", "DICT"):
      items = self._pop_mark()
      if name == "DICT":
        items = _add({}, items)
      self._stack.append(tuple(items) if name == "TUPLE" else items)
    elif name in ("APPENDS", "SETITEMS"):
      items = self._pop_mark()
      _add(self._stack[-1], items)
    elif name == "APPEND":
      value = stack.pop()
      _add(stack[-1], [value])
    elif name == "SETITEM":
      value, key = stack.pop(), stack.pop()
      _add(stack[-1], [key, value])
    elif name == "POP_MARK" or name == "POP" and not stack:
      # POP directly after a mark removes the mark.
      self._pop_mark()
    elif name == "POP":
      stack.pop()
    elif name == "DUP":
      stack.append(stack[-1])
    elif name == "GLOBAL":
      self._push_global(*argument.split(" ", 1))
    elif name == "STACK_GLOBAL":
      attribute, module = stack.pop(), stack.pop()
      self._push_global(module, attribute)
    elif name in ("REDUCE", "NEWOBJ"):
      arguments, function = stack.pop(), stack.pop()
      if not isinstance(function, Function) or type(arguments) is not tuple:
        raise refused("it calls a value that is not a function")
      stack.append(function.call(*arguments))
    elif name == "BINPERSID":
      stack.append(self._reference(stack.pop()))
    else:
      raise refused(f"it uses the opcode {name}, which weights do not need")

  def _push_global(self, module, name):
    if type(module) is not str or type(name) is not str:
      raise refused("it asks for a global without a name")
    if (module, name) not in self._names:
      raise refused(
        f"it asks for {module:.80}.{name:.80}, which weights do not need"
      )
    self._stack.append(self._names[module, name])


def _add(target, items):
  """Adds items to a list, or alternating keys and values to a dict."""
  if type(target) is list:
    target += items
  elif type(target) is dict:
    if len(items) % 2:
      raise refused("it gives a key without a value")
    for key, value in zip(items[::2], items[1::2]):
      # Hostile keys of other types could all have the same hash.
      if type(key) is not str and not (
        type(key) in (int, bool) and abs(key) < _MAX_INTEGER
      ):
        raise refused(f"a key is a {type(key).__name__}, not a name or number")
      target[key] = value
  else:
    raise refused(f"it adds to a {type(target).__name__}")
  return target
