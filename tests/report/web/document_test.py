# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The page's data, its script, and the ids by which they meet."""

import csv
from html import parser
import io
import json
import pathlib
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from xml.etree import ElementTree

import browser
import helpers
from PIL import Image
import pytest

from soupjax import report
from soupjax.report import figures
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
  assert "81.0 % (~+5.0 [-1.0, 11.0])" in texts["greedy"]
  assert "loss nan" in texts[EVIL]
  assert (
    f'augment = {EVIL}\noptimizer = {{"beta":0.9}}' in (texts["ingredient_00"])
  )


@pytest.fixture(scope="module")
def tab(page):
  """Opens the page in a browser, once for the tests that question it."""
  if browser.executable() is None:
    pytest.skip(f"none of {', '.join(browser.NAMES)} is installed")
  with browser.Browser() as opened:
    opened.open(page)
    yield opened


def test_a_browser_loads_the_page_and_nothing_else(page, tab):
  assert tab.problems == []
  own = page.resolve().as_uri()
  others = [r for r in tab.requests if not r.startswith("data:image/png;")]
  assert others == [own]
  # Only tables may be wider than the window, and scroll.
  for width in (1280, 390):
    tab.resize(width, 900)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
  tab.resize(1280, 900)


def expected_tip(page, name):
  """Returns the text about a model, from the files of the run."""
  lines = (page.parent / "results.jsonl").read_text().splitlines()
  cells = [c for c in map(json.loads, lines) if c["model"] == name]
  texts = [f"{name} ({cells[0]['kind']})"]
  path = page.parent / "ingredients" / name / "hyperparameters.json"
  if path.is_file():
    for key, value in json.loads(path.read_text()).items():
      plain = value if isinstance(value, str) else json.dumps(value)
      texts.append(f"{key} = {plain}".replace(": ", ":"))
  for dataset in dict.fromkeys(c["dataset"] for c in cells):
    values = {c["metric"]: c for c in cells if c["dataset"] == dataset}
    top = values["prec@1"]
    text = (
      f"{dataset.split('/')[1]}, n = {top['n']}: {100 * top['value']:.1f} %"
    )
    if "difference" in top:
      points = (100 * top[k] for k in ("difference", "low", "high"))
      mark = "~" * (top["low"] <= 0 <= top["high"])
      text += " ({}{:+.1f} [{:.1f}, {:.1f}])".format(mark, *points)
    if "loss" in values:
      text += f", loss {values['loss']['value']:.4g}"
    texts.append(text)
  return "\n".join(texts)


def test_a_browser_tells_models_pointed_at(page, tab):
  names = [model["name"] for model in data_of(page)]
  for name in ("ingredient_00", "ingredient_02", "greedy", EVIL):
    points = (
      f"document.querySelectorAll('[data-model=\"{names.index(name)}\"]')"
    )
    # In the first figure, points of several ingredients cover each other.
    x, y = tab.evaluate(f"""(() => {{
      const point = [...{points}].at(-1);
      point.scrollIntoView({{block: "center"}});
      const box = point.getBoundingClientRect();
      return [box.x + box.width / 2, box.y + box.height / 2];
    }})()""")
    tab.point(x, y)
    tip = "document.getElementById('tip')"
    text = tab.evaluate(f"{tip}.innerText")
    assert expected_tip(page, name) in text.split("\n\n"), name
    box = tab.evaluate(f"{tip}.getBoundingClientRect().toJSON()")
    assert 0 <= box["left"] < box["right"] <= 1280
    assert 0 <= box["top"] < box["bottom"] <= 900
    tab.point(1, 1)
    assert tab.evaluate(f"{tip}.offsetWidth") == 0


def test_a_browser_switches_groups(tab):
  shown = """[...document.querySelectorAll("figure")[1]
    .querySelectorAll("[data-groups]")].map((member) => [
      JSON.parse(member.dataset.groups), member.getClientRects().length > 0])"""
  assert all(visible for _, visible in tab.evaluate(shown))
  for group in ("soups", helpers.SHIFTS[0]):
    x, y = tab.evaluate(f"""(() => {{
      const bar = document.querySelectorAll("figure")[1];
      const box = [...bar.querySelectorAll("label")].find(
        (label) => label.textContent.trim() === "{group}").firstChild;
      box.scrollIntoView({{block: "center"}});
      const place = box.getBoundingClientRect();
      return [place.x + place.width / 2, place.y + place.height / 2];
    }})()""")
    tab.click(x, y)
    for groups, visible in tab.evaluate(shown):
      assert visible == (group not in groups)
    tab.click(x, y)
  assert all(visible for _, visible in tab.evaluate(shown))
  button = 'document.querySelectorAll("figure")[1].querySelector("button")'
  for text, visible in (("none", False), ("all", True)):
    assert tab.evaluate(f"{button}.innerText") == text
    tab.evaluate(f"{button}.click()")
    assert {v for _, v in tab.evaluate(shown)} == {visible}


def test_a_browser_sorts_tables(tab):
  table = "document.querySelector('table')"
  column = f"""[...{table}.querySelectorAll("tbody tr")].map(
    (row) => parseFloat(row.children[3].firstChild.textContent))"""
  for reverse in (True, False):
    x, y = tab.evaluate(f"""(() => {{
      const head = {table}.querySelectorAll("thead th")[3];
      head.scrollIntoView({{block: "center"}});
      const place = head.getBoundingClientRect();
      return [place.x + place.width / 2, place.y + place.height / 2];
    }})()""")
    tab.click(x, y)
    values = tab.evaluate(column)
    assert len(set(values)) > 3
    assert values == sorted(values, reverse=reverse)


def test_a_page_in_a_browser_can_be_read_without_scripts(page, tab):
  reader = "document.body.innerText"
  with_scripts = tab.evaluate(reader)
  tab.open(page, scripts=False)
  text = tab.evaluate(reader)
  tab.open(page)
  for words in (
    "Against it, at the same inference cost",
    "Greedy soup",
    "n = 200",
  ):
    assert words in text and words in with_scripts
  hint = "Point at a mark in a figure to see its model."
  assert hint in with_scripts and hint not in text


def test_links_of_a_figure_give_its_data_and_pictures(tmp_path, tab):
  drawn = figures.accuracy_plane(report.read_run(helpers.write_run(tmp_path)))
  drawn.set_dpi(40)
  part = document.picture(drawn, tmp_path / "figures/a plane.png", "A plane")
  page = tmp_path / "page.html"
  page.write_text(document.document("x", [part]))
  tab.open(page)
  links = tab.evaluate("""Promise.all([...document.links].map(async (link) => [
    link.innerText, link.protocol === "data:"
      ? await (await fetch(link.href)).text() : link.href]))""")
  links = dict(links)
  assert list(links) == ["CSV", "PNG", "SVG", "PDF"]
  rows = list(csv.DictReader(io.StringIO(links.pop("CSV"))))
  (row,) = [r for r in rows if r["name"] == "greedy"]
  assert (float(row["x"]), float(row["y"])) == (96.0, 81.0)
  paths = {
    form: pathlib.Path(
      urllib.request.url2pathname(urllib.parse.urlsplit(url).path)
    )
    for form, url in links.items()
  }
  with Image.open(paths["PNG"]) as image:
    image.load()
  assert ElementTree.parse(paths["SVG"]).getroot().tag.endswith("svg")
  pdf = paths["PDF"].read_bytes()
  assert pdf.startswith(b"%PDF-") and pdf.rstrip().endswith(b"%%EOF")


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
