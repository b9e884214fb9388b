# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Imports point one way, and dangerous calls are only in certain files."""

import ast
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# Part -> parts that it may import. The part of a file is the longest entry that
# its path begins with; a file without one fails the test.
_BASE = {"version", "buckets", "files", "progress", "registry", "lazy"}
_MIDDLE = _BASE | {"soups", "checkpoints", "sharding", "config", "processes"}
_SIBLINGS = ("models", "data", "train", "evaluators", "analysis", "report")
_TOP = _MIDDLE | {*_SIBLINGS, "metric_writers"}
# The layers of soups/; each may import those before it.
_SOUPS = (
  "soups/core",
  "soups/rules",
  "soups/engine",
  "soups/average",
  "soups/greedy",
  "soups/learned",
  "soups/search",
)
ALLOWED = {
  "version": set(),
  "buckets": set(),
  "files": {"buckets"},
  "progress": set(),
  "registry": set(),
  "lazy": set(),
  "sweeps": set(),
  **{
    part: {*_SOUPS[:i], "registry"}
    - ({"soups/greedy"} if part == "soups/learned" else set())
    for i, part in enumerate(_SOUPS)
  },
  "soups": set(),
  "sharding": _BASE | {"soups"},
  "config": _BASE | {"sweeps"},
  "processes": _BASE | {"soups"},
  "checkpoints": _BASE | {"soups", "processes", "sharding"},
  "metric_writers": _MIDDLE,
  **dict.fromkeys(_SIBLINGS, _MIDDLE),
  "tasks": _TOP,
  "main": _TOP | {"tasks"},
  # The public names.
  "__init__": {"soups", "checkpoints", "analysis", "version", "lazy"},
}
# Other packages that only some files, or none, may import.
ONLY_IN = {
  "orbax": {
    "checkpoints/formats/orbax.py",
    "checkpoints/formats/orbax_writer.py",
  },
  "flax.nnx": set(),
  # These run code that is inside data.
  "pickle": {"checkpoints/formats/unpickle.py"},
  "pickletools": {"checkpoints/formats/unpickle.py"},
  "marshal": set(),
  # Runs the user's program that evaluates checkpoints.
  "subprocess": {"evaluators/command.py"},
}
# The modules that may remove files. Each removes only what it made, or what
# `checkpoints/replaceable.py` allows.
REMOVE = {
  "checkpoints/destination.py",
  "checkpoints/formats/orbax.py",
  "checkpoints/train_state.py",
  "evaluators/by_command.py",
  "files.py",
  "report/web/document.py",
  "tasks/compilation_cache.py",
  "tasks/cook/run.py",
  "tasks/diagnose.py",
  "tasks/reasons/run.py",
  "tasks/workdir.py",
}
# Maximum number of .py files in a folder, besides __init__.py.
MOST_FILES = 14
PURE = {"jax", "numpy"} | sys.stdlib_module_names
# Files of soups/ that wrap other libraries; scipy is a dependency of jax.
ALSO = {
  "soups/core/crc32.py": {"google_crc32c", "isal"},
  "soups/learned/host_optimizers.py": {"scipy"},
  "soups/search/blackbox.py": {"scipy"},
}


