# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Self-contained HTML documents: style, script, figures and their files."""

import base64
from collections.abc import Mapping, Sequence
import functools
import html
import json
import pathlib
from typing import Any
import urllib.parse

from matplotlib.figure import Figure

from soupjax import files
from soupjax.report.web import drawings

_CSS = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
  max-width: 70rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; margin: .5rem 0; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
figure { margin: 1rem 0; }
figure svg { display: block; max-width: 100%; height: auto; }
figcaption { color: #444; font-size: .9rem; max-width: 46rem;
  margin: .5rem 0 0; overflow-wrap: anywhere; }
p, ul { max-width: 46rem; }
p, li { overflow-wrap: anywhere; }
p > small { display: block; line-height: 1.4; }
.hint { color: #555; font-size: .85rem; margin: 0; }
/* A shadow shows that there is more to the right. */
.wide { overflow-x: auto; width: fit-content; max-width: 100%; background:
  linear-gradient(to left, #fff 50%, #fff0) right / 2rem 100% no-repeat local,
  linear-gradient(to left, #0004, #0000) right / .7rem 100% no-repeat scroll; }
table { border-collapse: separate; border-spacing: 0;
  font-size: .78rem; line-height: 1.3;
  font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .4rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid #ddd; }
thead th { border-bottom: 2px solid #333; vertical-align: bottom;
  white-space: normal; }
th small { white-space: nowrap; }
th:first-child { text-align: left; position: sticky; left: 0;
  background: #fff; }
tbody th { font-weight: normal; white-space: normal; min-width: 6rem;
  overflow-wrap: anywhere; }
td small { display: block; color: #555; font-size: .72rem; }
td.mean { border: 0 solid #999; border-width: 0 1px;
  border-bottom: 1px solid #ddd; }
tr.best > *, tr.best > th:first-child { background: #eef6f2; }
tr.ensemble > * { font-style: italic; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .8rem; }
thead th[tabindex] { cursor: pointer; }
th[aria-sort="ascending"]::after { content: " \\2191"; }
th[aria-sort="descending"]::after { content: " \\2193"; }
.switches { margin: .2rem 0; font-size: .85rem; max-width: none; }
.switches label { margin-right: .8rem; white-space: nowrap; }
.switches button { font: inherit; }
[data-model] { cursor: help; }
#tip { position: fixed; z-index: 1; max-width: 30rem; max-height: 90vh;
  overflow: hidden; padding: .4rem .6rem; font-size: .75rem; line-height: 1.35;
  white-space: pre-line; overflow-wrap: anywhere; pointer-events: none;
  background: #fff; border: 1px solid #333; }
#tip[hidden] { display: none; }
@media (max-width: 30rem) { pre { font-size: .55rem; } }
@media print {
  @page { size: A4; margin: 14mm; }
  body { font-size: 10pt; max-width: none; padding: 0; }
  figure, tr, p, li { break-inside: avoid; }
  h2 { break-after: avoid; }
  figure svg { max-width: 13.5cm; }
  .hint, .switches, #tip, figcaption a { display: none; }
  .wide { overflow: visible; background: none; }
  table { font-size: 6.6pt; width: 100%; }
  th, td { padding: 1.2pt 2pt; }
  td small { font-size: 5.2pt; }
}
"""


def save(
  drawn: Figure | None, path: pathlib.Path, models: Sequence[str] = ()
) -> tuple[str, str] | None:
  """Saves a figure as PNG, SVG and PDF, and its data as CSV.

  Args:
    drawn: the figure; None removes the files of an earlier report.
    path: path of the PNG; the other files are written beside it.
    models: names of the models in the page's data, in order. Points named after
      one of these models refer to it.

  Returns:
    The figure as inline SVG and links to its files; None without a figure.
  """
  if drawn is None:
    for suffix in (*drawings.FORMATS, "csv"):
      path.with_suffix(f".{suffix}").unlink(missing_ok=True)
    return None
  saved = drawings.save(drawn)
  files.make_directory(path.parent)
  for suffix, data in saved.items():
    path.with_suffix(f".{suffix}").write_bytes(data)
  svg = drawings.inline(saved["svg"], path.stem, models)
  here = urllib.parse.quote(f"{path.parent.name}/{path.stem}", errors="replace")
  # The data is embedded in the page; pictures stay beside it.
  table = base64.b64encode(saved["csv"]).decode("ascii")
  name = html.escape(path.stem)
  links = [
    f'<a href="data:text/csv;base64,{table}" download="{name}.csv">CSV</a>',
    *(f'<a href="{here}.{x}">{x.upper()}</a>' for x in drawings.FORMATS),
  ]
  return svg, " ".join(links)


def figure(saved: tuple[str, str], heading: str, caption: str) -> str:
  """Returns the result of `save` with heading and caption, as HTML."""
  svg, links = saved
  return (
    f"<h2>{heading}</h2>\n"
    f'<figure aria-label="{heading}">{svg}\n'
    f"<figcaption>{caption} <small>{links}</small></figcaption></figure>"
  )


def picture(
  drawn: Figure | None, path: pathlib.Path, heading: str, caption: str = ""
) -> str:
  """Saves a figure and returns it as HTML; "" without a figure."""
  saved = save(drawn, path)
  return figure(saved, heading, caption) if saved else ""


def models_of(
  results: pathlib.Path,
  hyperparameters: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, Any]]:
  """Returns the data of models that the page shows for points in figures.

  Args:
    results: `results.jsonl`.
    hyperparameters: model -> its hyperparameters, where known.

  Returns:
    Dicts in the order of the file, with "name", "kind", "hyperparameters" and
    "scores": dataset -> metric -> the remaining fields of the line, unchanged.
  """
  models: dict[str, dict[str, Any]] = {}
  for line in results.read_text("utf-8").splitlines():
    cell = json.loads(line)
    name, kind, dataset, metric = (
      cell.pop(k) for k in ("model", "kind", "dataset", "metric")
    )
    known = {"hyperparameters": hyperparameters.get(name, {}), "scores": {}}
    model = models.setdefault(name, {"name": name, "kind": kind, **known})
    model["scores"].setdefault(dataset, {})[metric] = cell
  return list(models.values())


def hyperparameters_of(
  folder: pathlib.Path, names: Sequence[str]
) -> dict[str, dict[str, Any]]:
  """Reads the hyperparameters of the ingredients that have them on disk."""
  # A name such as "../x" is never in this set, so it is not opened.
  present = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
  paths = {n: folder / n / "hyperparameters.json" for n in names}
  values = {
    name: files.read_json(path)
    for name, path in paths.items()
    if name in present and path.is_file()
  }
  return {k: v for k, v in values.items() if isinstance(v, dict)}


def configuration(config: Any) -> str:
  """Returns a config as HTML."""
  text = html.escape(json.dumps(config, indent=2))
  return (
    "<h2>Configuration</h2>\n<details><summary>config.json</summary>"
    f"<pre>{text}</pre></details>"
  )


def document(
  title: str,
  body: Sequence[str],
  models: Sequence[Mapping[str, Any]] = (),
) -> str:
  """Returns a page as HTML.

  Args:
    title: the title, as HTML.
    body: the parts of the page, as HTML.
    models: data from `models_of`, for the points in the figures.
  """
  data = json.dumps(_finite(models), separators=(",", ":"), allow_nan=False)
  # Only "<" can end the script element, or open a comment in it.
  data = data.replace("<", "\\u003c")
  return (
    '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f"<title>{title}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n"
    + "\n".join(body)
    + f'\n<script type="application/json" id="results">{data}</script>'
    + f"\n<script>\n{_script()}</script>\n</body>\n</html>\n"
  )


@functools.cache
def _script() -> str:
  path = pathlib.Path(__file__).with_name("page.js")
  return path.read_text("utf-8")


def _finite(value: Any) -> Any:
  """Returns a value with NaN and infinity, which JSON lacks, as text."""
  if isinstance(value, Mapping):
    return {k: _finite(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [_finite(v) for v in value]
  if isinstance(value, float) and value - value != 0:
    return str(value)
  return value
