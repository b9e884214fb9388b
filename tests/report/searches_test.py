# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest

from soupjax import report


def candidates(*coefficients):
  return [
    {
      "coefficients": c,
      "scores": {"a": 0.1 * k, "b": 0.2},
      "value": 0.1 * ((k * 7) % 5),
      "chosen": k == 1,
    }
    for k, c in enumerate(coefficients)
  ]


def test_pictures():
  curve = candidates((1.0,), (0.0,), (0.5,))
  (axes,) = report.search_figure("x", curve).axes
  a, b, objective, chosen = axes.lines
  assert a.get_xdata().tolist() == [0, 0.5, 1]
  np.testing.assert_allclose(a.get_ydata(), [0.1, 0.2, 0])
  np.testing.assert_allclose(b.get_ydata(), 0.2)
  np.testing.assert_allclose(objective.get_ydata(), [0.2, 0.4, 0])
  assert list(chosen.get_xdata()) == [0, 0]
  trials = candidates(*((0.1 * k, 0.5) for k in range(5)))
  (axes,) = report.search_figure("y", trials).axes
  values, best = (line.get_ydata() for line in axes.lines)
  np.testing.assert_allclose(values, [0, 0.2, 0.4, 0.1, 0.3])
  np.testing.assert_allclose(best, [0, 0.2, 0.4, 0.4, 0.4])
  with pytest.raises(ValueError, match="no candidates"):
    report.search_figure("z", [])


def test_tables_and_page(tmp_path):
  table = {
    "title": "Points <of> change",
    "columns": ["cars", "normalised"],
    "rows": {"a<b": [0.125, None]},
    "signed": True,
  }
  assert report.tables_text([table]) == (
    "Points <of> change\n        cars  normalised\na<b   +12.50            "
  )
  record = {"method": "paint", "summary": "1 < 2", "axis": "Alpha"}
  record |= {"tables": [table], "greedy": {}}
  record["searches"] = {"curve": candidates((1.0,), (0.0,))}
  (tmp_path / "search.json").write_text(json.dumps(record))
  page = report.write_search_report(tmp_path).read_text()
  assert "<td>+12.50</td><td></td>" in page and "a&lt;b" in page
  assert "1 &lt; 2" in page and "base64" in page
  assert (tmp_path / "figures/curve.png").exists()
