# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""A figure as PNG, SVG, PDF and inline SVG, and its data as a table."""

from collections.abc import Iterator, Sequence
import csv
import html
import io
import re
from typing import Any
import urllib.parse

import matplotlib
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import AxLine
from matplotlib.patches import StepPatch
import numpy as np

from soupjax.report.style import GROUPS, MODEL

# The first format decides the layout of all.
FORMATS = ("png", "svg", "pdf")
_SETTINGS = {
  "svg.hashsalt": "soupjax",
  "figure.autolayout": False,
  "figure.constrained_layout.use": False,
}
_PIXELS_A_POINT = 1.5  # CSS pixels, on a page that is wide enough.
COLUMNS = ("panel", "x_axis", "y_axis", "series", "name", "x", "y", "value")


def save(figure: Figure) -> dict[str, bytes]:
  """Returns a figure as "png", "svg" and "pdf", and its data as "csv".

  The same figure gives the same bytes.
  """
  saved = {}
  for form in FORMATS:
    # Names of files that are not UTF-8 contain surrogates.
    buffer: Any = io.StringIO() if form == "svg" else io.BytesIO()
    options: dict[str, Any] = {}
    if form != "png":
      options["metadata"] = {"Date" if form == "svg" else "CreationDate": None}
    with matplotlib.rc_context(_SETTINGS):
      figure.savefig(buffer, format=form, **options)
      # To compute the layout again, each format would draw the figure twice.
      figure.set_layout_engine(None)
    written = buffer.getvalue()
    saved[form] = _encoded(written) if form == "svg" else written
  table = io.StringIO(newline="")
  writer = csv.writer(table, lineterminator="\n")
  writer.writerow(COLUMNS)
  writer.writerows(data_of(figure))
  saved["csv"] = _encoded(table.getvalue())
  return saved


def _unquoted(text: str) -> str:
  return urllib.parse.unquote(text, errors="surrogateescape")


def _encoded(text: str) -> bytes:
  return text.encode("utf-8", "surrogateescape")


def inline(svg: bytes, prefix: str, models: Sequence[str]) -> str:
  """Returns an SVG file as an element of an HTML page.

  Args:
    svg: the SVG file, from `save`.
    prefix: goes before all ids, so that those of several figures differ.
    models: names of models; the points of each get its index as "data-model".

  Returns:
    The element. Artists of `style.grouped` have the names of their groups as
    "data-groups", a JSON list.
  """
  text = svg.decode("utf-8", "surrogateescape")
  text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", text, flags=re.S)
  text = text[text.index("<svg") :]
  text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)
  # The text of all figures has the same size, whatever their widths.
  size = re.search(r' width="([\d.]+)pt" height="[\d.]+pt"', text)
  if size:
    width = f' style="width: {_PIXELS_A_POINT * float(size[1]):.0f}px"'
    text = text.replace(size[0], "", 1).replace("<svg", f"<svg{width}", 1)
  prefix = re.sub(r"[^\w-]", "_", prefix, flags=re.A)
  index = {name: i for i, name in enumerate(models)}

  def point(match):
    place = index.get(_unquoted(match[1]))
    return "<g>" if place is None else f'<g data-model="{place}">'

  def groups(match):
    return f'data-groups="{html.escape(_unquoted(match[1]))}"'

  text = re.sub(rf'<a [^>]*?xlink:href="{MODEL}([^"]*)"[^>]*>', point, text)
  text = re.sub(rf'id="{GROUPS}([^"]*)"', groups, text)
  text = re.sub(r' id="', f' id="{prefix}-', text)
  text = re.sub(r'(xlink:href="|url\()#', rf"\1#{prefix}-", text)
  return re.sub(r"\n\s*", "\n", text.replace("</a>", "</g>")).strip()


def data_of(figure: Figure) -> Iterator[tuple]:
  """Yields the numbers that a figure shows, as rows of `COLUMNS`.

  There is a row for each point of lines, scatter plots, steps and bands, and
  for each cell of images and of `style.contours`. x and y are as on the axes;
  cells and coloured points also have a value.
  """
  for axes in figure.axes:
    if axes.get_label() == "<colorbar>":
      continue
    title = axes.get_title() or axes.get_title(loc="left")
    head = title, axes.get_xlabel(), axes.get_ylabel()
    for x, y, value in vars(axes).get("cells", ()):
      yield *head, "", "", x, y, value
    for line in axes.lines:
      if not isinstance(line, AxLine):
        for x, y in line.get_xydata().tolist():
          yield *head, _label(line), "", x, y, ""
    for drawn in axes.collections:
      if isinstance(drawn, PathCollection):
        places = np.ma.getdata(drawn.get_offsets()).tolist()
        names = [u or "" for u in drawn.get_urls()]
        names += [""] * (len(places) - len(names))
        values = drawn.get_array()
        values = [""] * len(places) if values is None else values.tolist()
        for (x, y), name, value in zip(places, names, values):
          name = _unquoted(name.removeprefix(MODEL))
          yield *head, _label(drawn), name, x, y, value
      elif isinstance(drawn, PolyCollection):
        for x, y in drawn.get_paths()[0].vertices.tolist():
          yield *head, _label(drawn), "", x, y, ""
    for patch in axes.patches:
      if isinstance(patch, StepPatch):
        heights, edges, _ = patch.get_data()
        for x, y in zip((edges[:-1] + edges[1:]) / 2, heights):
          yield *head, _label(patch), "", float(x), float(y), ""
    for image in axes.images:
      cells = np.ma.filled(image.get_array(), np.nan)
      rows = [t.get_text() for t in axes.get_yticklabels()]
      for y, row in enumerate(cells.tolist()):
        name = rows[y] if len(rows) == len(cells) else ""
        for x, value in enumerate(row):
          yield *head, "", name, x, y, value


def _label(artist) -> str:
  """Returns the name in the legend, if the artist has one."""
  text = str(artist.get_label())
  return "" if text.startswith("_") else text
