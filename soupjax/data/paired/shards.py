# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Images in WebDataset tar files, read by random access."""

import dataclasses
import functools
import glob
import itertools
import os
import pathlib
import re
import tarfile

import numpy as np

from soupjax.data import folders
from soupjax.data.paired import base

# The shard number at the end of a file name.
_NUMBER = re.compile(r"[-_.]\d+([-_.]of[-_.]\d+)?$")


@dataclasses.dataclass(frozen=True)
class Split:
  """Location of the images of one split.

  Attributes:
    shards: the tar files of the split, in order.
    siblings: the shards of all splits over which classes are numbered.
  """

  shards: tuple[pathlib.Path, ...]
  siblings: tuple[tuple[pathlib.Path, ...], ...]


def splits_of(pattern: str | os.PathLike) -> dict[str, Split]:
  """Finds the splits of WebDataset shards.

  Args:
    pattern: a folder of SPLIT-000000.tar, SPLIT-000001.tar and so on; or a path
      with `*`, or with ranges or alternatives in braces, such as
      "train-{000000..000146}.tar", all of whose shards are the split "all".

  Returns:
    Splits by name.

  Raises:
    ValueError: if a shard does not exist.
  """
  path = pathlib.Path(os.path.expanduser(pattern))
  if path.is_dir():
    by_name: dict[str, list[pathlib.Path]] = {}
    for shard in sorted(path.glob("*.tar")):
      by_name.setdefault(_NUMBER.sub("", shard.stem), []).append(shard)
  else:
    texts = _expanded(str(path))
    files = [m for t in texts for m in sorted(glob.glob(t)) or [t]]
    by_name = {"all": list(map(pathlib.Path, files))}
  missing = [
    p for shards in by_name.values() for p in shards if not p.is_file()
  ]
  if missing or not any(by_name.values()):
    folder = path / "*.tar" if path.is_dir() else path
    what = missing[0] if missing else folder
    raise ValueError(
      f"There is no {what}: give a folder of SPLIT-000000.tar, or shards such "
      "as wds:train-{000000..000146}.tar or 'wds:train-*.tar'."
    )
  siblings = tuple(tuple(by_name[name]) for name in sorted(by_name))
  return {
    name: Split(tuple(shards), siblings) for name, shards in by_name.items()
  }


def _expanded(text: str) -> list[str]:
  """Expands ranges and alternatives in braces, as a shell does."""
  parts = []
  for k, part in enumerate(re.split(r"\{([^{}]*)\}", text)):
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", part)
    if k % 2 and numbers:
      first, last = numbers.groups()
      values = range(int(first), int(last) + 1)
      parts.append([f"{value:0{len(first)}d}" for value in values])
    else:
      parts.append(part.split(",") if k % 2 else [part])
  return ["".join(words) for words in itertools.product(*parts)]


def open_split(split: Split) -> base.Paired:
  """Opens a split from `splits_of`.

  Members with the same name up to the first dot form an example: an image with
  its class (.cls), its caption (.txt), or both. Other members are not read.
  Classes are numbered over all splits; see `base.classes_of`.

  Args:
    split: the split to open.

  Returns:
    The source, in the order of the shards.

  Raises:
    ValueError: naming an example without image, class or caption, a shard that
      is damaged or compressed, or two splits that spell a class differently.
  """
  contents = [_content(shards) for shards in split.siblings]
  folders.check_spelling(
    [shards[0] for shards in split.siblings],
    [set(content.lists.labels or ()) for content in contents],
  )
  own = contents[split.siblings.index(split.shards)]
  return _Shards(split, own, [content.lists for content in contents])


@dataclasses.dataclass(frozen=True)
class _Content:
  """Content of the shards of a split.

  Attributes:
    keys: (n,) names of the images as bytes, without suffix.
    places: (n, 3) shard index, byte offset and bytes of each image.
    lists: classes and captions.
  """

  keys: np.ndarray
  places: np.ndarray
  lists: base.Lists


