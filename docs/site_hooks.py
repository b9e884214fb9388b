# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Hooks of `mkdocs build`: pages whose source lies outside docs/."""

import pathlib

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parents[1]
# Page of the site -> its source file.
PAGES = {
  "benchmarks.md": "benchmarks/README.md",
  "changelog.md": "CHANGELOG.md",
}


def on_files(files, config):
  """Adds these pages and the result files that the benchmarks link to."""
  for page, source in PAGES.items():
    text = (ROOT / source).read_text(encoding="utf-8")
    files.append(File.generated(config, page, content=text))
  for path in sorted((ROOT / "benchmarks/results").glob("*.json")):
    name = f"results/{path.name}"
    files.append(File.generated(config, name, abs_src_path=str(path)))
  return files


def on_page_markdown(markdown, *, page, **_):
  """Points links at the pages instead of at their sources."""
  if page.file.src_uri in PAGES:
    return markdown.replace("](../docs/", "](").replace("](docs/", "](")
  for target, source in PAGES.items():
    markdown = markdown.replace(f"](../{source}", f"]({target}")
  return markdown
