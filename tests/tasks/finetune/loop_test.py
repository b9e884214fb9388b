# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning on digits: one run, sweeps, members at once, other devices."""

import json

import chex
import family_models
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import soupjax as sj
from soupjax import config as config_lib
from soupjax import data, sharding
from soupjax.data.dataset import Dataset
from soupjax.models import pretrained
from soupjax.tasks.finetune import config as settings
from soupjax.tasks.finetune import job as job_lib
from soupjax.tasks.finetune import loop
from soupjax.tasks.finetune import run as finetune_run
from soupjax.tasks.finetune import step as step_lib
from soupjax.train import probe
from soupjax.train import step as train_lib

MAKE_MESH = sharding.make_mesh
SWEPT = {"ingredients": "5steps", "probe.total": "10steps"}
SWEEP = [
  {"hyper.learning_rate": 1e-3, "hyper.mixup": 0.2, "seed": 1},
  {"hyper.learning_rate": 3e-3, "hyper.cutmix": 0.5, "hyper.erasing": 0.3,
   "hyper.total": "9steps", "seed": 2},
  {"hyper.learning_rate": 2e-3, "hyper.schedule": "linear",
   "hyper.total": "1epochs", "hyper.l2_sp": 0.1, "seed": 3},
]  # fmt: skip


def params_of(directory, name="last"):
  return sj.load_params(directory / "ingredients" / name)


@pytest.fixture(scope="module", autouse=True)
def one_device():
  """Eight fake devices compile for long: most of this needs only one."""
  patch = pytest.MonkeyPatch()

  def one(axes, devices=None):
    return MAKE_MESH(axes, jax.devices()[:1])

  patch.setattr(sharding, "make_mesh", one)
  yield
  patch.undo()


@pytest.fixture
def all_devices(monkeypatch):
  monkeypatch.setattr(sharding, "make_mesh", MAKE_MESH)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
  """A sweep in one process, and what each member compiled."""
  workdir = tmp_path_factory.mktemp("sweep") / "run"
  compiled, members = [], []

  def count(name, *_, **__):
    if name.endswith("backend_compile_duration"):
      compiled.append(name)

  train = loop.train

  def counted(job, chunk):
    before = len(compiled)
    failed = train(job, chunk)
    members.append(len(compiled) - before)
    return failed

  jax.monitoring.register_event_duration_secs_listener(count)
  patch = pytest.MonkeyPatch()
  patch.setattr(loop, "train", counted)
  finetune_run.run(helpers.finetune_config(**SWEPT), workdir, sweep=SWEEP)
  patch.undo()
  jax.monitoring.unregister_event_duration_listener(count)
  return workdir, members


def test_the_start_can_leave_out_leaves_of_its_checkpoint(tmp_path):
  model = family_models.vit(pool_type="tok", act="gelu_exact")
  images = np.zeros((1, 12, 12, 3), np.float32)
  params = family_models.params_of(model, images)
  leaves = pretrained.export(params, model, "timm")
  both = {
    f"{k}.{n}": v for k in ("online", "target") for n, v in leaves.items()
  }
  sj.save_params(tmp_path / "a.safetensors", both)
  config = settings.default_config()
  config.data.image_size = 12
  config.init.path = str(tmp_path / "a.safetensors")
  with pytest.raises(ValueError, match="several models.*init.skip"):
    job_lib._initial_params(config, model)
  config.init.skip = r"^target\."
  start = job_lib._initial_params(config, model)
  chex.assert_trees_all_equal(start, params)
  config.init.update(skip="", prefix="online.")
  start = job_lib._initial_params(config, model)
  chex.assert_trees_all_equal(start, params)
  config.init.prefix = "encoder."
  with pytest.raises(ValueError, match="'encoder.'.*'online.', 'target.'"):
    job_lib._initial_params(config, model)


