# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Computes the reasons that a config asks for (docs/diagnose.md)."""

import functools
import html
import pathlib
from typing import Any

import jax
import ml_collections

from soupjax import config as config_lib
from soupjax import files, processes, registry
from soupjax.report.web import document
from soupjax.tasks import workdir as workdir_lib
from soupjax.tasks.cook.inputs import CookInputs
from soupjax.tasks.reasons.base import Diagnosed, Resumed
from soupjax.tasks.reasons.ensemble import ENSEMBLE
from soupjax.tasks.reasons.features import FEATURES
from soupjax.tasks.reasons.greedy import GREEDY
from soupjax.tasks.reasons.pairs import PAIRS
from soupjax.tasks.reasons.plane import PLANE

REASONS = {
  "plane": PLANE,
  "pairs": PAIRS,
  "ensemble": ENSEMBLE,
  "features": FEATURES,
  "greedy": GREEDY,
}


def settings() -> dict[str, Any]:
  """Returns the config keys of reasons, with their defaults."""
  # Some of the names of `REASONS`, joined by commas.
  defaults: dict[str, Any] = {"reasons": ""}
  return defaults | {name: dict(r.settings) for name, r in REASONS.items()}


def names_of(config: ml_collections.ConfigDict) -> list[str]:
  """Returns the names of the requested reasons.

  Raises:
    ValueError: if one is unknown.
  """
  names = [n for n in map(str.strip, config.reasons.split(",")) if n]
  for name in names:
    if name not in REASONS:
      raise ValueError(
        f"reasons={config.reasons!r}: there is no reason {name!r}"
        f"{registry.suggestion(name, REASONS)}"
      )
  return list(dict.fromkeys(names))


def check(config: ml_collections.ConfigDict) -> None:
  """Checks the settings of reasons.

  Raises:
    ValueError: listing the invalid settings.
  """
  problems = config_lib.Problems(config)
  problems.attempt(names_of, config)
  for reason in REASONS.values():
    reason.problems(problems)
  problems.raise_if_any()


def check_inputs(opened: CookInputs) -> None:
  """Checks that the requested reasons can be computed from these inputs.

  Raises:
    ValueError: naming what is missing.
  """
  for name in names_of(opened.config):
    REASONS[name].check(opened)


def without(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Returns a config without the keys of reasons.

  A diagnosis does not depend on these, so reasons can be added afterwards.
  """
  values = {k: v for k, v in config.to_dict().items() if k not in settings()}
  return ml_collections.ConfigDict(values).lock()


def run(diagnosed: Diagnosed, workdir: pathlib.Path) -> list[str]:
  """Computes the requested reasons, unless they are finished.

  Args:
    diagnosed: the diagnosis and its inputs.
    workdir: gets `reasons/NAME.json` and `reasons/NAME.png` of each reason
      (also as SVG, PDF and CSV), and `diagnosis.html` with all of them.

  Returns:
    Lines of text that describe the requested reasons.
  """
  folder, first = workdir / "reasons", jax.process_index() == 0
  if first:
    files.make_directory(folder)
  processes.barrier("reasons")
  lines: list[str] = []
  for name in names_of(diagnosed.opened.config):
    reason, path = REASONS[name], folder / f"{name}.json"
    used = _settings_of(diagnosed.opened.config, name)
    record = workdir_lib.read(path)
    if record is None or record["settings"] != used:
      state = folder / f"{name}_values.json"
      resume = functools.partial(Resumed, path=state, stage=name, key=used)
      record = {"settings": used, **reason.compute(diagnosed, resume)}
      if first:
        files.write_json(path, record)
        state.unlink(missing_ok=True)
    lines += ["", f"{reason.heading}:", *reason.describe(record)]
  if first and lines:
    files.write_text(workdir / "diagnosis.html", _page(diagnosed, workdir))
  processes.barrier("reasons done")
  return lines


def _settings_of(config, name: str) -> dict[str, Any]:
  return config_lib.to_dict(config)[name] if name in config else {}


def _page(diagnosed: Diagnosed, workdir: pathlib.Path) -> str:
  """Returns the diagnosis with all reasons computed so far, as HTML."""
  text = (workdir / "diagnosis.txt").read_text("utf-8")
  title = f"Diagnosis of {len(diagnosed.ingredients)} ingredients"
  body = [f"<h1>{title}</h1>", f"<pre>{html.escape(text)}</pre>"]
  for name, reason in REASONS.items():
    path = workdir / "reasons" / f"{name}.json"
    if not path.exists():
      continue
    record = files.read_json(path)
    lines = [html.escape(line) for line in reason.describe(record)]
    caption = html.escape(reason.caption)
    if len(lines) > 4:
      items = "".join(f"<li>{line}</li>" for line in lines)
      caption = f"{caption}<ul>{items}</ul>"
    else:
      caption = " ".join([caption, *lines])
    body.append(
      document.picture(
        reason.draw(record), path.with_suffix(".png"), reason.heading, caption
      )
    )  # fmt: skip
  return document.document(title, body)
