# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
from html import parser
import json
import re

import helpers
import pytest

from soupjax import report
from soupjax.report import figures
from soupjax.report.web import drawings

FIGURES = {
  "accuracy_plane",
  "shift_plane",
  "greedy_trajectory",
  "coefficients",
  "wise_ft_curve",
}
EVIL = "<script>alert('x')</script>&\""


class Tags(parser.HTMLParser):
  """Checks that tags are closed in order, and collects them."""

  VOID = ("meta", "br", "wbr")

  def __init__(self, text):
    super().__init__()
    self.tags, self.attributes, self.open, self.text = [], [], [], ""
    self.feed(text)
    self.close()
    assert not self.open

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += attrs
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text += data


@pytest.fixture(autouse=True)
def svg_alone(monkeypatch):
  """Draws each figure once, which is fast."""
  monkeypatch.setattr(drawings, "FORMATS", ("svg",))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """Writes the page of a whole run, with all files."""
  workdir = helpers.write_run(tmp_path_factory.mktemp("run"))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(figures, "DPI", 40)
    report.write_report(workdir)
  return workdir


def drawn(workdir):
  return {p.stem for p in (workdir / "figures").glob("*.svg")}


def write(workdir):
  path = report.write_report(workdir)
  assert path == workdir / "report.html"
  return path.read_text()


def cells(page, label):
  row = re.search(rf'<th scope="row">{label}</th>(.*?)</tr>', page)[1]
  return re.findall(r"<td[^>]*>(.*?)</td>", row)


def test_whole_page(whole):
  page = (whole / "report.html").read_text()
  tags = Tags(page)
  assert drawn(whole) == FIGURES
  assert tags.tags.count("svg") == len(FIGURES)
  assert tags.tags.count("script") == 2
  # The page loads nothing: it refers to itself, and links to files beside it.
  assert {"link", "img"}.isdisjoint(tags.tags)
  assert "http" not in page and "src=" not in page
  assert page.count("url(") == page.count("url(#")
  for name, value in tags.attributes:
    if name == "xlink:href":
      assert value.startswith(("#", "data:image/png;base64,"))
    elif name == "href" and not value.startswith("data:text/csv;base64,"):
      assert (whole / value).is_file()


def test_table_cells(whole):
  page = (whole / "report.html").read_text()
  # cost, minival, test, the mean of three shifts, these.
  greedy = cells(page, "Greedy soup")
  assert greedy[0] == "1\N{MULTIPLICATION SIGN}"
  low, high = report.clopper_pearson(192, 200)
  interval = f"{100 * low:.1f}\N{EN DASH}{100 * high:.1f}"
  assert greedy[2] == f"96.0<small>{interval}</small>"
  assert greedy[3] == "<b>81.0</b>"  # no interval of a mean
  # The ensemble is better, but not one model.
  assert cells(page, "Learned soup, per layer")[2].startswith("<b>96.5</b>")
  assert cells(page, "Ensemble of all")[0] == "4\N{MULTIPLICATION SIGN}"
  assert "<b>" not in "".join(cells(page, "Ensemble of all"))
  assert "sd 1.0" in cells(page, "Mean ingredient")[1]
  assert "n = 200" in page
  assert "Nothing was chosen on test" in page
  assert "optimistic" in page


def test_differences_with_intervals(tmp_path):
  workdir = helpers.write_run(tmp_path)
  helpers.write_results(workdir, helpers.with_gains(helpers.records()))
  page = write(workdir)
  minus, dash = "\N{MINUS SIGN}", "\N{EN DASH}"
  assert cells(page, "Greedy soup")[2] == (
    f"96.0<small>92.3{dash}98.3<br>+1.0 [0.2, 1.8], p 0.04</small>"
  )
  assert cells(page, "Greedy soup")[3].endswith(
    f"<small>~+5.0 [{minus}1.0, 11.0]</small>"
  )
  text = Tags(page).text
  assert (
    "+1.0 points on test (95 % interval 0.2 to 1.8), +5.0 on the mean of 3 "
    f"shifts (95 % interval {minus}1.0 to 11.0: no clear difference)."
  ) in text
  assert f"(95 % interval {minus}2.0 to {minus}0.1)" in text