def test_a_head_that_is_kept_has_the_classes_of_the_data(tmp_path):
  model = family_models.vit(pool_type="tok")
  params = family_models.params_of(model)
  pretrained.save_exported(
    tmp_path / "model.safetensors", params, model, "hf_vit"
  )
  labels = dict(enumerate(("bee", "ant", "cow", "dog", "eel")))
  config_json = {"model_type": "vit", "id2label": labels}
  config_json |= {"hidden_size": 8, "num_attention_heads": 2}
  (tmp_path / "config.json").write_text(json.dumps(config_json))
  config = settings.default_config()
  config.init.path = str(tmp_path)

  def train(names):
    images = np.zeros((len(names), 2, 2, 3), np.uint8)
    source = Dataset("photos", images, np.arange(len(names)))
    return data.from_dataset(source, len(names), class_names=names)

  names = ("ant", "bee", "cow", "dog", "eel")
  with pytest.raises(ValueError, match="'ant' is class 0 .* output 1"):
    job_lib._shared_start(config, model, train(names), None, tmp_path / "run")
  for changes in ({"init.head": "new"}, {"probe.total": "9steps"}):
    changed = config_lib.updated(config, changes)
    job_lib._check_classes(changed, train(names))
  for other in (
    tuple(labels.values()),
    ("Ameise", "Biene", "Kuh", "Hund", "Aal"),  # May be the same.
    names[:4],  # Needs a new head.
  ):
    job_lib._check_classes(config, train(other))


def test_only_the_first_member_of_a_sweep_compiles(swept):
  _, members = swept
  assert len(members) == 3
  assert members[0] > 0 and members[1:] == [0, 0]


def test_ingredients_are_complete_and_share_their_start(swept):
  workdir, _ = swept
  names = [
    f"member_{k:03d}/ingredients/{name}"
    for k, steps in enumerate((["05", "10"], ["05"], ["05"]))
    for stem in (*(f"step_000000{s}" for s in steps), "last")
    for name in (stem, f"{stem}_ema_0.9")
  ]
  result = sj.find_ingredients(workdir / "member_*" / "ingredients" / "*")
  paths = [str(workdir / name / "params") for name in names]
  assert sorted(i.path for i in result) == sorted(paths)
  start = job_lib.init_hash(sj.open_ingredient(workdir / "initial"))
  for i in result:
    assert set(i.metrics) == {"minival/prec@1", "minival/loss"}
    assert i.hyperparameters["init_hash"] == start
  lasts = sj.find_ingredients(workdir / "member_*" / "ingredients" / "last")
  assert [i.hyperparameters["steps"] for i in lasts] == [12, 9, 6]
  assert [i.hyperparameters["seed"] for i in lasts] == [1, 2, 3]
  sj.uniform_soup(lasts)


def test_metrics_are_those_of_the_saved_weights(swept):
  workdir, _ = swept
  config = helpers.finetune_config()
  model = settings.build_model(config)
  digits = sj.data.load_digits().minival
  images = np.round((digits.images + 1) * 127.5) / 127.5 - 1
  evaluator = sj.evaluators.Evaluator.from_arrays(
    model,
    np.repeat(images, 3, axis=-1).astype(np.float32),
    digits.labels,
  )
  for name in ("last", "last_ema_0.9", "step_00000005"):
    (i,) = sj.find_ingredients(workdir / "member_000" / "ingredients" / name)
    totals = evaluator.totals(i.load())
    assert i.metrics["minival/prec@1"] == pytest.approx(totals["prec@1"])
    assert i.metrics["minival/loss"] == pytest.approx(totals["loss"], rel=1e-4)


def test_the_start_has_a_fitted_head(swept):
  start = sj.load_params(swept[0] / "initial")
  assert float(np.abs(start["head"]["kernel"]).max()) > 0.01


def test_part_of_a_sorted_set_has_all_classes_for_the_head(monkeypatch):
  config = helpers.finetune_config(**{"probe.max_examples": 30})
  train, _ = job_lib.open_data(config)
  labels = np.array([train.label(i) for i in range(len(train))])
  by_class = data.subset(train, np.argsort(labels), "sorted")
  given = []
  monkeypatch.setattr(
    probe, "linear_probe", lambda x, y, **_: given.append((x.shape, y))
  )
  model = settings.build_model(config)
  mesh = step_lib.make_mesh(config)
  params = model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
  job_lib._probed(config, model, params, by_class, mesh)
  ((shape, labels),) = given
  assert shape == (30, 16) and set(labels) == set(range(10))


