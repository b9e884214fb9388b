# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Reads the pickle in a torch file without running it.

A pickle is a program for a small stack machine. This is another such machine,
which knows containers, plain values and the few functions that make a tensor,
each of which does nothing but note its arguments. It imports nothing, calls
nothing else, and what it holds is bounded by the size of the program: numbers
of steps, places in memory and depth come from strangers.
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
  """One that a program may call."""

  call: Callable[..., Any]


def refused(reason: str) -> pickle.UnpicklingError:
  """The error about a program that is not followed."""
  return pickle.UnpicklingError(reason)


def follow(
  data: bytes,
  names: Mapping[tuple[str, str], Any],
  reference: Callable[[Any], Any],
) -> Any:
  """Returns what a program makes.

  Args:
    data: the program.
    names: (module, name) -> what it stands for; only a `Function` is callable.
    reference: makes something of a persistent id.

  Raises:
    pickle.UnpicklingError: if it asks for anything else.
    ValueError: if it is no program.
  """
  machine = _Machine(names, reference)
  # Stops at the first opcode that is cut short, or is none.
  for step, (opcode, argument, _) in enumerate(pickletools.genops(data)):
    if step >= MAX_STEPS:
      raise refused(f"its list of tensors has more than {MAX_STEPS} steps")
    try:
      machine.do(opcode.name, argument, step)
    except (IndexError, KeyError) as e:
      raise refused(f"step {step} of its list of tensors lacks {e!r}") from e
  return machine.pop()


class _Machine:
  """A stack, a memory, and what each opcode does to them."""

  def __init__(self, names, reference):
    self._names, self._reference = names, reference
    self._stack: list[Any] = []
    self._marked: list[list[Any]] = []
    self._memory: dict[int, Any] = {}

  def pop(self):
    return self._stack.pop()

  def _pop_mark(self):
    items, self._stack = self._stack, self._marked.pop()
    return items

  def do(self, name: str, argument: Any, step: int) -> None:
    """Takes one step."""
    if name in _VALUES:
      self._stack.append(argument)
    elif name in _GETS:
      self._stack.append(self._memory[argument])
    elif name in _PUTS:
      # Who writes a program counts from 0; the pickle module would make room
      # for any number.
      if not 0 <= argument <= step:
        raise refused(f"it remembers something as number {argument}")
      self._memory[argument] = self._stack[-1]
    elif name == "MEMOIZE":
      self._memory[len(self._memory)] = self._stack[-1]
    elif name in _CONSTANTS:
      self._stack.append(_CONSTANTS[name])
    elif name in _EMPTY:
      self._stack.append(_EMPTY[name]())
    elif name == "MARK":
      self._marked.append(self._stack)
      self._stack = []
    elif name in _TUPLES:
      count = _TUPLES[name]
      if len(self._stack) < count:
        raise IndexError(name)
      self._stack[-count:] = [tuple(self._stack[-count:])]
    elif name == "BUILD":
      # Attributes such as the _metadata of a state_dict: not wanted.
      self._stack.pop()
    elif name not in ("PROTO", "FRAME", "STOP"):
      self._less_common(name, argument)

  def _less_common(self, name, argument):
    stack = self._stack
    if name == "TUPLE":
      items = self._pop_mark()
      self._stack.append(tuple(items))
    elif name == "LIST":
      items = self._pop_mark()
      self._stack.append(items)
    elif name == "DICT":
      items = self._pop_mark()
      self._stack.append(_filled({}, items))
    elif name in ("APPENDS", "SETITEMS"):
      items = self._pop_mark()
      _filled(self._stack[-1], items)
    elif name == "APPEND":
      value = stack.pop()
      _filled(stack[-1], [value])
    elif name == "SETITEM":
      value, key = stack.pop(), stack.pop()
      _filled(stack[-1], [key, value])
    elif name == "POP":
      # Without anything on top of a mark, it takes the mark away.
      if stack:
        stack.pop()
      else:
        self._pop_mark()
    elif name == "POP_MARK":
      self._pop_mark()
    elif name == "DUP":
      stack.append(stack[-1])
    elif name == "GLOBAL":
      self._find(*argument.split(" ", 1))
    elif name == "STACK_GLOBAL":
      found, module = stack.pop(), stack.pop()
      self._find(module, found)
    elif name in ("REDUCE", "NEWOBJ"):
      arguments, function = stack.pop(), stack.pop()
      if not isinstance(function, Function) or type(arguments) is not tuple:
        raise refused("it calls what is no function")
      stack.append(function.call(*arguments))
    elif name == "BINPERSID":
      stack.append(self._reference(stack.pop()))
    else:
      raise refused(f"it uses the opcode {name}, which weights have no need of")

  def _find(self, module, name):
    if type(module) is not str or type(name) is not str:
      raise refused("it asks for something without a name")
    if (module, name) not in self._names:
      raise refused(
        f"it asks for {module:.80}.{name:.80}, which weights have no need of"
      )
    self._stack.append(self._names[module, name])


def _filled(target, items):
  """Adds items, or keys and values in turn."""
  if type(target) is list:
    target += items
  elif type(target) is dict:
    if len(items) % 2:
      raise refused("it gives a key without a value")
    for key, value in zip(items[::2], items[1::2]):
      # Of others, hostile ones could all have one hash.
      if type(key) is not str and not (
        type(key) in (int, bool) and abs(key) < _MAX_INTEGER
      ):
        raise refused(f"a key is a {type(key).__name__}, no name or number")
      target[key] = value
  else:
    raise refused(f"it adds to a {type(target).__name__}")
  return target