def test_calibration(tmp_path):
  workdir = helpers.write_run(tmp_path)
  assert "Calibration" not in write(workdir)
  lines = helpers.records()
  for split, value in zip(("test", *helpers.SHIFTS), (0.03, 0.1, 0.2, 0.3)):
    lines.append(helpers.record("greedy", "soup", split, value, metric="ece"))
  helpers.write_results(workdir, lines)
  page = write(workdir)
  part = page[page.index("<h2>Calibration") :]
  dash = "\N{EN DASH}"
  expected = [dash, dash, "0.100", dash, "3.0", dash, "0.100", dash]
  expected += ["20.0", dash, "0.100", dash]  # The mean over shifts.
  assert cells(part, "Greedy soup") == expected
  assert "Uniform soup" not in part


def test_ties_are_all_bold(whole):
  page = (whole / "report.html").read_text()
  for label in ("Initial model", "Greedy soup"):
    assert cells(page, label)[3] == "<b>81.0</b>"


def test_summary_tells_gains_and_losses(whole):
  text = Tags((whole / "report.html").read_text()).text
  minus = "\N{MINUS SIGN}"
  assert (
    "4 models were fine-tuned from one initial model. The best of them on "
    "minival, ingredient_01, has 95.0 % on test and 76.0 % on the mean of 3 "
    "shifts."
  ) in text
  assert (
    "Greedy soup (2 models): +1.0 points on test, +5.0 on the mean of 3 shifts."
  ) in text
  assert (
    f"Uniform soup: {minus}1.0 points on test (worse), +4.0 on the mean"
  ) in text
  assert "Ensemble of all (4\N{MULTIPLICATION SIGN} the cost): +2.0" in text
  assert "No soup beats" not in text
  assert "With 200 test images, one image is 0.5 points" in text


def test_summary_when_soups_lose(tmp_path):
  lines = helpers.records_of("a", "ingredient", 0.9, 0.9, 0.8)
  lines += helpers.records_of("b", "ingredient", 0.8, 0.8, 0.7)
  lines += helpers.records_of("uniform", "soup", 0.5, 0.5, 0.4)
  lines += helpers.records_of("wise_ft_0.50", "interpolation", 1.0, 1.0, 0.9)
  helpers.write_results(tmp_path, lines)
  text = Tags(write(tmp_path)).text
  assert "No soup beats the best ingredient on test." in text
  assert "No soup beats the best ingredient under shift." in text


@pytest.mark.parametrize(
  "missing, gone",
  [
    ("soups/greedy/greedy.json", {"greedy_trajectory"}),
    ("soups/learned_model/learned.json", set()),
    ("soups/learned_layer/learned.json", set()),
    ("config.json", set()),
    ("ingredients/ingredient_02/hyperparameters.json", set()),
  ],
)
def test_missing_files(tmp_path, missing, gone):
  helpers.write_run(tmp_path)
  # Figures of an earlier report, which must not stay.
  (tmp_path / "figures").mkdir()
  for name in FIGURES:
    (tmp_path / "figures" / f"{name}.svg").touch()
  (tmp_path / missing).unlink()
  page = write(tmp_path)
  assert drawn(tmp_path) == FIGURES - gone
  assert Tags(page).tags.count("svg") == len(FIGURES - gone)


def test_results_alone_are_enough(tmp_path):
  helpers.write_results(tmp_path, helpers.records())
  Tags(write(tmp_path))
  assert drawn(tmp_path) == {"accuracy_plane", "shift_plane", "wise_ft_curve"}


def test_single_ingredient(tmp_path):
  text = Tags(write(helpers.write_run(tmp_path, size=1))).text
  assert "One model was fine-tuned from one initial model. It, " in text
  assert drawn(tmp_path) == FIGURES


def test_no_shifts(tmp_path):
  text = Tags(write(helpers.write_run(tmp_path, shifts=()))).text
  assert drawn(tmp_path) == FIGURES - {"accuracy_plane", "shift_plane"}
  assert "Greedy soup (2 models): +1.0 points on test." in text
  assert "mean of" not in text