def test_a_member_alone_is_that_of_the_sweep_bit_for_bit(swept, tmp_path):
  config = helpers.finetune_config(**SWEPT)
  finetune_run.run(config, tmp_path / "one", sweep=SWEEP, index=1)
  assert [p.name for p in (tmp_path / "one").glob("member_*")] == ["member_001"]
  for name in ("last", "last_ema_0.9", "step_00000005"):
    chex.assert_trees_all_equal(
      params_of(tmp_path / "one" / "member_001", name),
      params_of(swept[0] / "member_001", name),
    )


def test_members_at_once_are_those_alone(swept, tmp_path):
  config = helpers.finetune_config(**SWEPT, population=3)
  finetune_run.run(config, tmp_path / "run", sweep=SWEEP)
  for k in range(3):
    for name in ("last", "last_ema_0.9", "step_00000005"):
      ours = params_of(tmp_path / "run" / f"member_{k:03d}", name)
      theirs = params_of(swept[0] / f"member_{k:03d}", name)
      chex.assert_trees_all_close(
        helpers.without_noise(ours), helpers.without_noise(theirs), atol=2e-4
      )
  # Two of three steps are over when the longest goes on.
  result = (tmp_path / "run" / "member_001" / "metrics.jsonl").read_text()
  assert [f'"step": {s}' in result for s in (4, 8, 12)] == [True, True, False]


def test_finished_members_are_skipped(swept, monkeypatch):
  monkeypatch.setattr(loop, "train", None)
  # Also where settings differ that change no result.
  free = {"data.num_workers": 2, "log": "7steps", "checkpoint": "9steps"}
  config = helpers.finetune_config(**SWEPT | free)
  result = finetune_run.run(config, swept[0], sweep=SWEEP)
  assert [p.name for p in result] == [f"member_{k:03d}" for k in range(3)]


def test_finished_members_of_another_sweep_are_refused(swept):
  changed = [*SWEEP[:1], SWEEP[1] | {"hyper.mixup": 0.5, "seed": 9}, SWEEP[2]]
  with pytest.raises(
    ValueError, match="(?s)member_001.*config.*hyper.mixup.*seed:.*2"
  ):
    finetune_run.run(helpers.finetune_config(**SWEPT), swept[0], sweep=changed)


@pytest.mark.parametrize("population", [0, 3])
def test_a_broken_member_does_not_stop_the_rest(tmp_path, population):
  sweep = [
    {"hyper.learning_rate": 1e-3},
    {"hyper.learning_rate": 1e30},
    {"hyper.learning_rate": 2e-3},
  ]
  config = helpers.finetune_config(
    **{"hyper.total": "6steps", "population": population}
  )
  with pytest.raises(
    ValueError, match="(?s)1.*3 runs.*failed.*\n.*member_001:"
  ) as e:
    finetune_run.run(config, tmp_path / "run", sweep=sweep)
  assert "Lower hyper.learning_rate (now 1e+30)" in str(e.value)
  done = sorted(p.parent.name for p in (tmp_path / "run").glob("*/done.json"))
  assert done == ["member_000", "member_002"]
  assert not (tmp_path / "run" / "member_001" / "ingredients").exists()


def test_a_bug_in_one_member_does_not_stop_the_rest(tmp_path, monkeypatch):
  train = loop.train

  def broken(job, members):
    if members[0].name == "member_000":
      raise RuntimeError("a disk on fire")
    return train(job, members)

  monkeypatch.setattr(loop, "train", broken)
  config = helpers.finetune_config(**{"hyper.total": "2steps"})
  with pytest.raises(ValueError, match="RuntimeError: a disk on fire"):
    finetune_run.run(config, tmp_path / "run", sweep=SWEEP[:2])
  assert (tmp_path / "run" / "member_001" / "done.json").exists()


