# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The page's data, its script, and the ids by which they meet."""

from html import parser
import json
import pathlib
import re
import shutil
import subprocess

import helpers
import pytest

from soupjax import report
from soupjax.report.web import document, drawings

HERE = pathlib.Path(__file__).parent
SCRIPT = pathlib.Path(document.__file__).with_name("page.js")
# Names that HTML, SVG, CSV and scripts could read as something else.
EVIL = "</script><!--<script>'\"&$_--url(#x)"


class Tree(parser.HTMLParser):
  """The elements of a page: (tag, attributes, children and texts)."""

  def __init__(self, text):
    super().__init__()
    self.open = [("", {}, [])]
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    element = (tag, dict(attrs), [])
    self.open[-1][2].append(element)
    if tag not in ("meta", "br", "wbr"):
      self.open.append(element)

  def handle_endtag(self, tag):
    self.open.pop()

  def handle_data(self, data):
    self.open[-1][2].append(data)

  @property
  def root(self):
    (root,) = [child for child in self.open[0][2] if isinstance(child, tuple)]
    return root


@pytest.fixture(scope="module")
def page(tmp_path_factory):
  """Writes the page of a run with an evil soup; returns its path."""
  workdir = helpers.write_run(tmp_path_factory.mktemp("run"))
  lines = helpers.with_gains(helpers.records())
  lines += helpers.records_of(EVIL, "soup", 0.9, 0.91, 0.7, loss=float("nan"))
  helpers.write_results(workdir, lines)
  path = workdir / "ingredients/ingredient_00/hyperparameters.json"
  path.write_text(json.dumps({"augment": EVIL, "optimizer": {"beta": 0.9}}))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(drawings, "FORMATS", ("svg",))
    return report.write_report(workdir)


def data_of(page):
  block = re.search(
    r'<script type="application/json" id="results">(.*?)</script>',
    page.read_text(),
  )
  return json.loads(block[1])


def test_the_data_of_the_page_is_that_of_the_file(page):
  lines = (page.parent / "results.jsonl").read_text().splitlines()
  expected = [json.loads(line.replace("NaN", '"nan"')) for line in lines]
  found = [
    {"model": model["name"], "kind": model["kind"], "dataset": dataset}
    | {"metric": metric, **cell}
    for model in data_of(page)
    for dataset, metrics in model["scores"].items()
    for metric, cell in metrics.items()
  ]

  def by(cell):
    return cell["model"], cell["dataset"], cell["metric"]

  assert sorted(found, key=by) == sorted(expected, key=by)
  (first,) = [m for m in data_of(page) if m["name"] == "ingredient_01"]
  assert first["hyperparameters"] == {"learning_rate": 0.002, "augment": "none"}


def figures_of(page):
  parts = re.findall(r"<figure.*?</figure>", page.read_text(), re.S)
  return [part for part in parts if "data-model" in part]


def test_points_are_those_of_the_data(page):
  models = [model["name"] for model in data_of(page)]
  plane, shifts, greedy = figures_of(page)
  points = re.findall(r'data-model="(\d+)"', plane)
  # The mean ingredient is not a model.
  assert sorted(map(int, points)) == list(range(len(models)))
  drawn = [m for m in models if not m.startswith("wise_ft")]
  points = re.findall(r'data-model="(\d+)"', shifts)
  assert len(points) == len(drawn) * len(helpers.SHIFTS)
  tried = {models[int(i)] for i in re.findall(r'data-model="(\d+)"', greedy)}
  trace = json.loads((page.parent / "soups/greedy/greedy.json").read_text())
  assert tried == {d["name"] for d in trace["history"] if d["score"]}
  text = page.read_text()
  ids = re.findall(r' id="([^"]*)"', text)
  assert len(ids) == len(set(ids))
  targets = re.findall(r'(?:xlink:href="|url\()#([^")]*)', text)
  assert set(targets) - {"x"} <= set(ids)  # One is in a name.


