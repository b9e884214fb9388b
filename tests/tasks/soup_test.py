# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The main job, shrunk: what it writes, and that kills change nothing."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import soupjax as sj
from soupjax import config as config_lib
from soupjax.tasks import soup, sweep
from soupjax.tasks import workdir as workdir_lib

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "digits.py")
SMALL = {
  "pretrain.total_steps": 60,
  "pretrain.checkpoint_steps": 20,
  "pretrain.warmup_steps": 6,
  "pretrain.log_steps": 10,
  "model.depth": 2,
  "sweep.size": 4,
  "sweep.log_steps": 5,
  "sweep.total_steps": (15, 25),
  "cook.learned_steps": 4,
  "cook.wise_ft_points": 3,
}


def command(workdir):
  overrides = [f"--config.{k}={v}" for k, v in SMALL.items()]
  return [
    sys.executable,
    "-m",
    "soupjax.main",
    f"--config={CONFIG}",
    f"--workdir={workdir}",
    *overrides,
  ]


def environment():
  # Not the eight devices of the other tests.
  env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  return {**env, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"}


def finish(workdir):
  return subprocess.run(
    command(workdir),
    env=environment(),
    check=True,
    capture_output=True,
    text=True,
    timeout=280,
  ).stdout


def kill_when(workdir, ready):
  """Starts the run, and kills it (-9) as soon as `ready()` holds."""
  process = subprocess.Popen(
    command(workdir),
    env=environment(),
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  deadline = time.monotonic() + 120
  while not ready():
    assert process.poll() is None, "the run ended before it could be killed"
    assert time.monotonic() < deadline
    time.sleep(0.005)
  process.send_signal(signal.SIGKILL)
  process.wait()


@pytest.fixture(scope="module")
def done(tmp_path_factory):
  """One unbroken run in a process of its own: its directory and output."""
  workdir = tmp_path_factory.mktemp("soup") / "run"
  return workdir, finish(workdir)


def read_rows(workdir):
  lines = (workdir / "results.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def test_every_model_is_judged_on_everything(done):
  rows = read_rows(done[0])
  assert {tuple(sorted(row)) for row in rows} == {
    ("dataset", "kind", "metric", "model", "n", "value")
  }
  kinds = {row["model"]: row["kind"] for row in rows}
  assert kinds == {
    "pretrained": "pretrained",
    **{f"ingredient_{k:02d}": "ingredient" for k in range(4)},
    **dict.fromkeys(
      ("uniform", "greedy", "learned_model", "learned_layer"), "soup"
    ),
    **dict.fromkeys(("ensemble", "greedy_ensemble"), "ensemble"),
    **{f"wise_ft_{a}": "interpolation" for a in ("0.00", "0.50", "1.00")},
  }
  sizes = {row["dataset"]: row["n"] for row in rows}
  assert sizes.pop("digits/minival") == 300
  assert sizes.pop("digits/new_writers") == 252
  assert len(sizes) == 8 and set(sizes.values()) == {499}
  assert len(rows) == len(kinds) * 10 * 2


def test_numbers_agree_with_the_saved_models(done):
  workdir, _ = done
  splits = sj.data.load_digits()
  model_config = config_lib.load(CONFIG, **SMALL).model
  model = sj.models.ViT(num_classes=10, **model_config)
  predict = sj.evaluators.predictor(model)
  values = {
    (r["model"], r["dataset"]): r["value"]
    for r in read_rows(workdir)
    if r["metric"] == "prec@1"
  }
  test = splits.test
  judge = sj.evaluators.Classification(predict, test.images, test.labels)
  for name in ("uniform", "greedy", "learned_layer"):
    params = sj.load_params(workdir / "soups" / name)
    assert judge(params) == values[name, test.name]
  ingredients = sj.find_ingredients(workdir / "ingredients" / "*")
  for i in ingredients:
    assert i.metrics["minival/prec@1"] == values[i.name, "digits/minival"]
    assert set(i.hyperparameters) >= {"learning_rate", "mixup", "seed"}
  again = sj.uniform_soup(ingredients)
  assert judge(again) == pytest.approx(values["uniform", test.name], abs=0.003)
  # The ends of the WiSE-FT curve are models that are there anyway.
  best = max(
    ingredients,
    key=lambda i: (i.metrics["minival/prec@1"], -i.metrics["minival/loss"]),
  )
  assert values["wise_ft_1.00", test.name] == values[best.name, test.name]
  assert values["wise_ft_0.00", test.name] == values["pretrained", test.name]


def test_greedy_is_not_below_the_best_ingredient_on_minival(done):
  values = {
    r["model"]: r["value"]
    for r in read_rows(done[0])
    if r["dataset"] == "digits/minival" and r["metric"] == "prec@1"
  }
  best = max(v for k, v in values.items() if k.startswith("ingredient"))
  assert values["greedy"] >= best
  assert values["greedy_ensemble"] >= best


def test_traces_pictures_and_page(done):
  workdir, output = done
  trace = json.loads((workdir / "soups/greedy/greedy.json").read_text())
  assert len(trace["history"]) == 4
  assert trace["selected"] == [
    d["name"] for d in trace["history"] if d["accepted"]
  ]
  learned = json.loads(
    (workdir / "soups/learned_layer/learned.json").read_text()
  )
  assert "Transformer/encoderblock_1" in learned["alphas"]
  for alphas in learned["alphas"].values():
    assert sum(alphas) == pytest.approx(1)
  page = (workdir / "report.html").read_text()
  assert page.count("data:image/png;base64") >= 4
  assert len(list((workdir / "figures").glob("*.png"))) >= 4
  assert str(workdir / "report.html") in output
  for word in ("pretrain", "sweep", "images/s", "greedy soup", "evaluate"):
    assert word in output
  leftovers = [p.name for p in workdir.rglob("*tmp*")]
  assert not leftovers


@pytest.mark.slow
def test_killed_four_times_it_ends_with_the_same_results(done, tmp_path):
  workdir = tmp_path / "run"

  def there(pattern):
    return lambda: any(workdir.glob(pattern))

  kill_when(workdir, there("pretrain_state-*"))
  assert not (workdir / "pretrained").exists()
  # The narrowest place: trained, but not saved under the final name.
  kill_when(workdir, there(".pretrained.tmp"))
  kill_when(workdir, there("ingredients/ingredient_01"))
  finished = workdir / "ingredients" / "ingredient_00" / "metrics.json"
  stamp = finished.stat().st_mtime_ns
  kill_when(workdir, there("soups/uniform"))
  assert not (workdir / "results.jsonl").exists()
  finish(workdir)
  assert finished.stat().st_mtime_ns == stamp
  for name in (
    "results.jsonl",
    "soups/greedy/greedy.json",
    "config.json",
    "metrics.jsonl",
  ):
    found, expected = (w / name for w in (workdir, done[0]))
    assert found.read_bytes() == expected.read_bytes(), name


def test_a_finished_run_does_nothing_again(done):
  workdir, _ = done
  files = [p for p in workdir.rglob("*") if p.is_file()]
  stamps = {
    p: p.stat().st_mtime_ns
    for p in files
    if p.parts[len(workdir.parts)] in ("ingredients", "soups", "logits")
  }
  before = (workdir / "results.jsonl").read_bytes()
  finish(workdir)
  assert (workdir / "results.jsonl").read_bytes() == before
  assert stamps == {p: p.stat().st_mtime_ns for p in stamps}


def test_another_config_is_refused_before_any_work(done):
  config = config_lib.load(CONFIG, **{**SMALL, "sweep.size": 5, "seed": 9})
  with pytest.raises(ValueError) as error:
    soup.run(config, done[0])
  assert "seed: 0 before, 9 now" in str(error.value)
  assert "sweep.size: 4 before, 5 now" in str(error.value)


def test_a_directory_with_other_files_is_refused(tmp_path):
  (tmp_path / "thesis.tex").write_text("")
  with pytest.raises(ValueError, match="thesis.tex"):
    soup.run(config_lib.load(CONFIG), tmp_path)
  with pytest.raises(ValueError, match="is a file"):
    soup.run(config_lib.load(CONFIG), tmp_path / "thesis.tex")
  assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
  "arguments,message",
  [
    ([f"--config={CONFIG}", "--config.sweep.sizes=3"], "sizes"),
    ([f"--config={CONFIG}:scratchy"], "Unknown config argument 'scratchy'"),
    ([f"--config={CONFIG}"], "Give --workdir"),
    ([f"--config={CONFIG}", "--config.task=soups"], "got 'soups'"),
    ([], "--config"),
  ],
)
def test_bad_command_lines(arguments, message):
  result = subprocess.run(
    [sys.executable, "-m", "soupjax.main", *arguments],
    env=environment(),
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode != 0
  assert message in result.stdout + result.stderr


def test_random_search_draws_what_the_config_says():
  c = config_lib.load(CONFIG).sweep
  members = sweep.random_search(c, seed=0)
  assert len(members) == 16
  rates = [m["learning_rate"] for m in members]
  assert 10**-2.8 <= min(rates) and max(rates) <= 10**-2.1
  assert len({m["seed"] for m in members}) == 16
  assert {m["mixup"] for m in members} <= {0.0, 0.2, 0.5}
  assert all(100 <= m["total_steps"] <= 200 for m in members)
  smaller = sweep.random_search(
    config_lib.load(CONFIG, **{"sweep.size": 3}).sweep, seed=0
  )
  assert smaller == members[:3]
  assert sweep.random_search(c, seed=1) != members


def test_seeds_of_streams_differ():
  from soupjax.tasks.workdir import stream_seed

  seeds = [stream_seed(0, "a"), stream_seed(0, "b"), stream_seed(1, "a")]
  assert len(set(seeds)) == 3 and np.all(np.array(seeds) >= 0)


def test_a_dry_run_tells_all_and_touches_nothing(tmp_path, capsys):
  workdir = tmp_path / "run"
  config = config_lib.load(CONFIG, **SMALL)
  assert soup.run(config, workdir, dry_run=True) is None
  text = capsys.readouterr().out
  assert not workdir.exists()
  assert '"learned_steps": 4' in text
  assert text.count("learning_rate 0.0") == text.count("ingredient_0") == 4
  model = sj.models.ViT(num_classes=10, **config.model)
  params = model.init(jax.random.key(0), np.zeros((1, 16, 16, 1)))["params"]
  count = sum(x.size for x in jax.tree.leaves(params))
  assert f"{count:,} parameters" in text


def test_damage_and_strangers_change_nothing(done, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(done[0], workdir)
  expected = (workdir / "results.jsonl").read_bytes()
  # A cache is made again; what is not of this sweep is left alone.
  logits = workdir / "logits" / "greedy.npz"
  logits.write_bytes(logits.read_bytes()[:1000])
  (workdir / "logits" / "uniform.npz").write_bytes(b"")
  shutil.copytree(
    workdir / "ingredients" / "ingredient_00", workdir / "ingredients" / "copy"
  )
  (workdir / "ingredients" / "notes.txt").write_text("mine")
  finish(workdir)
  assert (workdir / "results.jsonl").read_bytes() == expected


def test_a_damaged_ingredient_says_what_to_delete(done, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(done[0], workdir)
  config = config_lib.load(CONFIG, **SMALL)
  path = workdir / "ingredients" / "ingredient_02"
  (path / "metrics.json").write_text("")
  with pytest.raises(ValueError, match="ingredient_02 is damaged: delete it"):
    soup.run(config, workdir)
  (path / "metrics.json").unlink()
  with pytest.raises(ValueError, match="ingredient_02 is damaged: delete it"):
    soup.run(config, workdir)
  shutil.rmtree(path)
  (workdir / "config.json").write_text("{")
  with pytest.raises(ValueError, match="choose another"):
    soup.run(config, workdir)


def test_two_runs_do_not_share_a_directory(done):
  with workdir_lib.locked(done[0]):
    with pytest.raises(ValueError, match="Another run is at work in"):
      soup.run(config_lib.load(CONFIG, **SMALL), done[0])


@pytest.mark.parametrize(
  "key,value",
  [
    ("data.name", "mnist"),
    ("pretrain.checkpoint_steps", 0),
    ("pretrain.clip_norm", float("inf")),
    ("pretrain.learning_rate", float("nan")),
    ("sweep.size", 0),
    ("sweep.total_steps", (15, 10)),
    ("sweep.total_steps", (1, 2, 3)),
    ("sweep.total_steps", (0, 2)),
    ("sweep.mixup", ()),
    ("sweep.label_smoothing", (0.0, 1.5)),
    ("cook.accept", "gtt"),
    ("cook.learned_steps", 0),
    ("cook.learned_granularities", ("model", "block")),
    ("cook.wise_ft_points", -1),
  ],
)
def test_configs_that_cannot_work_touch_nothing(key, value, tmp_path):
  config = config_lib.load(CONFIG, **{key: value})
  with pytest.raises(ValueError) as error:
    soup.run(config, tmp_path / "run")
  assert f"{key} must be" in str(error.value) and repr(value) in str(
    error.value
  )
  assert not (tmp_path / "run").exists()


def test_models_that_cannot_work_touch_nothing(tmp_path):
  for change in ({"model.patch_size": 5}, {"model.dtype_mm": "float17"}):
    with pytest.raises(ValueError, match="model: "):
      soup.run(config_lib.load(CONFIG, **change), tmp_path / "run")
  with pytest.raises(ValueError, match="num_train=800"):
    soup.run(config_lib.load(CONFIG, **{"data.num_train": 800}), tmp_path / "r")
  for name in ("br[1]", "a*", "what?"):
    with pytest.raises(ValueError, match="Choose another name"):
      soup.run(config_lib.load(CONFIG), tmp_path / name)
  assert not list(tmp_path.iterdir())


def test_one_ingredient_a_scan_and_an_odd_curve(tmp_path):
  config = config_lib.load(
    CONFIG,
    **{
      **SMALL,
      "pretrain.total_steps": 0,
      "sweep.size": 1,
      "sweep.total_steps": (2, 2),
      "model.scan": True,
      "model.pool_type": "map",
      "cook.wise_ft_points": 4,
    },
  )
  soup.run(config, tmp_path / "run")
  models = {row["model"] for row in read_rows(tmp_path / "run")}
  assert models == {
    "pretrained",
    "ingredient_00",
    "uniform",
    "greedy",
    "ensemble",
    "greedy_ensemble",
    *(f"wise_ft_{a}" for a in ("0.00", "0.3333", "0.6667", "1.00")),
  }


def test_errors_of_users_come_without_a_traceback(tmp_path):
  result = subprocess.run(
    [*command(tmp_path / "run"), "--config.cook.accept=best"],
    env=environment(),
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 1
  assert "cook.accept must be 'ge' or 'gt', got 'best'" in result.stderr
  assert "Traceback" not in result.stderr