def test_no_steps_leave_the_start_as_it_is(tmp_path):
  config = helpers.finetune_config(
    **{"hyper.total": "0steps", "hyper.ema": (0.9999999,)}
  )
  finetune_run.run(config, tmp_path / "run")
  names = sorted(p.name for p in (tmp_path / "run" / "ingredients").iterdir())
  assert names == ["last", "last_ema_0.9999999"]
  chex.assert_trees_all_equal(
    params_of(tmp_path / "run"), sj.load_params(tmp_path / "run" / "initial")
  )


def save_dinov3(folder):
  """Writes a file of timm with registers, layer scale and rotary positions."""
  changes = {**family_models.DINO, **family_models.ROTATED, "num_classes": 10}
  model = family_models.vit(**changes, registers=2)
  images = np.zeros((1, 8, 8, 3), np.float32)
  params = family_models.params_of(model, images)
  pretrained.save_exported(folder / "model.safetensors", params, model, "timm")
  args = {"embed_dim": 8, "num_heads": 2, "global_pool": "token"}
  content = {"architecture": "vit_small_patch16_dinov3_qkvb"}
  content["model_args"] = args
  (folder / "config.json").write_text(json.dumps(content))
  return folder / "model.safetensors"


def test_the_model_of_the_start_is_fine_tuned_and_exported(tmp_path):
  start = save_dinov3(tmp_path)
  config = helpers.finetune_config(
    **{
      "init.path": str(start),
      "init.head": "keep",
      "model.variant": "init",
      "hyper.total": "3steps",
      "hyper.warmup": "0steps",
      "hyper.layer_decay": 0.5,
      "hyper.ema": (),
      "probe.total": "0steps",
    }
  )
  [run] = finetune_run.run(config, tmp_path / "run")
  recorded = json.loads((tmp_path / "run/config.json").read_text())["model"]
  assert recorded["rope"] == "dinov3" and recorded["registers"] == 2
  model = family_models.vit(
    **{k: v for k, v in recorded.items() if k not in ("name", "variant")},
    num_classes=10,
  )
  params = sj.open_ingredient(run / "ingredients/last").load()
  before = pretrained.load_pretrained(start, model)
  moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), params, before)
  blocks = moved["Transformer"]
  assert 0 < moved["reg_tokens"] < moved["head"]["kernel"]
  first, last = (
    blocks[f"encoderblock_{k}"]["LayerScale_0"]["gamma"] for k in (0, 2)
  )
  assert 0 < first < last
  out = tmp_path / "soup/model.safetensors"
  out.parent.mkdir()
  like = sj.open_ingredient(start)
  pretrained.save_exported(out, params, model, "timm", like=like)
  assert set(sj.open_ingredient(out).specs) == set(like.specs)
  chex.assert_trees_all_equal(
    pretrained.load_pretrained(out, model, family="timm"), params
  )


def test_the_model_of_the_start_needs_a_start():
  config = helpers.finetune_config(**{"model.variant": "init"})
  with pytest.raises(ValueError, match="init.path, which is empty"):
    settings.with_model_of_start(config)


@pytest.mark.parametrize("name", ["ingredients/last", "initial/params"])
def test_the_start_is_of_a_run_with_a_model_of_ones_own(tmp_path, name):
  model = {"name": "outside.Tiny", "variant": "", "width": 8}
  record = {"task": "finetune", "model": {**model, "dropout": 0.1}}
  (tmp_path / "config.json").write_text(json.dumps(record))
  config = helpers.finetune_config(
    **{"model.variant": "init", "init.path": str(tmp_path / name)}
  )
  found = settings.with_model_of_start(config).model.to_dict()
  assert found == {**model, "dropout": 0.0}
  # A config.json of another kind is not that of a run.
  (tmp_path / "config.json").write_text(json.dumps({"model": model}))
  with pytest.raises(ValueError, match=str(tmp_path)):
    settings.with_model_of_start(config)