def imports_of(path: pathlib.Path):
  """Yields (line, dotted name) of every import, in functions too."""
  tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from ((node.lineno, alias.name) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      module = "." * node.level + (node.module or "")
      for alias in node.names:
        yield node.lineno, f"{module}.{alias.name}"


def part_of(dotted: str) -> str:
  """Returns the longest entry of `ALLOWED` that a module belongs to."""
  words = dotted.split("/")
  for n in range(len(words), 0, -1):
    if "/".join(words[:n]) in ALLOWED:
      return "/".join(words[:n])
  return words[0]


def is_allowed(part: str, target: str) -> bool:
  """Returns whether a part may import another; entries include subfolders."""
  if part == target:
    return True
  words = target.split("/")
  above = {"/".join(words[:n]) for n in range(1, len(words) + 1)}
  return bool(above & ALLOWED[part])


def problems_in(package: pathlib.Path) -> list[str]:
  """Returns one line for each import or file that breaks the rules."""
  problems = []
  for path in sorted(package.rglob("*.py")):
    relative = path.relative_to(package)
    part = part_of(relative.as_posix().removesuffix(".py"))
    if part not in ALLOWED:
      problems.append(f"{relative}: {part} has no place in the structure")
      continue
    for line, name in imports_of(path):
      words = name.split(".")
      where = f"{relative}:{line}: "
      if name.startswith("."):
        problems.append(f"{where}relative import {name}")
      elif words[0] == "soupjax":
        target = part_of("/".join(words[1:] or ["__init__"]))
        if not is_allowed(part, target):
          problems.append(f"{where}{part} must not import {target}")
      elif part.startswith("soups") and words[0] not in PURE | ALSO.get(
        relative.as_posix(), set()
      ):
        problems.append(f"{where}soups must not import {words[0]}")
      for package_name, files in ONLY_IN.items():
        if f"{name}.".startswith(f"{package_name}."):
          if relative.as_posix() not in files:
            problems.append(f"{where}{package_name} is not for this file")
  return problems


def dangerous_calls(package: pathlib.Path) -> list[str]:
  """Returns one line for each call that runs data as code or removes files."""
  problems = []
  for path in sorted(package.rglob("*.py")):
    relative = path.relative_to(package).as_posix()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
      if not isinstance(node, ast.Call):
        continue
      called = ast.unparse(node.func)
      last = called.rpartition(".")[2]
      given = [ast.unparse(keyword) for keyword in node.keywords]
      if (
        called in ("eval", "exec", "os.system") or "allow_pickle=True" in given
      ):
        problems.append(f"{relative}:{node.lineno}: {called} runs code")
      removes = called == "os.remove" or last in ("rmtree", "unlink", "rmdir")
      if removes and relative not in REMOVE:
        problems.append(f"{relative}:{node.lineno}: {called} removes files")
  return problems


def module_graph(package: pathlib.Path) -> dict[str, set[str]]:
  """Returns module -> modules of the package that it imports anywhere."""
  modules = {}
  for path in sorted(package.rglob("*.py")):
    words = ("soupjax", *path.relative_to(package).with_suffix("").parts)
    modules[".".join(words).removesuffix(".__init__")] = path
  graph = {}
  for module, path in modules.items():
    names = [name for _, name in imports_of(path)]
    # `from a import b` imports the module a.b if there is one, otherwise a.
    targets = {n if n in modules else n.rpartition(".")[0] for n in names}
    graph[module] = (targets & modules.keys()) - {module}
  return graph


def cycles_in(graph: dict[str, set[str]]) -> list[str]:
  """Returns the import cycles, one line each."""
  cycles = {}
  for start in graph:
    paths, seen = [[start]], set()
    while paths:
      path = paths.pop(0)
      if start in graph[path[-1]]:
        cycles.setdefault(frozenset(path), " -> ".join([*path, start]))
        break
      fresh = sorted(graph[path[-1]] - seen)
      seen.update(fresh)
      paths += [[*path, module] for module in fresh]
  return sorted(cycles.values())


def same_names_in(package: pathlib.Path) -> list[str]:
  """Returns files that import two modules of the same name without alias."""
  problems = []
  modules = module_graph(package).keys()
  for path in sorted(package.rglob("*.py")):
    names: dict[str, str] = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
      if isinstance(node, ast.ImportFrom):
        for alias in node.names:
          full = f"{node.module}.{alias.name}"
          if alias.asname or full not in modules:
            continue
          if names.setdefault(alias.name, full) != full:
            problems.append(
              f"{path.relative_to(package)}: {names[alias.name]} and {full}"
            )
  return problems


def crowded_folders(package: pathlib.Path) -> list[str]:
  """Returns the folders with too many modules."""
  folders = {path.parent for path in package.rglob("*.py")}
  counts = {
    str(folder.relative_to(package)): len(
      [path for path in folder.glob("*.py") if path.name != "__init__.py"]
    )
    for folder in sorted(folders)
  }
  return [f"{name}: {n}" for name, n in counts.items() if n > MOST_FILES]


def test_dependencies_point_one_way():
  assert not problems_in(ROOT / "soupjax")


@pytest.mark.parametrize(
  "file,text,problem",
  [
    ("soups/a.py", "import flax", "soups must not import flax"),
    ("soups/a.py", "import os, optax.tree", "soups must not import optax"),
    ("soups/a.py", "import scipy.optimize", "soups must not import scipy"),
    (
      "soups/a.py",
      "from soupjax.checkpoints import files",
      "soups must not import checkpoints",
    ),
    (
      "soups/a.py",
      "def f():\n  from soupjax import sharding",
      ":2: soups must not import sharding",
    ),
    ("soups/a.py", "import soupjax", "soups must not import __init__"),
    (
      "checkpoints/a.py",
      "import soupjax.models.vit as vit",
      "checkpoints must not import models",
    ),
    (
      "models/vit.py",
      "from soupjax.data import ops",
      "models must not import data",
    ),
    ("data/a.py", "from soupjax import train", "data must not import train"),
    ("report/a.py", "import soupjax.tasks", "report must not import tasks"),
    ("tasks/a.py", "from soupjax import main", "tasks must not import main"),
    ("tasks/a.py", "from soupjax.main import run", "must not import main"),
    ("main.py", "from . import config", "relative import ..config"),
    ("tasks/a.py", "import orbax.checkpoint", "orbax is not for this file"),
    (
      "checkpoints/open.py",
      "from orbax.checkpoint import v1",
      "orbax is not for this file",
    ),
    ("models/a.py", "from flax import nnx", "flax.nnx is not for this file"),
    ("models/a.py", "import flax.nnx as nnx", "flax.nnx is not for this"),
    ("models/a.py", "from flax.nnx import Module", "flax.nnx is not for this"),
    ("utils/a.py", "", "utils has no place in the structure"),
    ("helpers.py", "", "helpers has no place in the structure"),
  ],
)
def test_would_notice(tmp_path, file, text, problem):
  path = tmp_path / file
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  (result,) = problems_in(tmp_path)
  assert problem in result


def test_would_let_pass_what_is_fine(tmp_path):
  fine = {
    "soups/a.py": "import functools, jax.numpy\nfrom soupjax.soups import b",
    "checkpoints/formats/orbax.py": "import orbax.checkpoint\n"
    "import soupjax.soups.core.a",
    "models/vit.py": "from flax import linen\nfrom soupjax import checkpoints",
    "tasks/a.py": "from soupjax.models import vit\nfrom soupjax import report",
    "main.py": "import soupjax.tasks.a",
  }
  for file, text in fine.items():
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(text)
  assert not problems_in(tmp_path)


def test_no_module_imports_itself_in_the_end():
  assert not cycles_in(module_graph(ROOT / "soupjax"))


def test_modules_of_one_name_have_aliases():
  assert not same_names_in(ROOT / "soupjax")


def test_no_folder_is_crowded():
  assert not crowded_folders(ROOT / "soupjax")


def test_would_notice_a_cycle(tmp_path):
  files = {
    "a.py": "from soupjax.b import c",
    "b/__init__.py": "",
    "b/c.py": "def f():\n  from soupjax.d import name",
    "d.py": "import soupjax.a",
    "e.py": "from soupjax import a, d",
  }
  for file, text in files.items():
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
  (cycle,) = cycles_in(module_graph(tmp_path))
  assert sorted(cycle.split(" -> ")[:-1]) == [
    "soupjax.a",
    "soupjax.b.c",
    "soupjax.d",
  ]


def test_would_notice_one_name_twice(tmp_path):
  files = {
    "x/a.py": "",
    "y/a.py": "",
    "bad.py": "from soupjax.x import a\ndef f():\n  from soupjax.y import a",
    "good.py": "from soupjax.x import a\nfrom soupjax.y import a as y_a",
  }
  for file, text in files.items():
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
  (problem,) = same_names_in(tmp_path)
  assert problem == "bad.py: soupjax.x.a and soupjax.y.a"


def test_would_notice_a_crowded_folder(tmp_path):
  (tmp_path / "x").mkdir()
  for k in range(MOST_FILES + 1):
    (tmp_path / "x" / f"m{k}.py").touch()
  assert crowded_folders(tmp_path) == [f"x: {MOST_FILES + 1}"]


def test_nothing_runs_data_as_code_or_removes_files_elsewhere():
  assert not dangerous_calls(ROOT / "soupjax")


def test_would_notice_dangerous_calls(tmp_path):
  (tmp_path / "a.py").write_text(
    "eval(x)\nnp.load(f, allow_pickle=True)\nshutil.rmtree(x)\np.unlink()\n"
    "re.compile(x)\nitems.remove(x)\n"
  )
  problems = [line.rpartition(": ")[2] for line in dangerous_calls(tmp_path)]
  assert problems == [
    "eval runs code",
    "np.load runs code",
    "shutil.rmtree removes files",
    "p.unlink removes files",
  ]