def _content(shards) -> _Content:
  stats = (shard.stat() for shard in shards)
  return _cached_content(
    shards, tuple((s.st_size, s.st_mtime_ns) for s in stats)
  )


@functools.lru_cache(maxsize=8)
def _cached_content(shards, stats) -> _Content:
  del stats  # Only part of the key.
  keys, places, labels, captions = [], [], [], []
  for k, shard in enumerate(shards):
    for key, place, label, caption in _samples(shard):
      keys.append(key)
      places.append((k, *place))
      labels.append(label)
      captions.append(caption)

  def where(index: int) -> str:
    return f"{shards[places[index][0]]}, {keys[index]}"

  lists = base.Lists(
    _all_or_none(labels, "cls", where),
    _all_or_none(captions, "txt", where),
    where,
  )
  return _Content(
    np.array(list(map(os.fsencode, keys))), np.array(places), lists
  )


def _all_or_none(texts, suffix: str, where):
  if texts and texts.count(None) == len(texts):
    return None
  for index, text in enumerate(texts):
    if text is None:
      raise ValueError(
        f"{where(index)} has no .{suffix}, which other images of the split "
        "have: add it, or remove the image."
      )
  return texts


def _samples(shard):
  """Returns (key, (offset, size), class, caption) of each image in a shard."""
  samples: dict[str, dict[str, tuple[int, int]]] = {}
  texts: dict[tuple[str, str], str] = {}
  try:
    with tarfile.open(shard, "r:") as archive:
      for member in archive:
        folder, slash, file = member.name.rpartition("/")
        name, _, suffix = file.partition(".")
        key, suffix = folder + slash + name, suffix.lower()
        if not member.isreg() or not name:
          continue
        if suffix in ("cls", "txt"):
          data = archive.extractfile(member).read()
          texts[key, suffix] = data.decode("utf-8-sig").strip()
        elif not folders.is_image(f"x.{suffix}"):
          continue
        sample = samples.setdefault(key, {})
        kind = suffix if suffix in ("cls", "txt") else "image"
        if kind in sample:
          raise ValueError(
            f"{shard} has two members for the {kind} of {key}: give every "
            "image a unique name."
          )
        sample[kind] = member.offset_data, member.size
  except (tarfile.TarError, UnicodeDecodeError) as e:
    raise ValueError(
      f"Cannot read {shard} as a tar file: {e}. It must be complete and not "
      "compressed, with texts in UTF-8."
    ) from e
  for key, sample in samples.items():
    _check_sample(
      f"{shard}, {key}",
      sample,
      texts.get((key, "cls")),
      texts.get((key, "txt")),
    )
  return [
    (key, sample["image"], texts.get((key, "cls")), texts.get((key, "txt")))
    for key, sample in samples.items()
  ]


def _check_sample(where: str, sample, label, caption) -> None:
  fix = None
  if "image" not in sample:
    fix = "image"
  elif label is None and caption is None:
    fix = "class (.cls) and no caption (.txt)"
  elif "" in (label, caption):
    fix = f"text in .{'txt' if caption == '' else 'cls'}"
  if fix:
    raise ValueError(f"{where} has no {fix}: add it, or remove the example.")


class _Shards(base.Paired):
  """Images in shards."""

  def __init__(self, split: Split, content: _Content, all_lists):
    # Without parent folders, so that results and states do not depend on them.
    first = split.shards[0]
    name = f"{first.parent.name}/{_NUMBER.sub('', first.stem)}"
    super().__init__(name, len(content.keys), content.lists, all_lists)
    self._shards = split.shards
    self._keys, self._places = content.keys, content.places

  def identity(self):
    """See `Source`."""
    return folders.identity_of("", self._shards)

  def _image(self, index):
    shard, offset, size = map(int, self._places[index])
    with open(self._shards[shard], "rb") as file:
      return os.pread(file.fileno(), size, offset)

  def describe(self, index: int) -> str:
    shard = self._shards[self._places[index][0]]
    return f"{shard}, {os.fsdecode(self._keys[index])}"
