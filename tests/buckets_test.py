# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Inputs and outputs in buckets, over connections that break."""

import pathlib
import signal

import helpers
import numpy as np
import pytest

import soupjax as sj
from soupjax import buckets
from soupjax.checkpoints import readable
from soupjax.tasks import failures

MIX = f"--config={pathlib.Path(__file__).parents[1] / 'configs' / 'mix.py'}"


RULE = sj.rules.linear()


@pytest.fixture
def few_tries(monkeypatch):
  """Limits requests to two attempts with short waits."""
  import s3fs

  monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
  monkeypatch.setattr(s3fs.S3FileSystem, "retries", 2)
  s3fs.S3FileSystem.clear_instance_cache()
  monkeypatch.setattr(
    buckets, "RETRIES", {"max_retries": 1, "initial_delay": "1ms"}
  )


def tree(k):
  rng = np.random.default_rng(k)
  return {"w": rng.normal(size=(50, 800)).astype(np.float32), "b": np.ones(3)}


def put(bucket, tmp_path, count=2, suffix="safetensors"):
  """Uploads models to a bucket; returns the mean of their leaf "w"."""
  for k in range(count):
    local = tmp_path / f"m{k}.{suffix}"
    sj.save_params(local, tree(k))
    buckets.upload(local, f"{bucket}/in/{local.name}")
  return np.mean([tree(k)["w"] for k in range(count)], axis=0)


def same(path, expected):
  w = sj.load_params(path)["w"]
  np.testing.assert_allclose(w, expected, rtol=1e-6)


@pytest.fixture
def staging(tmp_path, monkeypatch):
  """Sets the directory in which outputs are written before their upload."""
  monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
  monkeypatch.setattr("tempfile.tempdir", None)
  (tmp_path / "tmp").mkdir()
  yield tmp_path / "tmp"
  monkeypatch.setattr("tempfile.tempdir", None)


def leftovers(staging):
  return [path for path in staging.rglob("*") if path.is_file()]


def test_mix_from_and_to_a_bucket_from_the_shell(store, bucket, tmp_path):
  expected = put(bucket, tmp_path)
  done = helpers.soupjax(
    MIX,
    f"--config.ingredients={bucket}/in/*.safetensors",
    f"--config.out={bucket}/soup.safetensors",
  )
  assert done.returncode == 0, done.stderr
  assert f"Wrote {bucket}/soup.safetensors: read" in done.stdout
  same(f"{bucket}/soup.safetensors", expected)
  done = helpers.soupjax(
    MIX,
    f"--config.ingredients={bucket}/in/*.safetensors",
    f"--config.out={bucket}/soup.safetensors",
  )
  assert done.returncode == 1
  assert f"{bucket}/soup.safetensors exists already" in done.stderr


@pytest.mark.parametrize("out", ["soup.safetensors", "soup.npz", "soup"])
def test_outputs(store, bucket, tmp_path, staging, out):
  expected = put(bucket, tmp_path, suffix="npz")
  sj.mix(RULE, f"{bucket}/in/m?.npz", out=f"{bucket}/{out}")
  same(f"{bucket}/{out}", expected)
  # Outputs can be inputs.
  sj.mix(RULE, [f"{bucket}/{out}"] * 1, out=tmp_path / out)
  same(tmp_path / out, expected)
  assert not [name for name in store.names(bucket[5:]) if ".tmp" in name]
  assert not leftovers(staging)


def test_gs(google_bucket, tmp_path, staging):
  expected = put(google_bucket, tmp_path)
  models = f"{google_bucket}/in/m?.safetensors"
  opened = sj.find_ingredients(models)
  for out in ("soup.safetensors", "soup"):
    sj.mix(RULE, models, out=f"{google_bucket}/{out}")
    same(f"{google_bucket}/{out}", expected)
  sj.save_params(tmp_path / "new.safetensors", tree(7))  # Of the same size.
  buckets.upload(tmp_path / "new.safetensors", models.replace("?", "1"))
  with pytest.raises(ValueError, match="m1.safetensors has been replaced"):
    sj.mix(RULE, opened)
  assert not [name for name in buckets.find(google_bucket) if ".tmp" in name]
  assert not leftovers(staging)
  with pytest.raises(ValueError, match="there is no bucket 'not-there"):
    sj.open_ingredient("gs://not-there/a.npz")