def test_a_resnet_is_the_start(tmp_path):
  [model] = family_models.MODELS["bit_original"]
  images = np.zeros((1, 8, 8, 3), np.float32)
  params = family_models.params_of(model, images)
  start = tmp_path / "BiT-M-R50x1.npz"
  pretrained.save_exported(start, params, model, "bit_original")
  config = helpers.finetune_config(
    **{
      "init.path": str(start),
      "hyper.total": "2steps",
      "hyper.warmup": "0steps",
      "hyper.layer_decay": 0.5,
      "hyper.ema": (),
      "probe.total": "0steps",
    }
  )
  config = config.unlock()
  config.model = {"name": "vit", "variant": "init", "dropout": 0.0}
  [run] = finetune_run.run(config, tmp_path / "run")
  recorded = json.loads((tmp_path / "run/config.json").read_text())["model"]
  assert recorded["name"] == "resnet" and recorded["depths"] == [1]
  moved = sj.load_params(run / "ingredients/last")
  change = jax.tree.map(
    lambda a, b: np.abs(a - b).max(), moved["root_block"], params["root_block"]
  )
  root = change["conv_root"]["kernel"]
  assert 0 < root < np.abs(moved["head"]["kernel"]).max()
  config.model.name = "mixer"
  with pytest.raises(ValueError, match="name='mixer'.*'bit_original': leave"):
    settings.with_model_of_start(config)


def test_a_mixer_goes_through_the_same_loop(tmp_path):
  config = helpers.finetune_config(
    **{"hyper.total": "2steps", "hyper.layer_decay": 0.5}
  )
  config = config.unlock()
  config.model = {"name": "mixer", "variant": "mu/4", "dropout": 0.0,
                  "stochastic_depth": 0.1}  # fmt: skip
  finetune_run.run(config, tmp_path / "run")
  start = sj.load_params(tmp_path / "run" / "initial")
  moved = params_of(tmp_path / "run")["MixerBlock_0"]
  difference = jax.tree.map(
    lambda a, b: np.abs(a - b).max(), moved, start["MixerBlock_0"]
  )
  assert max(jax.tree.leaves(difference)) > 0


# --- Other devices ----------------------------------------------------------


def three_steps(config, mesh):
  model = settings.build_model(config)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: 0.2 * rng.normal(size=x.shape).astype(np.float32),
    step_lib.abstract_params(config, model),
  )
  compiled = step_lib.compile_step(config, model, mesh, params)
  batch = sharding.put_batch(
    mesh,
    {
      "images": rng.normal(size=(1, 16, 16, 16, 3)).astype(np.float32),
      "labels": rng.integers(0, 10, (1, 16)),
    },
    (None, "data"),
  )
  hyper = settings.hyper(config, 100)
  state = compiled.begin(params)
  for _ in range(3):
    state, metrics = compiled.step(state, batch, jax.random.key(0), hyper, None)
  return state, metrics


@pytest.mark.parametrize(
  "axes,changes",
  [
    ({"data": 8}, {"hyper.sam_rho": 0.05, "accumulate": 2}),
    ({"data": 8}, {"sharding.preset": "fsdp", "optimizer.name": "adafactor"}),
    ({"data": 4, "model": 2}, {"sharding.preset": "tensor"}),
    (
      {"data": 2, "model": 4},
      {"sharding.rules": (("(key|value)/kernel", (None, "model", None)),
                          ("kernel", "fsdp"))},
    ),
  ],
  ids=["data", "fsdp", "tensor", "rules"],
)  # fmt: skip
def test_any_mesh_gives_the_numbers_of_one_device(axes, changes):
  config = helpers.finetune_config(
    **{
      "model.num_heads": 4,
      "model.mlp_dim": 32,
      "hyper.mixup": 0.3,
      "hyper.erasing": 0.3,
      "hyper.learning_rate": 1e-3,
      "sharding.fsdp_min_size": 64,
      **changes,
    }
  )
  if config.optimizer.name == "adafactor":  # It does not take b2.
    config = config.unlock()
    del config.optimizer.b2
    config.lock()
  state, metrics = three_steps(config, MAKE_MESH(axes))
  places = {
    str(x.sharding.spec) for x in jax.tree.leaves((state.params, state.ema))
  }
  spread = any(key.startswith("sharding") for key in changes)
  assert (len(places) > 1) == spread
  one = {"sharding.preset": "replicated", "sharding.rules": ()}
  alone, expected = three_steps(
    config_lib.updated(config, one), MAKE_MESH({"data": 1}, jax.devices()[:1])
  )
  state, metrics, alone, expected = jax.device_get(
    (state, metrics, alone, expected)
  )
  chex.assert_trees_all_close(metrics, expected, rtol=2e-5)
  for ours, theirs in zip(
    (state.params, *state.ema), (alone.params, *alone.ema)
  ):
    chex.assert_trees_all_close(
      helpers.without_noise(ours), helpers.without_noise(theirs), atol=2e-5
    )


