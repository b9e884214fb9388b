# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The documentation has all public names, and its links are not broken."""

import ast
import importlib
import pathlib
import re

import pytest
import yaml

import soupjax

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
# Pages of the site that are made from files outside docs/ (docs/site_hooks.py).
GENERATED = {"benchmarks.md", "changelog.md"}
NAMESPACES = [
  "soupjax",
  "soupjax.rules",
  "soupjax.search",
  "soupjax.models",
  "soupjax.data",
  "soupjax.evaluators",
  "soupjax.analysis",
  "soupjax.report",
]


def attribute(name: str):
  """Returns the object with a dotted name, importing modules as needed."""
  value, path = soupjax, "soupjax"
  for word in name.split(".")[1:]:
    path += f".{word}"
    if not hasattr(value, word):
      importlib.import_module(path)
    value = getattr(value, word)
  return value


def exists(name: str) -> bool:
  try:
    attribute(name)
  except ImportError:
    return False
  return True


def exported(namespace: str) -> set[str]:
  """Returns the public names of a package: `import x as x`, or `__all__`."""
  package = attribute(namespace)
  if hasattr(package, "__all__"):  # It imports them when they are first used.
    return {f"{namespace}.{name}" for name in package.__all__}
  tree = ast.parse(pathlib.Path(package.__file__).read_text())
  return {
    f"{namespace}.{alias.name}"
    for node in tree.body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
    if alias.name == alias.asname
  }


def documented() -> list[str]:
  text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
  return re.findall(r"^::: (\S+)$", text, re.M)


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_public_names_have_a_place_in_the_reference(namespace):
  pages = {"soupjax.rules", "soupjax.search", "soupjax.__version__"}
  # Some have two names, such as sj.diagnose and sj.analysis.diagnose.
  objects = {id(attribute(name)) for name in documented() if exists(name)}
  names = exported(namespace) - pages
  assert not {name for name in names if id(attribute(name)) not in objects}


def test_names_of_the_reference_exist_once():
  names = documented()
  assert len(names) == len(set(names))
  assert all(map(exists, names)), [n for n in names if not exists(n)]


def test_every_rule_has_a_page():
  rules = {name.split(".")[-1] for name in exported("soupjax.rules")}
  rules = {name for name in rules if name.islower()}  # Not Rule, RULES.
  pages = {path.stem for path in (DOCS / "api/rules").glob("*.md")} - {"index"}
  assert rules == pages


def leaves(nav) -> list[str]:
  if isinstance(nav, str):
    return [nav]
  values = nav.values() if isinstance(nav, dict) else nav
  return [leaf for value in values for leaf in leaves(value)]


def test_navigation_has_every_page_once():
  config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
  nav = leaves(config["nav"])
  pages = {page.relative_to(DOCS).as_posix() for page in PAGES}
  assert sorted(nav) == sorted(pages | GENERATED)


def slug(heading: str) -> str:
  """Returns the anchor that GitHub and MkDocs make of a heading."""
  return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def broken_links(path: pathlib.Path) -> list[str]:
  text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S)
  broken = []
  for link in re.findall(r"\]\(([^)\s]+)\)", text):
    if re.match(r"[a-z]+:", link):
      continue
    file, _, anchor = link.partition("#")
    target = (path.parent / file).resolve() if file else path
    if not target.exists():
      broken.append(link)
    elif anchor and target.suffix == ".md":
      headings = re.findall(r"^#+ (.*)$", target.read_text(), re.M)
      if anchor not in map(slug, headings):
        broken.append(link)
  return broken


@pytest.mark.parametrize(
  "path",
  [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "benchmarks/README.md"]
  + PAGES,
  ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_relative_links_lead_somewhere(path):
  assert not broken_links(path)


def test_broken_links_are_noticed(tmp_path):
  page = tmp_path / "page.md"
  page.write_text(
    "# A `b`: c\n[1](gone.md) [2](#a-b-c) [3](#d) [4](https://x.org/y)\n"
    "```\n[5](code.md)\n```\n[6](page.md#a-b-c) [7](page.md#e)\n"
  )
  assert broken_links(page) == ["gone.md", "#d", "page.md#e"]


def test_citation_is_of_this_version():
  citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
  assert citation["version"] == soupjax.__version__
  urls = [reference["url"] for reference in citation["references"]]
  assert "https://arxiv.org/abs/2203.05482" in urls


def test_actions_are_pinned_by_commit():
  for path in (ROOT / ".github/workflows").glob("*.yml"):
    for action in re.findall(r"uses: (\S+)", path.read_text()):
      assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action), action