def test_an_output_needs_a_name_in_the_bucket(store, bucket):
  for out in (bucket, f"{bucket}/"):
    with pytest.raises(ValueError, match=f"{bucket}/? is a bucket.*NAME"):
      sj.save_params(out, tree(1))


def test_an_output_that_another_run_writes(store, bucket, tmp_path):
  sj.save_params(tmp_path / "a.npz", tree(0))
  with buckets.locked(f"{bucket}/.o.npz.lock"):
    with pytest.raises(ValueError, match=f"run is writing {bucket}/o.npz"):
      sj.mix(RULE, tmp_path / "a.npz", out=f"{bucket}/o.npz")
  assert store.names(bucket[5:]) == []
  sj.mix(RULE, tmp_path / "a.npz", out=f"{bucket}/o.npz")
  assert store.names(bucket[5:]) == ["o.npz"]


def test_an_output_that_appears_meanwhile(
  store, bucket, tmp_path, monkeypatch, staging
):
  sj.save_params(tmp_path / "a.npz", tree(0))
  check = readable.check_written

  def slow(*args):  # Another program writes during the mix.
    buckets.write(f"{bucket}/o.npz", b"data")
    return check(*args)

  monkeypatch.setattr(readable, "check_written", slow)
  with pytest.raises(ValueError, match=f"{bucket}/o.npz was written by anoth"):
    sj.mix(RULE, tmp_path / "a.npz", out=f"{bucket}/o.npz")
  assert buckets.read(f"{bucket}/o.npz") == b"data"
  assert not leftovers(staging)


def test_an_upload_can_be_interrupted(
  store, bucket, tmp_path, monkeypatch, staging
):
  sj.save_params(tmp_path / "a.npz", tree(0))
  monkeypatch.setattr(
    buckets, "upload", lambda *args: signal.raise_signal(signal.SIGINT)
  )
  with pytest.raises(KeyboardInterrupt) as e:
    sj.mix(RULE, tmp_path / "a.npz", out=f"{bucket}/o.npz")
  assert failures.message(e.value) == (
    f"Interrupted. {bucket}/o.npz was not published. The next run replaces "
    "what was uploaded."
  )
  assert not leftovers(staging) and store.names(bucket[5:]) == []


def test_stores_that_are_read_only():
  with pytest.raises(ValueError, match="az:// but writes to gs:// and s3://"):
    sj.save_params("az://container/a.npz", tree(0))


def test_shards_and_overwriting(store, bucket, tmp_path, staging):
  expected = put(bucket, tmp_path)
  settings = {"format": "safetensors", "shard_bytes": 100_000}
  models = [f"{bucket}/in/m{k}.safetensors" for k in range(2)]
  sj.mix(RULE, models, out=f"{bucket}/s", **settings)
  assert "s/model.safetensors.index.json" in store.names(bucket[5:])
  same(f"{bucket}/s", expected)
  with pytest.raises(ValueError, match=f"{bucket}/s has objects below it"):
    sj.mix(RULE, models, out=f"{bucket}/s", overwrite=True, **settings)
  out = f"{bucket}/o.npz"
  buckets.write(out, b"no checkpoint")
  with pytest.raises(ValueError, match=f"replaces a checkpoint, and {out}"):
    sj.mix(RULE, models, out=out, overwrite=True)
  sj.mix(RULE, models[:1], out=f"{bucket}/o2.npz")
  sj.mix(RULE, models, out=f"{bucket}/o2.npz", overwrite=True)
  same(f"{bucket}/o2.npz", expected)
  for taken in (models[0], f"{bucket}/in"):
    with pytest.raises(ValueError, match=f"{taken} is or contains the ingr"):
      sj.mix(RULE, models, out=taken, overwrite=True, format="safetensors",
             shard_bytes=None if taken != f"{bucket}/in" else 1)  # fmt: skip