def test_members_spread_over_devices_are_those_alone():
  config = helpers.finetune_config(**{"hyper.mixup": 0.3})
  model = settings.build_model(config)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: 0.2 * rng.normal(size=x.shape).astype(np.float32),
    step_lib.abstract_params(config, model),
  )
  rates = [1e-3, 2e-3, 3e-3, 4e-3]
  hypers = [
    settings.hyper(
      config_lib.updated(config, {"hyper.learning_rate": rate}), 100
    )
    for rate in rates
  ]
  images = rng.normal(size=(4, 16, 16, 16, 3)).astype(np.float32)
  labels = rng.integers(0, 10, (4, 16))

  def two_steps(mesh, count, hyper, seeds, batch, axes):
    compiled = step_lib.compile_step(config, model, mesh, params, count=count)
    state = compiled.begin(params)
    hyper, keys = compiled.ready(hyper, seeds)
    batch = sharding.put_batch(mesh, batch, axes)
    for _ in range(2):
      state, _ = compiled.step(state, batch, keys, hyper, None)
    return state

  together = two_steps(
    MAKE_MESH({"member": 4, "data": 2}),
    4,
    jax.tree.map(lambda *x: np.stack(x), *hypers),
    np.arange(4, dtype=np.uint32),
    {"images": images[None], "labels": labels[None]},
    (None, "member", "data"),
  )
  leaf = together.params["head"]["kernel"]
  assert leaf.sharding.shard_shape(leaf.shape)[0] == 1
  for k in (0, 3):
    alone = two_steps(
      MAKE_MESH({"data": 1}, jax.devices()[:1]),
      1,
      hypers[k],
      np.uint32(k),
      {"images": images[None, k], "labels": labels[None, k]},
      (None, "data"),
    )
    chex.assert_trees_all_close(
      helpers.without_noise(step_lib.select(together, k).params),
      helpers.without_noise(alone.params),
      atol=5e-5,
    )


# --- Bad input --------------------------------------------------------------


