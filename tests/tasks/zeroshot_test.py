"""Fine-tuning from the names of the classes."""

import json
import pathlib

import helpers
import numpy as np
import pytest

import soupjax as sj
from soupjax.models import CLIP, pretrained, tiny_clip, tokens, zeroshot
from soupjax.tasks import zeroshot as tasks_zeroshot
from soupjax.tasks.finetune import job
from soupjax.tasks.finetune import run as finetune_run

for _package in ("tokenizers", "ftfy"):
  pytest.importorskip(_package, reason="needs pip install soupjax[clip]")

FILE = helpers.ROOT / "configs/finetune/clip_b32_i1k.py"
NAMES = "zero one two three four five six seven eight nine".split()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
  folder = tmp_path_factory.mktemp("clip")
  tiny_clip.save(folder)
  return folder


def config_of(clip, **changes):
  config = sj.config.load(FILE, "runlocal")
  overrides = {"init.path": str(clip), "hyper.total": "1steps"}
  overrides |= {"hyper.warmup": "0steps", "data.batch_size": 16, **changes}
  return sj.config.updated(config, overrides, what="The test")


def start(config, folder):
  """Makes the start of a sweep, without training."""
  job.open_job(config, finetune_run.members_of(config, folder, None), folder)
  return sj.load_params(folder / "initial")


def test_members_start_from_the_names_of_classes(clip, tmp_path):
  params = start(config_of(clip), tmp_path)
  record = json.loads((tmp_path / "initial" / "zeroshot.json").read_text())
  assert record["names"] == NAMES
  assert record["templates"] == ["{}", "the number {}"]

  # The logits of the start are those of both towers.
  model = CLIP(**pretrained.detect(clip, text=True).options)
  whole = pretrained.load_pretrained(clip, model)
  tokenizer = tokens.open_tokenizer(clip, context_length=32)
  kernel = zeroshot.zeroshot_head(
    model, whole, NAMES, record["templates"], tokenizer
  )
  np.testing.assert_array_equal(params["head"]["kernel"], kernel)
  assert not params["head"]["bias"].any()
  images = np.random.default_rng(0).normal(size=(3, 16, 16, 3))
  images = images.astype(np.float32)
  vit = sj.models.build(
    "vit", 10, **{k: v for k, v in model.image.items()}, normalize=True
  )
  logits, _ = vit.apply({"params": params}, images)
  zimg = model.apply({"params": whole}, images, method="embed_images")
  np.testing.assert_allclose(logits, zimg @ kernel, atol=1e-4)


def test_a_probe_may_start_from_it(clip, tmp_path):
  """Of 1 step: the head is still near the zero-shot head."""
  config = config_of(clip, **{"probe.total": "1steps", "probe.l2": 0.0})
  head = start(config, tmp_path / "a")["head"]["kernel"]
  config = config_of(clip, **{"zeroshot.names": "|".join(NAMES[::-1])})
  reverse = start(config, tmp_path / "b")["head"]["kernel"]
  far = np.linalg.norm(head - reverse)
  assert 0 < np.linalg.norm(head - reverse[:, ::-1]) < far


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"init.path": ""}, "init.head='zeroshot' needs init.path"),
    ({"model.normalize": False}, "needs model.normalize=True"),
    ({"zeroshot.templates": "a photo"}, "zeroshot.templates='a photo'"),
    ({"zeroshot.templates": "{} {}"}, "zeroshot.templates has '{} {}'"),
    ({"zeroshot.names": "a|a"}, "'a' is the name of classes"),
    ({"zeroshot.names": "one|two"}, "has 2 names.*10 classes"),
    ({"zeroshot.names": ""}, "digits.*have no names"),
    ({"zeroshot.names": "names.txt"}, "'names.txt' is not a file"),
  ],
)
def test_starts_that_cannot_work(changes, message, clip, tmp_path):
  with pytest.raises(ValueError, match=message):
    finetune_run.run(config_of(clip, **changes), tmp_path)
  assert not (tmp_path / "initial").exists()


@pytest.mark.parametrize(
  "key, lines, message",
  [
    ("names", "ant\n\ncow", "class 1 is ''"),
    ("templates", "a {}\nb", "has 'b'"),
  ],
)
def test_files_with_a_bad_line_are_named(key, lines, message, tmp_path):
  settings = tasks_zeroshot.default_config()
  settings[key] = str(tmp_path / "list.txt")
  (tmp_path / "list.txt").write_text(lines)
  with pytest.raises(
    ValueError, match=f"zeroshot.{key}=.*list.txt'.*{message}"
  ):
    tasks_zeroshot.check(settings)


def test_an_image_tower_alone_has_no_names(clip, tmp_path):
  leaves = sj.open_ingredient(clip)
  tower = {k: leaves.read(k) for k in leaves.specs if k.startswith("visual.")}
  np.savez(tmp_path / "tower.npz", **tower)
  config = config_of(tmp_path / "tower.npz")
  with pytest.raises(ValueError, match="tower.npz has an image tower only"):
    finetune_run.run(config, tmp_path / "run")


def test_members_cannot_differ_in_names(clip):
  with pytest.raises(ValueError, match="changes zeroshot.names"):
    finetune_run.members_of(
      config_of(clip), pathlib.Path("x"), [{"zeroshot.names": "a|b"}]
    )


@pytest.mark.parametrize(
  "dataset, checkpoint, expected",
  [
    (["cat", "ox"], None, ["cat", "ox"]),
    (["0", "1"], ["cat", "ox"], ["cat", "ox"]),
    (None, ["cat", "ox"], ["cat", "ox"]),
    (["0", "1"], None, "class 0 is the number '0'"),
  ],
)
def test_names_without_a_setting(dataset, checkpoint, expected):
  settings = tasks_zeroshot.default_config()

  def names():
    return tasks_zeroshot.names_of(settings, 2, "pets", dataset, checkpoint)

  if isinstance(expected, list):
    assert names() == expected
  else:
    with pytest.raises(ValueError, match=f"pets.*{expected}"):
      names()