@pytest.mark.parametrize("names", [
  ["model.safetensors", "config.json"],
  ["a.safetensors", "b.safetensors"],
  ["config.json"],
  ["state/weights.bin"],
])  # fmt: skip
def test_objects_of_others_are_not_an_interrupted_upload(
  store, bucket, tmp_path, names
):
  sj.save_params(tmp_path / "a.npz", tree(0))
  for name in names:
    buckets.write(f"{bucket}/taken/{name}", b"data")
  before = store.names(bucket[5:])
  for save in (
    lambda out: sj.save_params(out, tree(0)),
    lambda out: sj.mix(RULE, tmp_path / "a.npz", out=out, format="orbax"),
    lambda out: sj.mix(RULE, tmp_path / "a.npz", out=out, format="safetensors",
                       shard_bytes=100_000),
  ):  # fmt: skip
    with pytest.raises(ValueError, match="taken exists already"):
      save(f"{bucket}/taken")
  assert store.names(bucket[5:]) == before


def test_an_interrupted_upload_of_shards_goes_on(
  store, bucket, tmp_path, monkeypatch, staging
):
  sj.save_params(tmp_path / "a.npz", tree(0))
  settings = {"format": "safetensors", "shard_bytes": 100_000}
  upload = buckets.upload

  def broken(local, path):
    upload(local, path)
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(buckets, "upload", broken)
    with pytest.raises(KeyboardInterrupt):
      sj.mix(RULE, tmp_path / "a.npz", out=f"{bucket}/s", **settings)
  assert len(store.names(bucket[5:])) == 2
  sj.mix(RULE, tmp_path / "a.npz", out=f"{bucket}/s", **settings)
  same(f"{bucket}/s", tree(0)["w"])
  assert f"s/{buckets.UNFINISHED}" not in store.names(bucket[5:])


# --- Stores that cannot be reached --------------------------------------------


def test_a_bucket_that_is_not_there(store, bucket, tmp_path):
  sj.save_params(tmp_path / "a.npz", tree(0))
  missing = "s3://not-there-at-all"
  for call in (
    lambda: sj.open_ingredient(f"{missing}/a.npz"),
    lambda: sj.find_ingredients(f"{missing}/*.npz"),
    lambda: sj.mix(RULE, tmp_path / "a.npz", out=f"{missing}/a.npz"),
  ):
    with pytest.raises(ValueError, match="there is no bucket 'not-there-at"):
      call()
  with pytest.raises(ValueError, match=f"no checkpoint at {bucket}/a.npz"):
    sj.open_ingredient(f"{bucket}/a.npz")
  with pytest.raises(ValueError, match="write s3://BUCKET/PATH"):
    sj.open_ingredient("s3://")


def test_no_credentials(store, bucket, monkeypatch):
  monkeypatch.delenv("AWS_ACCESS_KEY_ID")
  monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
  monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
  monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
  fresh(monkeypatch)
  with pytest.raises(ValueError, match=f"{bucket}/a.npz.*AWS_ACCESS_KEY_ID"):
    sj.open_ingredient(f"{bucket}/a.npz")


def fresh(monkeypatch):
  """Forgets connections before and after a test."""
  import s3fs

  monkeypatch.setattr(s3fs.S3FileSystem, "cachable", False)
  monkeypatch.setattr(buckets, "_CHECKED", set())


# --- Connections that break ---------------------------------------------------


def test_reads_go_on_after_a_broken_connection(store, bucket, tmp_path):
  expected = put(bucket, tmp_path)
  with store.proxy.breaking("down", 50_000, times=2):
    mixed = sj.mix(RULE, f"{bucket}/in/*")
  np.testing.assert_allclose(mixed.params["w"], expected, rtol=1e-6)


