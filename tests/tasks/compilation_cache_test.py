# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Commands find programs that earlier ones compiled; nothing else changes."""

import json
import os
import pathlib

import helpers
import jax
import numpy as np
import pytest

import soupjax as sj
from soupjax.tasks import compilation_cache

# Runs without the cache that all tests share, as at a user's. Prints how many
# programs were found and compiled.
_CODE = """
import jax, numpy, soupjax.main
from soupjax.tasks import compilation_cache, failures
for name in list(os.environ):
  if name.startswith(("JAX_PERSISTENT", "JAX_COMPILATION")):
    del os.environ[name]
jax.config.update("jax_compilation_cache_dir", None)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
os.environ["XDG_CACHE_HOME"] = {cache!r}
counts = dict(hits=0, misses=0)
def count(event, **_):
  for name in counts:
    counts[name] += event == "/jax/compilation_cache/cache_" + name
jax.monitoring.register_event_listener(count)
{run}
print("programs:", json.dumps(counts))
"""
# Compiles two programs, finds them, damages them, and does both again.
_DAMAGED = """
def compile():
  counts.update(hits=0, misses=0)
  jax.clear_caches()
  for factor in (2, 3):
    def multiply(x):
      return x * factor
    multiply.__name__ = f"times_{factor}"
    assert float(jax.jit(multiply)(numpy.ones(()))) == factor
  print(*counts.values())
with failures.reported():
  folder = compilation_cache.use()
  compile()
  compile()
  first, second = sorted(folder.glob("jit_times_*"))
  first.write_bytes(b"of another program")
  second.write_bytes(second.read_bytes()[:-40])
  compile()
  compile()
"""


def run(cache, code, *arguments):
  """Returns hits, misses, what else was printed, and errors."""
  code = _CODE.format(cache=str(cache), run=code)
  done = helpers.soupjax(*arguments, code=code)
  assert done.returncode == 0, done.stderr
  printed, _, counts = done.stdout.partition("programs: ")
  return *json.loads(counts).values(), printed, done.stderr


def entries(cache):
  return [p for p in pathlib.Path(cache).rglob("*-cache") if p.is_file()]


def test_a_second_command_compiles_nothing_and_writes_the_same(tmp_path):
  rng, cache = np.random.default_rng(0), tmp_path / "cache"
  for name in "ab":
    params = {"w": rng.normal(size=(30, 20)).astype("f")}
    sj.save_params(tmp_path / f"{name}.safetensors", params)

  def mix(name, *flags):
    return run(
      cache,
      "soupjax.main.run()",
      f"--config={helpers.ROOT / 'configs' / 'mix.py'}",
      f"--config.ingredients={tmp_path}/?.safetensors",
      f"--config.out={tmp_path / name}.safetensors",
      *flags,
    )

  hits, misses, *_ = mix("plain", "--nocompilation_cache")
  assert hits == misses == 0 and not cache.exists()
  hits, misses, _, said = mix("first")
  assert hits == 0 and misses > 0 and not said
  assert len(entries(cache)) == misses
  assert all(p.stat().st_mode & 0o77 == 0 for p in cache.glob("soupjax/c*"))
  assert mix("second")[:2] == (misses, 0)
  soups = {
    (tmp_path / f"{name}.safetensors").read_bytes()
    for name in ("plain", "first", "second")
  }
  assert len(soups) == 1


def test_damaged_and_foreign_entries_are_compiled_again_once(tmp_path):
  _, _, printed, said = run(tmp_path, _DAMAGED)
  assert printed.splitlines() == ["0 2", "2 0", "0 2", "2 0"]
  assert len(said.splitlines()) == 1 and "cannot be read" in said
  assert str(entries(tmp_path)[0].parent) in said


@pytest.fixture
def no_cache(monkeypatch, tmp_path):
  """Without the cache of the tests; nothing is compiled meanwhile."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  folder = jax.config.jax_compilation_cache_dir
  jax.config.update("jax_compilation_cache_dir", None)
  yield
  assert jax.config.jax_compilation_cache_dir is None
  jax.config.update("jax_compilation_cache_dir", folder)


@pytest.mark.parametrize("kind", ["a file", "of others"])
def test_a_folder_that_cannot_be_used_is_said_once(
  no_cache, monkeypatch, tmp_path, kind
):
  cache, said = tmp_path / "cache", []
  if kind == "a file":
    cache.write_text("")
  else:
    (cache / "soupjax" / "compiled").mkdir(parents=True)
    (cache / "soupjax" / "compiled").chmod(0o777)
  monkeypatch.setattr(
    compilation_cache.logging,
    "warning",
    lambda text, *values: said.append(text % values),
  )
  assert compilation_cache.use() is None
  assert len(said) == 1 and f"{cache}/soupjax" in said[0]
  assert "XDG_CACHE_HOME" in said[0] and "--nocompilation_cache" in said[0]


def test_processes_that_compile_together_do_without(
  no_cache, monkeypatch, tmp_path
):
  monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
  assert compilation_cache.use() is None
  assert not any(tmp_path.iterdir())


def test_a_cache_of_the_user_stays(monkeypatch, tmp_path):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  folder = jax.config.jax_compilation_cache_dir
  assert folder == os.environ["JAX_COMPILATION_CACHE_DIR"]
  assert compilation_cache.use() is None
  assert jax.config.jax_compilation_cache_dir == folder
  assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
  "flags,clock,cores,same",
  [
    ("sse avx", 2700, 2, True),
    ("sse", 2000, 2, False),
    ("sse avx", 2000, 3, False),
  ],
)
def test_other_machines_have_folders_of_their_own(
  monkeypatch, flags, clock, cores, same
):
  def machine(flags, clock, cores):
    text = f"processor: 0\nflags : {flags}\ncpu MHz : {clock}\n\nprocessor: 1\n"
    monkeypatch.setattr(pathlib.Path, "read_text", lambda *_, **__: text)
    count = range(cores)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: count, raising=False)
    return compilation_cache._machine()

  assert (machine("sse avx", 2000, 2) == machine(flags, clock, cores)) == same


def test_the_programs_used_longest_ago_make_room(monkeypatch, tmp_path):
  monkeypatch.setattr(compilation_cache, "_MAX_BYTES", 250)
  for k, name in enumerate("cadb"):
    path = tmp_path / f"jaxlib-{k % 2}" / f"{name}-cache"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes(100))
    os.utime(path, (1000 * k, 1000 * k))
  compilation_cache._remove_oldest(tmp_path)
  assert sorted(p.name[0] for p in entries(tmp_path)) == ["b", "d"]