def test_text_from_files_is_escaped(tmp_path):
  helpers.write_run(tmp_path)
  lines = helpers.records()
  for kind in ("pretrained", "ingredient", "soup", "ensemble"):
    lines += helpers.records_of(kind + EVIL, kind, 0.99, 0.9, 0.7)
  for line in list(lines):
    if line["dataset"] == "digits/noise":
      lines.append(line | {"dataset": f"digits/{EVIL}"})
  lines = [r | {"dataset": EVIL[:8] + r["dataset"]} for r in lines]
  helpers.write_results(tmp_path, lines)
  (tmp_path / "config.json").write_text(json.dumps({EVIL: EVIL}))
  path = tmp_path / "ingredients/ingredient_00/hyperparameters.json"
  path.write_text(json.dumps({EVIL: EVIL}))
  page = write(tmp_path)
  tags = Tags(page)
  assert tags.tags.count("script") == 2  # the page's own
  assert page.count("&lt;script&gt;") >= 10
  assert tags.tags.count("svg") == len(FIGURES)


def test_name_of_a_single_shift_is_escaped(tmp_path):
  helpers.write_results(tmp_path, helpers.records(shifts=(EVIL,)))
  tags = Tags(write(tmp_path))
  assert tags.tags.count("script") == 2
  assert f"on the shift {EVIL}" in tags.text


def test_members_of_the_greedy_ensemble(tmp_path):
  helpers.write_run(tmp_path)
  page = write(tmp_path)
  assert cells(page, "Greedy ensemble")[0] == "up to 4\N{MULTIPLICATION SIGN}"
  path = tmp_path / "ensembles/greedy_ensemble/greedy.json"
  path.parent.mkdir(parents=True)
  trace = {"selected": ["ingredient_00"] * 3, "history": []}
  path.write_text(json.dumps(trace))
  assert cells(write(tmp_path), "Greedy ensemble")[0] == (
    "3\N{MULTIPLICATION SIGN}"
  )


def test_ingredients_table(whole):
  page = (whole / "report.html").read_text()
  best = cells(page, "ingredient_01")
  # in greedy soup, minival, test, mean of shifts, loss, learning rate.
  assert best == ["", "97.0", "95.0", "76.0", "0.100", "0.002"]
  assert "The same for all ingredients: augment none." in page
  assert cells(page, "ingredient_00")[0] == "yes"
  order = re.findall(r'<th scope="row">(ingredient_\d\d)</th>', page)
  assert order == [f"ingredient_0{i}" for i in (1, 0, 2, 3)]


def test_ingredients_are_sorted_by_minival(tmp_path):
  lines = []
  for name, minival in (("a", 0.7), ("b", 0.9), ("c", 0.8)):
    lines += helpers.records_of(name, "ingredient", minival, 0.9, 0.9)
  helpers.write_results(tmp_path, lines)
  page = write(tmp_path)
  assert re.findall(r'<th scope="row">(\w)</th>', page) == ["b", "c", "a"]


def test_damaged_files(tmp_path):
  helpers.write_run(tmp_path)
  trace = tmp_path / "soups/greedy/greedy.json"
  trace.write_text('{"history": []}')
  with pytest.raises(ValueError, match="greedy.json"):
    report.write_report(tmp_path)
  trace.write_text("{")
  with pytest.raises(ValueError, match="greedy.json"):
    report.write_report(tmp_path)
  (tmp_path / "results.jsonl").write_text("")
  with pytest.raises(ValueError, match="results.jsonl"):
    report.write_report(tmp_path)


def test_same_run_same_page(whole, monkeypatch):
  monkeypatch.setattr(figures, "DPI", 40)
  monkeypatch.setattr(drawings, "FORMATS", ("png", "svg", "pdf"))
  paths = [whole / "report.html", *sorted((whole / "figures").iterdir())]
  assert len(paths) == 1 + 4 * len(FIGURES)
  before = [path.read_bytes() for path in paths]
  report.write_report(whole)
  assert [path.read_bytes() for path in paths] == before