def test_reads_that_always_break(store, bucket, tmp_path, few_tries):
  put(bucket, tmp_path)
  models = sj.find_ingredients(f"{bucket}/in/*")
  with store.proxy.breaking("down", 20_000):
    with pytest.raises(ValueError, match=f"{bucket}/in/m.*connection.*failed"):
      sj.mix(RULE, models)


@pytest.mark.parametrize("out", ["o.safetensors", "o"])
def test_nothing_is_half_published(
  store, bucket, tmp_path, few_tries, staging, out
):
  put(bucket, tmp_path)
  models = [tmp_path / f"m{k}.safetensors" for k in range(2)]
  with store.proxy.breaking("up", 20_000):
    with pytest.raises(ValueError, match=f"{bucket}/{out}.*connection.*failed"):
      sj.mix(RULE, models, out=f"{bucket}/{out}")
  assert f"{out}.safetensors" not in store.names(bucket[5:])
  with pytest.raises(ValueError, match=f"{bucket}/{out}"):
    sj.open_ingredient(f"{bucket}/{out}")
  assert not leftovers(staging)
  # The same call succeeds afterwards.
  sj.mix(RULE, models, out=f"{bucket}/{out}")
  same(f"{bucket}/{out}", sj.mix(RULE, models).params["w"])


def test_a_directory_without_its_last_object_is_refused(
  store, bucket, tmp_path
):
  put(bucket, tmp_path)
  models = f"{bucket}/in/*"
  begin = len(store.proxy.seen)
  sj.mix(RULE, models, out=f"{bucket}/o")
  # Orbax requires this object in gs:// buckets.
  puts = [line for line in store.proxy.seen[begin:] if line.startswith("PUT")]
  assert puts[-1].split()[1].endswith("/o/commit_success.txt")
  # As a kill between the last two objects leaves it.
  name = bucket.removeprefix("s3://")
  store.client.delete_object(Bucket=name, Key="o/commit_success.txt")
  with pytest.raises(ValueError, match="o exists already"):
    sj.mix(RULE, models, out=f"{bucket}/o")
  store.client.put_object(Bucket=name, Key="o/.soupjax_upload", Body=b"")
  sj.mix(RULE, models, out=f"{bucket}/o")
  store.client.delete_object(Bucket=name, Key="o/_CHECKPOINT_METADATA")
  with pytest.raises(ValueError, match=f"{bucket}/o .*interrupted"):
    sj.open_ingredient(f"{bucket}/o")


def test_bytes_that_arrive_changed_are_not_published(
  store, bucket, tmp_path, monkeypatch
):
  sj.save_params(tmp_path / "a.npz", tree(0))
  monkeypatch.setattr(buckets, "read", lambda *args: b"other")
  with pytest.raises(ValueError, match=f"{bucket}/a.npz was not published"):
    buckets.upload(tmp_path / "a.npz", f"{bucket}/a.npz")
  assert store.names(bucket[5:]) == []


# --- Objects that change ------------------------------------------------------


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_an_object_that_changes(store, bucket, tmp_path, suffix):
  put(bucket, tmp_path, suffix=suffix)
  models = sj.find_ingredients(f"{bucket}/in/*")
  name = f"{bucket}/in/m1.{suffix}"
  models[1].read("b")
  sj.save_params(tmp_path / f"new.{suffix}", tree(7))
  buckets.upload(tmp_path / f"new.{suffix}", name)  # Of the same size.
  with pytest.raises(ValueError, match=f"{name} has been replaced"):
    sj.mix(RULE, models)
  with pytest.raises(ValueError, match=f"{name} has been replaced"):
    models[1].load()
  buckets.remove(name)
  with pytest.raises(ValueError, match=f"{name} cannot be read"):
    sj.mix(RULE, models)