@pytest.mark.parametrize(
  "changes,problem",
  [
    ({"data.batch_size": 12}, "data.batch_size.*12.*8.*16"),
    ({"data.batch_size": 16, "accumulate": 4},
     "data.batch_size.*4.*8"),
    ({"accumulate": 3}, "accumulate=3.*data.batch_size=16"),
    ({"hyper.total": "10"}, "hyper.total"),
    ({"hyper.schedule": "step"}, "hyper.schedule"),
    ({"hyper.layer_decay": 0.0}, "hyper.layer_decay"),
    ({"loss": "hinge"}, "loss 'hinge'"),
    ({"data.batch_ops": "mixup({mixupp})"}, "mixupp"),
    ({"steps_per_call": 0}, "steps_per_call"),
    ({"steps_per_call": 4, "ingredients": "6steps"}, "6 steps"),
    ({"data.in_memory": True}, "random_crop"),
    ({"data.in_memory": True, "data.train_ops": "value_range(-1, 1)",
      "data.cache_gb": 1e-6}, "307,600"),
    ({"optimizer.name": "adam"}, "'adam'"),
    ({"model.name": "resnet"}, "resnet"),
    ({"sharding.preset": "fdsp"}, "sharding.preset='fdsp'"),
    ({"data.num_classes": 9}, "10 classes.*data.num_classes=9"),
    ({"data.num_train": 99}, "100 images.*data.num_train=99"),
    ({"data.train": "trian"}, "'train'"),
    ({"data.minival": "train[90%:]"},
     "10 images.*data.train.*'train'.*data.minival.*90"),
    ({"hyper.warmup": "13steps"},
     "hyper.warmup.*13 steps.*hyper.total.*12 steps"),
    ({"hyper.warmup": "8steps", "hyper.cooldown": "5steps"},
     "hyper.warmup.*8 steps.*hyper.cooldown.*5"),
    ({"decay": "kernels$"}, "decay='kernels\\$'"),
    ({"data.train_ops": "resize({size})"}, "'size'"),
    ({"freeze": ("encoder_nrom",)}, "'encoder_nrom'"),
    ({"init.path": "/nowhere"}, "/nowhere"),
  ],
)  # fmt: skip
def test_bad_configs_are_named_before_any_work(
  tmp_path, changes, problem, all_devices
):
  with pytest.raises(ValueError, match=problem):
    finetune_run.run(helpers.finetune_config(**changes), tmp_path / "run")
  assert not list((tmp_path / "run").glob("ingredients/*"))
  # Until the start is made, the same directory takes the corrected config.
  made = (tmp_path / "run" / "initial").exists()
  assert (tmp_path / "run" / "config.json").exists() == made


@pytest.mark.parametrize(
  "sweep,index,problem",
  [
    ([{"model.width": 8}], None, "Member 0.*model.width"),
    ([{}, {"init.seed": 1}], None, "Member 1.*init.seed"),
    ([{"hyper.lr": 1.0}], None, "Member 0.*'hyper.lr'"),
    ([{"hyper.mixup": -1.0}], None, "(?s)member_000.*hyper.mixup"),
    ([{}, {}], 2, "--sweep_index=2.*0.*1"),
  ],
)
def test_bad_sweeps_are_named_before_any_work(tmp_path, sweep, index, problem):
  with pytest.raises(ValueError, match=problem):
    finetune_run.run(
      helpers.finetune_config(), tmp_path / "run", sweep=sweep, index=index
    )
  assert not (tmp_path / "run").exists()


def test_out_of_memory_says_what_to_lower():
  config = helpers.finetune_config(accumulate=2)
  error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 3 GB")
  with pytest.raises(ValueError, match="accumulate.*2.*16"):
    with step_lib.memory_advice(config):
      raise error
  with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
    with step_lib.memory_advice(config):
      raise jax.errors.JaxRuntimeError("INTERNAL: other")


def test_a_diverging_run_stops_and_keeps_what_was_good(tmp_path, monkeypatch):
  def poisoned(*args, **kwargs):
    step = train_lib_make_step(*args, **kwargs)

    def poison(state, batch, *rest):
      images = jnp.where(state.step == 7, jnp.nan, batch["images"])
      return step(state, {**batch, "images": images}, *rest)

    return poison

  train_lib_make_step = train_lib.make_step
  monkeypatch.setattr(train_lib, "make_step", poisoned)
  config = helpers.finetune_config(ingredients="5steps")
  with pytest.raises(ValueError, match="run.*nan"):
    finetune_run.run(config, tmp_path / "run")
  names = sorted(p.name for p in (tmp_path / "run" / "ingredients").iterdir())
  assert names == ["step_00000005", "step_00000005_ema_0.9"]
  assert [p.name for p in (tmp_path / "run").glob("state_*")] == [
    "state_00000005"
  ]
  # The state is good: without the poison, the run goes on from it.
  monkeypatch.undo()
  finetune_run.run(config, tmp_path / "run")
  assert (tmp_path / "run" / "done.json").exists()
  assert not list((tmp_path / "run").glob("state_*"))