@pytest.fixture(scope="module")
def answers(page):
  """Runs the script on the page with Node.js."""
  node = shutil.which("node")
  if node is None:
    pytest.skip("the script needs Node.js, which is not installed")
  done = subprocess.run(
    [node, HERE / "dom.js", SCRIPT],
    input=json.dumps(Tree(page.read_text()).root),
    capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


def test_pointing_tells_name_scores_and_hyperparameters(page, answers):
  models = data_of(page)
  assert len(answers["pointed"]) > 50 and answers["left"]
  for index, text in answers["pointed"]:
    assert text.startswith(f"{models[index]['name']} ({models[index]['kind']})")
  texts = {models[i]["name"]: text for i, text in answers["pointed"]}
  assert texts["ingredient_01"].splitlines() == [
    "ingredient_01 (ingredient)",
    "learning_rate = 0.002",
    "augment = none",
    "minival, n = 200: 97.0 %, loss 0.1",
    "test, n = 200: 95.0 %, loss 0.1",
    *(
      f"{split}, n = 200: {value} %, loss 0.1"
      for split, value in zip(helpers.SHIFTS, ("75.0", "76.0", "77.0"))
    ),
  ]
  assert "test, n = 200: 96.0 % (+1.0 [0.2, 1.8])" in texts["greedy"]
  assert "loss nan" in texts[EVIL]
  assert (
    f'augment = {EVIL}\noptimizer = {{"beta":0.9}}' in (texts["ingredient_00"])
  )


def test_a_browser_shows_the_values_without_errors(page, tmp_path):
  names = ("chromium", "chromium-browser", "google-chrome")
  browser = next(filter(None, map(shutil.which, names)), None)
  if browser is None:
    pytest.skip(f"none of {', '.join(names)} is installed")
  place = [model["name"] for model in data_of(page)].index("greedy")
  point = f"document.querySelector('[data-model=\"{place}\"]')"
  event = "new PointerEvent('pointerover', {bubbles: true})"
  harness = f"<script>{point}.dispatchEvent({event})</script></body>"
  text = page.read_text().replace("</body>", harness)
  (tmp_path / "page.html").write_text(text)
  options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"]
  options += ["--enable-logging=stderr", "--virtual-time-budget=2000"]
  done = subprocess.run(
    [browser, *options, f"--user-data-dir={tmp_path / 'profile'}"]
    + [(tmp_path / "page.html").as_uri()],
    capture_output=True, text=True, check=False, timeout=120,
  )  # fmt: skip
  assert "CONSOLE" not in done.stderr, done.stderr
  (tip,) = re.findall(r'<div id="tip".*?>(.*?)</div>', done.stdout, re.S)
  assert tip.startswith("greedy (soup)")
  assert "test, n = 200: 96.0 % (+1.0 [0.2, 1.8])" in tip
  assert 'type="checkbox"' in done.stdout


def test_tables_sort_by_numbers_and_names(page, answers):
  columns = answers["tables"][0]
  test = columns[3]
  assert set(test[0][:2]) == {"Ensemble of all", "Greedy ensemble"}  # 97.0 %
  assert test[0] != test[1] and sorted(test[0]) == sorted(test[1])
  assert columns[0][0] == sorted(columns[0][0], key=str.lower)
  assert columns[0][1] == columns[0][0][::-1]
  assert answers["keys"] == [96, -1, 0.5, 4, "a", None]
  assert answers["orders"] == [[3, 0, 4, 2, 1], [0, 3, 2, 4, 1]]


def test_groups_can_be_switched_off(answers):
  plane, shifts = answers["switches"][:2]
  kinds = ["ingredients", "best or reference", "initial model", "soups"]
  assert set(plane) == {*kinds, "ensembles", "WiSE-FT"}
  # The points and the labels of all soups.
  assert plane["soups"] == 6 * [["soups"]]
  first = helpers.SHIFTS[0]
  assert set(shifts) == {*helpers.SHIFTS, *kinds, "ensembles"}
  assert shifts[first] == [
    [first, group] for group in
    ("ingredients", "best or reference", "initial model", "soups", "ensembles")
  ]  # fmt: skip
  assert len(shifts["soups"]) == len(helpers.SHIFTS)
