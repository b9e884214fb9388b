# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Judges models on all sets, once each."""

from collections.abc import Callable
import functools
import pathlib
from typing import Any

from absl import logging
import jax
import numpy as np

from soupjax import data, files, processes, sharding
from soupjax.evaluators import (
  Classification,
  Streaming,
  classification_metrics,
)
from soupjax.tasks import cook_config
from soupjax.tasks import workdir as workdir_lib
from soupjax.tasks.cook_kitchen import Kitchen
from soupjax.tasks.finetune import config as finetune_config
from soupjax.tasks.finetune.step import put_batch

PyTree = Any


class Bench:
  """Evaluates models on all sets, and remembers it on disk."""

  LABELS = ".labels"  # Beside the logits of models.

  def __init__(self, kitchen: Kitchen, workdir: pathlib.Path):
    self._kitchen, self._workdir = kitchen, workdir
    config, mesh = kitchen.config, kitchen.mesh
    self._sources = {"minival": kitchen.minival, **kitchen.tests}
    self._size = finetune_config.rounded_up(
      config.data.batch_size, mesh.shape["data"]
    )
    put = functools.partial(put_batch, mesh, axes=("data",))
    self._judges = {
      name: Streaming(
        kitchen.model,
        data.eval_batches(
          source,
          batch_size=self._size,
          preprocess=cook_config.eval_ops(config),
          process_index=jax.process_index(),
          process_count=jax.process_count(),
        ),
        put,
        name=name,
      )
      for name, source in self._sources.items()
    }
    self._labels: dict[str, np.ndarray] = {}

  @functools.cached_property
  def minival(self) -> Classification | Streaming:
    """Scores candidates on held-out images; decoded once if there is room."""
    kitchen, judge = self._kitchen, self._judges["minival"]
    config, mesh = kitchen.config, kitchen.mesh
    needed = 12 * config.data.image_size**2 * len(kitchen.minival)
    if jax.process_count() > 1:
      return judge
    if needed > config.data.cache_gb * 1e9:
      logging.warning(
        "minival takes %.1f GB decoded, more than data.cache_gb=%g: it is "
        "decoded anew for every candidate, and all of it evaluated.",
        needed / 1e9,
        config.data.cache_gb,
      )
      return judge
    images, labels = judge.examples()
    place = sharding.along(mesh, "data")
    predict = judge.predict
    return Classification(
      lambda params, batch: predict(params, jax.device_put(batch, place)),
      images,
      labels,
      batch_size=self._size,
    )

  def judge(
    self,
    name: str,
    load: Callable[[], PyTree],
    keep_logits: bool = False,
  ) -> dict[str, dict[str, float]]:
    """Metrics of a model by set; those of an earlier run if there are any."""
    record = self._workdir / "judged" / f"{name}.json"
    kept = self._logits_file(name)
    if workdir_lib.agreed(
      record.exists() and (kept.exists() or not keep_logits)
    ):
      return workdir_lib.agreed(
        files.read_json(record) if jax.process_index() == 0 else None
      )
    params, logits = load(), {}
    found = {}
    for dataset, judge in self._judges.items():
      try:
        if keep_logits:
          logits[dataset], labels = judge.logits(params)
          found[dataset] = classification_metrics(logits[dataset], labels)
          found[dataset]["n"] = len(labels)
          self._labels[dataset] = labels
        else:
          found[dataset] = judge.totals(params)
      except ValueError as e:
        raise ValueError(f"{name} on {dataset}: {e}") from e
    if jax.process_index() == 0:
      record.parent.mkdir(exist_ok=True)
      if keep_logits:
        files.write_arrays(self._logits_file(self.LABELS), self._labels)
        files.write_arrays(kept, logits)
      files.write_json(record, found)
    processes.barrier(f"judged {name}")
    return found

  def _logits_file(self, name: str) -> pathlib.Path:
    return self._workdir / "logits" / f"{name}.npz"

  def logits(self, name: str) -> dict[str, np.ndarray]:
    """Logits of a model that was judged, by set."""
    with np.load(self._logits_file(name), allow_pickle=False) as stored:
      return {dataset: stored[dataset] for dataset in self._judges}

  def rows(self, name: str, kind: str, found) -> list[dict[str, Any]]:
    """Lines of `results.jsonl`."""
    title = pathlib.PurePath(self._kitchen.config.data.name).name
    return [
      {
        "model": name,
        "kind": kind,
        "dataset": f"{title}/{dataset}",
        "metric": metric,
        "value": value,
        "n": values["n"],
      }
      for dataset, values in found.items()
      for metric, value in values.items()
      if metric != "n"
    ]
