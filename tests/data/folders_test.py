# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Images in class folders and tar files."""

import os
import pickle

import helpers
import pytest

from soupjax import data
from soupjax.data import folders


def contents(source):
  return [(source[i]["image"], source[i]["label"]) for i in range(len(source))]


# Folders and tar files


def test_folder_has_classes_in_order_and_every_image_once(folder):
  source = data.open_source(f"folder:{folder}", "train")
  assert source.class_names == ("ant", "bee", "cat")
  labels = [0] * 6 + [1] * 5 + [2] * 4
  expected = {(helpers.encoded_image(i), k) for i, k in enumerate(labels)}
  assert set(contents(source)) == expected and len(source) == 15
  assert source.name == f"{folder.name}/train"
  assert source.describe(0).endswith(".jpg")


def test_missing_class_does_not_shift_the_others(folder):
  source = data.open_source(f"folder:{folder}", "val")
  assert source.num_classes == 3
  assert sorted(source.label(i) for i in range(4)) == [0, 0, 2, 2]


def test_tar_holds_the_same_in_the_same_order(folder):
  assert contents(data.open_source(f"folder:{folder}", "more")) == contents(
    data.open_source(f"folder:{folder}", "train")
  )
  tar = data.open_source(f"folder:{folder}/more.tar", "all[:7]")
  tar[0]  # So that the file is open.
  again = pickle.loads(pickle.dumps(tar))
  assert contents(again) == contents(tar)
  assert len(tar) == 7 and tar.describe(0).startswith(f"{folder}/more.tar/")


def test_folder_of_classes_has_the_split_all(folder):
  source = data.open_source(f"folder:{folder}/train", "all")
  assert len(source) == 15
  # Not sorted by class: a part has images of each.
  part = data.open_source(f"folder:{folder}/train", "all[:60%]")
  assert {part.label(i) for i in range(9)} == {0, 1, 2}


def test_other_files_are_left_alone(tmp_path):
  helpers.write_image_folder(tmp_path, {"ant": 1, "bee": 1})
  (tmp_path / "ant" / "notes.txt").write_text("no image")
  (tmp_path / "ant" / "._00.jpg").write_text("of a Mac")
  (tmp_path / ".git").mkdir()
  (tmp_path / "stray.png").write_bytes(helpers.encoded_image(7))
  source = data.open_source(f"folder:{tmp_path}", "all")
  assert len(source) == 2 and source.class_names == ("ant", "bee")
  (note,) = source.notes
  assert note.startswith("4 files") and ".git/, ant/._00.jpg, ant/" in note
  assert data.open_source(f"folder:{tmp_path}", "all[:1]").notes == (note,)
  helpers.write_tar(tmp_path / "bugs.tar", tmp_path)
  tar = data.open_source(f"folder:{tmp_path / 'bugs.tar'}", "all")
  assert contents(tar) == contents(source)
  assert tar.notes[0].startswith("3 files") and "stray.png" in tar.notes[0]


@pytest.mark.parametrize(
  "split,message",
  [
    ("vall", "'vall'.*'val'"),
    ("train[3:3]", r"train\[3:3\].*15"),
    ("train[:1%]", "is empty"),
    ("train[", "Cannot read the split"),
    ("train[:98percent]", "Cannot read the split"),
    ("", "Cannot read the split"),
  ],
)
def test_folder_refuses_splits(folder, split, message):
  with pytest.raises(ValueError, match=message):
    data.open_source(f"folder:{folder}", split)


def test_bad_folders_and_tar_files(folder, tmp_path):
  with pytest.raises(ValueError, match="not_there"):
    data.open_source(f"folder:{tmp_path / 'not_there'}", "all")
  with pytest.raises(ValueError, match="no images"):
    data.open_source(f"folder:{tmp_path}", "all")
  helpers.write_tar(tmp_path / "small.tar", folder / "train", "w:gz")
  with pytest.raises(ValueError, match="small.tar"):
    data.open_source(f"folder:{tmp_path}", "small")


