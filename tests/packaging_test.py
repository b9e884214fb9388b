# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The wheel contains all of soupjax and works outside the checkout."""

import configparser
import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

from packaging import requirements, utils
import pytest

import soupjax

ROOT = pathlib.Path(__file__).parents[1]


def run(*command, **kwargs):
  done = subprocess.run(command, capture_output=True, text=True, **kwargs)
  return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  # From the test extra; older versions cannot build wheels by themselves.
  pytest.importorskip("setuptools", minversion="77")
  # In a copy: a build in the checkout would pick up files of earlier builds.
  source = tmp_path_factory.mktemp("source")
  for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
    shutil.copy(ROOT / name, source)
  ignore = shutil.ignore_patterns("__pycache__")
  shutil.copytree(ROOT / "soupjax", source / "soupjax", ignore=ignore)
  target = tmp_path_factory.mktemp("wheel")
  pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps")
  options = ("--no-build-isolation", f"--wheel-dir={target}", str(source))
  code, output = run(*pip, *options)
  assert code == 0, output
  (path,) = target.glob("*.whl")
  return path


@pytest.fixture(scope="module")
def outside(wheel, tmp_path_factory):
  """Installs the wheel.

  Returns:
    Its directory, and a function that runs a command with it in an empty
    directory.
  """
  site = tmp_path_factory.mktemp("site")
  # Without dependencies, which come from the environment of the tests.
  pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps")
  code, output = run(*pip, f"--target={site}", str(wheel))
  assert code == 0, output
  environment = {**os.environ, "PYTHONPATH": str(site)}
  elsewhere = tmp_path_factory.mktemp("elsewhere")
  return site, lambda *command: run(*command, cwd=elsewhere, env=environment)


def test_wheel_holds_every_module_and_nothing_else(wheel):
  with zipfile.ZipFile(wheel) as archive:
    names = set(archive.namelist())
  modules = {
    p.relative_to(ROOT).as_posix() for p in (ROOT / "soupjax").rglob("*.py")
  }
  info = f"soupjax-{soupjax.__version__}.dist-info"
  package = {n for n in names if not n.startswith(info)}
  others = {"soupjax/py.typed", "soupjax/report/web/page.js"}
  assert package == modules | others
  assert f"{info}/licenses/LICENSE" in names


def test_wheel_imports_outside_the_checkout(outside):
  site, run_outside = outside
  code = "import soupjax; print(soupjax.__file__, soupjax.__version__)"
  status, output = run_outside(sys.executable, "-c", code)
  assert status == 0, output
  expected = f"{site / 'soupjax' / '__init__.py'} {soupjax.__version__}"
  assert output.strip().splitlines()[-1] == expected


def test_command_explains_itself_outside_the_checkout(outside):
  site, run_outside = outside
  # absl exits with 1 after --help.
  _, output = run_outside(sys.executable, str(site / "bin/soupjax"), "--help")
  assert "Traceback" not in output, output
  assert "--config" in output and "--workdir" in output
  assert "fine-tuning" in output


@pytest.mark.parametrize("python", ["3.11", "3.13"])
def test_pinned_requirements_satisfy_setup_cfg(python):
  parser = configparser.ConfigParser()
  parser.read(ROOT / "setup.cfg")
  path = ROOT / "requirements" / f"py{python.replace('.', '')}.txt"
  lines = path.read_text().splitlines()
  command = " ".join(line for line in lines if line.startswith("#"))
  assert f"uv pip compile setup.cfg --python-version {python} " in command
  pins = {}
  for line in lines:
    if not line.startswith("#"):
      pin = requirements.Requirement(line)
      ((operator, version),) = [(s.operator, s.version) for s in pin.specifier]
      assert operator == "==", line
      pins[utils.canonicalize_name(pin.name)] = version
  extras = re.findall(r"--extra (\S+)", command)
  texts = parser["options"]["install_requires"].splitlines()
  for extra in extras:
    texts += parser["options.extras_require"][extra].splitlines()
  environment = {"python_version": python, "platform_machine": "x86_64"}
  for text in filter(None, texts):
    needed = requirements.Requirement(text)
    if needed.marker and not needed.marker.evaluate(environment):
      continue
    name = utils.canonicalize_name(needed.name)
    hint = f"{text!r} of setup.cfg: run the command in {path.name} again"
    assert name in pins, hint
    assert needed.specifier.contains(pins[name]), hint
