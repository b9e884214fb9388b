# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Interprets the pickle in a torch file without Python's unpickler.

A pickle is a program for a stack machine. This machine knows containers, plain
values and the functions that the caller allows. It imports nothing and calls
nothing else: any other object is an `Opaque`, of which only the name of its
class and the items that are put into it are known. Pickles are untrusted, so
the number of steps is limited and the memory is bounded by the size of the
pickle.
"""

from collections.abc import Callable, Iterable, Mapping
import pickle
import pickletools
from typing import Any, NamedTuple

MAX_STEPS = 16_000_000
_MAX_INTEGER = 1 << 62
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {
  "EMPTY_DICT": dict,
  "EMPTY_LIST": list,
  "EMPTY_TUPLE": tuple,
  "EMPTY_SET": lambda: Opaque("set"),
}
# Opcodes whose argument is the value itself.
_VALUES = {
  *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
  *("FLOAT", "BINFLOAT", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE"),
  *("BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING"),
  *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_PUTS = {"PUT", "BINPUT", "LONG_BINPUT"}
_GETS = {"GET", "BINGET", "LONG_BINGET"}
_MAX_PARTS = 1_000_000
_MAX_DEPTH = 64
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Function(NamedTuple):
  """A function that a pickle may call."""

  call: Callable[..., Any]


class Class(NamedTuple):
  """A class whose objects a pickle may create; they become `Record`s."""

  name: str


class Record:
  """The state of an object of a `Class`.

  Attributes:
    kind: the name of the class.
    state: usually a dict of its attributes; None if it has none.
  """

  __slots__ = ("kind", "state")

  def __init__(self, kind: str):
    self.kind = kind
    self.state: Any = None


class Opaque:
  """An object of a class that is not imported.

  Attributes:
    kind: the name of the class or function, such as "datetime.datetime".
    items: items that the pickle puts into it, as if it were a dict.
  """

  __slots__ = ("items", "kind")

  def __init__(self, kind: str):
    self.kind = kind
    self.items: dict[Any, Any] = {}


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
    names: (module, name) -> value; only a `Function` or a `Class` is called.
      Other names give an `Opaque`.
    reference: returns the value of a persistent id.

  Raises:
    pickle.UnpicklingError: if it needs an opcode that weights do not need, or
      too many steps.
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
      # Real pickles count up from 0. The pickle module would reserve memory for
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
      # Other attributes, such as the _metadata of a state_dict, are not needed.
      state = stack.pop()
      if type(stack[-1]) is Record:
        stack[-1].state = state
    elif name not in ("PROTO", "FRAME", "STOP"):
      self._run_rare(name, argument)

  def _run_rare(self, name, argument):
    stack = self._stack
    if name in ("TUPLE", "LIST", "DICT"):
      items = self._pop_mark()
      if name == "DICT":
        items = _add({}, items, True)
      self._stack.append(tuple(items) if name == "TUPLE" else items)
    elif name in ("APPENDS", "SETITEMS"):
      items = self._pop_mark()
      _add(self._stack[-1], items, name == "SETITEMS")
    elif name == "APPEND":
      value = stack.pop()
      _add(stack[-1], [value], False)
    elif name == "ADDITEMS":
      self._pop_mark()
    elif name == "FROZENSET":
      self._pop_mark()
      self._stack.append(Opaque("frozenset"))
    elif name == "INST":
      self._pop_mark()
      self._stack.append(Opaque(argument.replace(" ", ".")[:160]))
    elif name == "OBJ":
      self._stack.append(_called(self._pop_mark()[0], ()))
    elif name == "SETITEM":
      value, key = stack.pop(), stack.pop()
      _add(stack[-1], [key, value], True)
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
    elif name in ("REDUCE", "NEWOBJ", "NEWOBJ_EX"):
      if name == "NEWOBJ_EX":
        stack.pop()
      arguments, function = stack.pop(), stack.pop()
      stack.append(_called(function, arguments))
    elif name == "BINPERSID":
      stack.append(self._reference(stack.pop()))
    else:
      raise refused(f"it uses the opcode {name}, which weights do not need")

  def _push_global(self, module, name):
    if type(module) is not str or type(name) is not str:
      raise refused("it asks for a global without a name")
    value = self._names.get((module, name))
    self._stack.append(value or Opaque(f"{module:.80}.{name:.80}"))


def _called(function, arguments):
  """Returns the value of an allowed function, or an `Opaque`."""
  if type(arguments) is not tuple:
    raise refused("it calls a function without a tuple of arguments")
  if isinstance(function, Function):
    return function.call(*arguments)
  if type(function) is Class:
    return Record(function.name)
  if type(function) is not Opaque:
    raise refused("it calls a value that is not a function")
  # As _reconstructor(C, ...), which makes an object of the class C.
  if arguments and type(arguments[0]) is Opaque and "recon" in function.kind:
    function = arguments[0]
  return Opaque(function.kind)


def _add(target, items, is_pairs):
  """Adds items to a list, or alternating keys and values to a dict."""
  if type(target) is Opaque:
    if not is_pairs:
      first = len(target.items)
      items = [x for k, item in enumerate(items, first) for x in (k, item)]
    target, is_pairs = target.items, True
  if type(target) is list and not is_pairs:
    target += items
  elif type(target) is dict and is_pairs:
    if len(items) % 2:
      raise refused("it gives a key without a value")
    for key, value in zip(items[::2], items[1::2]):
      target[_key(key, len(target))] = value
  else:
    raise refused(f"it adds to a {type(target).__name__}")
  return target


def _key(key, count):
  """Returns a key whose hash is not chosen by the pickle."""
  if type(key) is str or type(key) in (int, bool) and abs(key) < _MAX_INTEGER:
    return key
  if type(key) is Record:  # Hashed by its identity.
    return key
  if key is None or type(key) is float:
    return repr(key)
  if type(key) in (int, list, dict):
    raise refused(f"a key is a {type(key).__name__}, not a name or number")
  return f"{type(key).__name__} {count}"


def flatten(
  content: Any, leaf_types: tuple[type, ...]
) -> tuple[dict[tuple[str, ...], Any], dict[tuple[str, ...], Opaque]]:
  """Names all leaves in nested containers, which may share parts.

  Args:
    content: the result of `interpret`.
    leaf_types: types of the leaves; other values are skipped.

  Returns:
    Keys of the containers -> leaf, and likewise for each `Opaque` that holds no
    leaves.

  Raises:
    pickle.UnpicklingError: if there are too many containers or leaves, or they
      are nested too deeply.
  """
  leaves: dict[tuple[str, ...], Any] = {}
  opaque: dict[tuple[str, ...], Opaque] = {}
  kinds = (*_CONTAINERS, *leaf_types)
  # Parts to visit in each container, listed once: containers may be shared.
  parts_of: dict[int, list[tuple[str, Any]]] = {}
  stack: list[tuple[tuple[str, ...], Any]] = [((), content)]
  parts = characters = 0
  while stack:
    keys, value = stack.pop()
    if type(value) in leaf_types:
      if keys in leaves:
        raise refused(f"it has two tensors called {'/'.join(keys)!r:.80}")
      leaves[keys] = value
      continue
    if type(value) not in _CONTAINERS:
      continue
    if len(keys) > _MAX_DEPTH:
      raise refused(
        f"{'/'.join(keys)[:40]}... is more than {_MAX_DEPTH} levels deep, or a "
        "container holds itself"
      )
    if type(value) is Opaque:
      opaque[keys] = value
    if id(value) not in parts_of:
      parts_of[id(value)] = [
        (str(key), part) for key, part in items_of(value) if type(part) in kinds
      ]
    inner = parts_of[id(value)]
    parts += len(inner) + 1
    characters += sum(len(key) for key, _ in inner) + len(inner) * len(keys)
    characters += len(inner) * sum(map(len, keys))
    if max(parts, characters // 100) > _MAX_PARTS:
      raise refused(f"it has more than {_MAX_PARTS} parts")
    stack.extend(((*keys, key), part) for key, part in reversed(inner))
  for keys in leaves:
    for depth in range(len(keys)):
      opaque.pop(keys[:depth], None)
  return leaves, opaque


def items_of(container: Any) -> Iterable[tuple[Any, Any]]:
  """Returns the items of a dict, a list or an `Opaque`."""
  if type(container) is Opaque:
    return container.items.items()
  if type(container) is dict:
    return container.items()
  return enumerate(container)


_CONTAINERS = (dict, list, tuple, Opaque)