def test_order_of_folders_is_that_of_a_hash(folder):
  # Fixed for good: parts of a folder must not change between versions.
  source = folders.open_split(folders.splits_of(folder)["val"])
  names = ["/".join(source.describe(i).rsplit("/", 2)[1:]) for i in range(4)]
  assert names == ["ant/00.jpg", "cat/01.jpg", "cat/00.jpg", "ant/01.jpg"]


def write(path, *names):
  """Writes an image under each name; returns the name of the dataset."""
  for k, name in enumerate(names):
    (path / name).parent.mkdir(parents=True, exist_ok=True)
    (path / name).write_bytes(helpers.encoded_image(k, "PNG"))
  return f"folder:{path}"


def labelled(source):
  """Image -> name of its class."""
  return {
    source[i]["image"]: source.class_names[source[i]["label"]]
    for i in range(len(source))
  }


SUFFIXES = (
  *("pgm", "PPM", "jfif", "avif", "jp2", "JPEG", "tiff", "webp", "gif", "bmp"),
)


def test_images_below_class_folders_and_of_all_suffixes(tmp_path):
  names = [f"ant/{k}.{suffix}" for k, suffix in enumerate(SUFFIXES)]
  names += ["bee/1.png", "bee/deep/er/2.PNG", "cat/sub/1.jpg"]
  name = write(tmp_path / "train", *names)
  write(tmp_path / "val", "bee/1.png", "cat/sub/3.png", "cat/sub/4.png")
  expected = {
    helpers.encoded_image(k, "PNG"): n.split("/")[0]
    for k, n in enumerate(names)
  }
  source = data.open_source(f"folder:{tmp_path}", "train")
  assert labelled(source) == expected and not source.notes
  assert source.class_names == ("ant", "bee", "cat")
  val = data.open_source(f"folder:{tmp_path}", "val")
  assert sorted(labelled(val).values()) == ["bee", "cat", "cat"]
  assert labelled(data.open_source(name, "all")) == expected
  helpers.write_tar(tmp_path / "more.tar", tmp_path / "train")
  tar = data.open_source(f"folder:{tmp_path}", "more")
  assert contents(tar) == contents(source)


def test_classes_and_images_are_those_of_torchvision(tmp_path):
  name = write(
    tmp_path, "b/1.png", "B/2.png", "10/sub/3.PNG", "2/x.jpeg", "\u00e9/4.png",
    "2/sub/1.webp", "2/sub/sub/1.pgm", "b c/1.tif", "b-d/2.bmp",
  )  # fmt: skip
  source = data.open_source(name, "all")
  # Its `find_classes` and `make_dataset`.
  classes = sorted(p.name for p in os.scandir(tmp_path) if p.is_dir())
  assert source.class_names == tuple(classes)
  samples = {
    (os.path.join(root, file), number)
    for number, name in enumerate(classes)
    for root, _, files in os.walk(tmp_path / name)
    for file in files
  }
  found = {(source.describe(i), source.label(i)) for i in range(len(source))}
  assert found == samples and len(samples) == 9


def test_a_stray_image_beside_class_folders_is_counted(tmp_path):
  write(tmp_path / "train", "stray.png", "ant/1.png", "bee/1.png")
  name = f"folder:{tmp_path}"
  source = data.open_source(name, "train")
  assert source.class_names == ("ant", "bee") and len(source) == 2
  (note,) = source.notes
  assert note.startswith("1 file of") and note.endswith(": stray.png")
  write(tmp_path / "val", "ant/1.png", "bee/1.png", "bee/readme.md")
  val = data.open_source(name, "val")
  assert val.num_classes == 2 and "readme.md" in val.notes[0]
  # With two splits, they cannot be classes.
  with pytest.raises(ValueError, match="'all'"):
    data.open_source(name, "all")


def test_what_macos_adds_to_an_archive_is_no_class(tmp_path):
  for k, name in enumerate(("ant/a.jpg", "bee/b.jpg", "__MACOSX/ant/._a.jpg",
                            "bee/__MACOSX/c.jpg")):  # fmt: skip
    path = tmp_path / "x" / "train" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(helpers.encoded_image(k))
  source = data.open_source(f"folder:{tmp_path / 'x'}", "train")
  assert source.class_names == ("ant", "bee") and len(source) == 2
  assert "__MACOSX/" in source.notes[0]


def test_an_empty_class_folder_would_shift_numbers(tmp_path):
  name = write(tmp_path, "train/ant/1.png", "train/cat/1.png", "val/cat/1.png")
  (tmp_path / "val" / "ant").mkdir()  # Has images in train.
  assert data.open_source(name, "val").label(0) == 1
  (tmp_path / "train" / "bee").mkdir()
  (tmp_path / "train" / "bee" / "1.txt").touch()
  for split in ("train", "val"):
    with pytest.raises(ValueError, match="train/bee has no images"):
      data.open_source(name, split)
  helpers.write_tar(tmp_path / "a.tar", tmp_path / "train")
  with pytest.raises(ValueError, match="a.tar/bee has no images"):
    data.open_source(f"folder:{tmp_path / 'a.tar'}", "all")


@pytest.mark.parametrize(
  "train, val", [("Great_Dane", "great dane"), ("Cafe\u0301", "Caf\u00e9")]
)
def test_classes_that_splits_spell_differently(tmp_path, train, val):
  name = write(tmp_path, f"train/{train}/1.png", f"val/{val}/1.png")
  with pytest.raises(ValueError, match="/train has .*/val|/val has .*/train"):
    data.open_source(name, "val")
  # In one folder they are two classes.
  write(tmp_path / "train", f"{val}/1.png")
  assert data.open_source(name, "val").num_classes == 2


def test_links_are_followed_once(tmp_path):
  write(tmp_path / "other", "1.png")
  name = write(tmp_path / "all", "ant/1.png")
  (tmp_path / "all" / "bee").symlink_to(tmp_path / "other")
  (tmp_path / "all" / "ant" / "loop").symlink_to(tmp_path / "all" / "ant")
  source = data.open_source(name, "all")
  assert source.class_names == ("ant", "bee") and len(source) == 2


def test_class_folders_in_a_folder_of_a_tar_file(tmp_path):
  write(tmp_path / "x", "train/ant/1.png", "train/bee/sub/2.png")
  helpers.write_tar(tmp_path / "x.tar", tmp_path / "x")
  source = data.open_source(f"folder:{tmp_path / 'x.tar'}", "all")
  assert source.class_names == ("ant", "bee") and len(source) == 2
  write(tmp_path / "x", "train/1.png")
  helpers.write_tar(tmp_path / "x.tar", tmp_path / "x")
  with pytest.raises(ValueError, match="x.tar has images both in train"):
    data.open_source(f"folder:{tmp_path / 'x.tar'}", "all")


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_other_images_of_the_same_size_are_another_identity(tmp_path, kind):
  helpers.write_image_folder(tmp_path / "set" / "val", {"a": 3, "b": 2})
  changed = tmp_path / "set" / "val" / "a"
  changed = sorted(changed.iterdir())[0]
  if kind == "tar":
    (tmp_path / "tars").mkdir()
    helpers.write_tar(tmp_path / "tars" / "val.tar", tmp_path / "set" / "val")
    changed = tmp_path / "tars" / "val.tar"
  root = tmp_path / ("tars" if kind == "tar" else "set")
  source = data.open_source(f"folder:{root}", "val")
  before = source.identity()
  assert before == data.open_source(f"folder:{root}", "val").identity() != []
  _, minival = data.split_minival(source, per_class=1)
  assert minival.identity() == before
  changed.write_bytes(changed.read_bytes())
  assert data.open_source(f"folder:{root}", "val").identity() != before


def test_identities_look_at_many_files_evenly(tmp_path, monkeypatch):
  helpers.write_image_folder(tmp_path / "val", {"a": 9})
  monkeypatch.setattr(folders, "_MOST_LOOKED_AT", 2)
  source = data.open_source(f"folder:{tmp_path}", "val")
  _, size, _ = source.identity()
  sizes = [len(source[k]["image"]) for k in (0, 8)]
  assert size == sum(sizes)
