# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Devices, shardings and compiled steps of one member or several at once."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np

from soupjax import models, sharding
from soupjax.tasks.finetune import config as settings
from soupjax.train import adapters, optimizers
from soupjax.train import step as train_step

PyTree = Any


@dataclasses.dataclass(frozen=True, eq=False)
class Compiled:
  """Functions of one static config, compiled at their first call.

  Attributes:
    step: `step(state, images, labels, key, hyper, start) -> state, metrics`;
      the state is donated. Images, labels and metrics have an axis of
      `config.steps_per_call` steps in front. With several members all but
      `start` have an axis of members, after that of the steps.
    begin: parameters -> initial state.
    ready: hyperparameters and seed on the host -> `hyper` and `key` for `step`.
    shapes: of the state.
    places: shardings of its leaves.
  """

  step: Callable[..., Any]
  begin: Callable[[PyTree], train_step.FineTuneState]
  ready: Callable[..., tuple[train_step.Hyper, jax.Array]]
  shapes: PyTree
  places: PyTree


def make_mesh(
  config, at_once: int = 1, devices: Sequence[jax.Device] | None = None
) -> jax.sharding.Mesh:
  """Makes the mesh of a config; members at once get devices of their own."""
  axes = dict(config.sharding.mesh)
  devices = jax.devices() if devices is None else devices
  if at_once > 1:
    if settings.sharding_rules(config):
      raise ValueError(
        "population trains small models: use sharding.preset='replicated'."
      )
    axes = {"member": math.gcd(at_once, len(devices)), "data": -1}
  mesh = sharding.make_mesh(axes, devices)
  if "data" not in mesh.shape:
    raise ValueError(f"sharding.mesh={axes} needs an axis 'data'.")
  part = config.data.batch_size // config.accumulate
  what = "data.batch_size" + " / accumulate" * (config.accumulate > 1)
  sharding.share(mesh, "data", part, what)
  return mesh


def shardings(config, mesh, state: PyTree, params: PyTree) -> PyTree:
  """Returns the shardings of a state by the rules of a config."""
  return sharding.of_state(
    mesh,
    state,
    params,
    settings.sharding_rules(config),
    fsdp_min_size=config.sharding.fsdp_min_size,
  )


def abstract_params(config, model) -> PyTree:
  """Returns shapes and dtypes of a model's parameters; computes nothing."""
  size = config.data.image_size
  inputs = [jax.ShapeDtypeStruct((1, size, size, 3), np.float32)]
  if isinstance(model, models.CLIP):
    length = models.Text(**model.text).context_length
    inputs.append(jax.ShapeDtypeStruct((1, length), np.int32))
  return jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]


def param_shardings(config, model, mesh) -> PyTree:
  """Returns the shardings of a model's parameters."""
  shapes = abstract_params(config, model)
  return shardings(config, mesh, shapes, shapes)


def leaf_sharding(config, model, mesh) -> Callable[..., jax.sharding.Sharding]:
  """Returns a function of leaf name and spec, as `load_params` takes it."""
  by_name = dict(sharding.named(param_shardings(config, model, mesh)))
  return lambda leaf, _: by_name[leaf]


def compile_step(
  config,
  model,
  mesh,
  params: PyTree,
  *,
  off: Sequence[str] = (),
  l2_sp: bool = False,
  count: int = 1,
) -> Compiled:
  """Builds the functions, which compile at their first call.

  Args:
    config: of a member.
    model: with `num_classes`.
    mesh: with axes "data" and, for several members, "member".
    params: of the start, or their shapes.
    off: hyperparameters of batch ops that are 0 in all members.
    l2_sp: whether any member is pulled to the start.
    count: members side by side.
  """
  # A match among frozen leaves is enough; then nothing decays.
  if not any(jax.tree.leaves(optimizers.matches(params, config.decay))):
    raise ValueError(
      f"decay={config.decay!r} matches none of the leaves that --dry_run "
      "lists, so no weight would decay. hyper.weight_decay=0 turns it off."
    )
  tx, adapter = settings.build_tx(config), settings.adapter_of(config)
  frozen = settings.frozen(config)
  if adapter:
    model = adapters.Adapted(model, adapter)
  step = train_step.make_step(
    model,
    tx,
    settings.build_augment(config, off),
    loss=config.loss,
    frozen=frozen,
    decay=config.decay,
    accumulate=config.accumulate,
    sam=config.hyper.sam_rho > 0,
    l2_sp=l2_sp,
  )

  def adapted(params):
    if not adapter:
      return params
    # Members start from the same factors, as from the same weights.
    return adapter.added(params, jax.random.key(config.init.seed))

  def begin(params):
    state = train_step.init_state(
      adapted(params), tx, frozen=frozen, num_ema=len(config.hyper.ema)
    )
    if count > 1:
      state = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (count, *x.shape)), state
      )
    return state

  def ready(hyper, seed):
    make = jax.vmap(jax.random.key) if count > 1 else jax.random.key
    return hyper, make(seed)

  shapes = jax.eval_shape(begin, params)
  if count > 1:
    step = side_by_side(step, mesh)
    places = jax.tree.map(lambda _: sharding.along(mesh, "member"), shapes)
  else:
    own = jax.eval_shape(adapted, params)
    places = shardings(config, mesh, shapes, own)
  everywhere = sharding.replicated(mesh)
  step = several_steps(step, config.steps_per_call)
  return Compiled(
    step=jax.jit(step, donate_argnums=0, out_shardings=(places, everywhere)),
    begin=jax.jit(begin, out_shardings=places),
    ready=jax.jit(ready, out_shardings=everywhere),
    shapes=shapes,
    places=places,
  )


def abstract_arguments(
  config, mesh, compiled: Compiled, start: PyTree | None, count: int = 1
) -> tuple[Any, ...]:
  """Returns shapes, dtypes and shardings of the arguments of `Compiled.step`.

  Args:
    config: of a member.
    mesh: of the step.
    compiled: from `compile_step`.
    start: of the parameters, if members are pulled to it.
    count: members side by side.
  """
  size, batch = config.data.image_size, config.data.batch_size
  members = (count,) * (count > 1)
  shape = (config.steps_per_call, *members, batch)
  batches = sharding.along(mesh, None, *["member"] * len(members), "data")
  # Any number of images: only the shapes of the values count.
  values = settings.hyper(config, config.data.num_train or 10**6)
  values = values, np.uint32(0)
  values = jax.tree.map(lambda x: np.broadcast_to(x, members + x.shape), values)
  everywhere = sharding.replicated(mesh)

  def placed(spec, place):
    return jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=place)

  hyper, keys = jax.tree.map(
    lambda spec: placed(spec, everywhere),
    jax.eval_shape(compiled.ready, *values),
  )
  return (
    jax.tree.map(placed, compiled.shapes, compiled.places),
    jax.ShapeDtypeStruct((*shape, size, size, 3), np.float32, sharding=batches),
    jax.ShapeDtypeStruct(shape, np.int32, sharding=batches),
    keys,
    hyper,
    start,
  )


def several_steps(step, count: int):
  """Makes a step of `count` steps; those past the end change nothing."""
  if count == 1:

    def single(state, images, labels, keys, hyper, start):
      state, metrics = step(state, images[0], labels[0], keys, hyper, start)
      return state, jax.tree.map(lambda x: x[None], metrics)

    return single

  def several(state, images, labels, keys, hyper, start):
    def body(state, batch):
      moved, metrics = step(state, *batch, keys, hyper, start)
      return unless_ended(moved, state, hyper), metrics

    return jax.lax.scan(body, state, (images, labels))

  return several


def unless_ended(moved: PyTree, state: PyTree, hyper) -> PyTree:
  """Returns the new state of members, or the old one after their end."""
  active = state.step < hyper.total_steps

  def choose(new, old):
    shape = active.shape + (1,) * (new.ndim - active.ndim)
    return jnp.where(active.reshape(shape), new, old)

  return jax.tree.map(choose, moved, state)


def side_by_side(step, mesh):
  """Makes a step of several members; those at their end stay unchanged.

  Members are split over the devices. An accelerator then takes its share at
  once, a CPU one after another, since batched kernels are not faster there.
  """

  def share(state, images, labels, keys, hyper, start):
    members = state, images, labels, keys, hyper
    if mesh.devices.flat[0].platform == "cpu":
      return jax.lax.map(lambda member: step(*member, start), members)
    return jax.vmap(lambda *member: step(*member, start))(*members)

  members, everywhere = PartitionSpec("member"), PartitionSpec()
  mapped = jax.shard_map(
    share,
    mesh=mesh,
    in_specs=(*[members] * 5, everywhere),
    out_specs=members,
    axis_names={"member"},
    check_vma=False,
  )

  def together(state, images, labels, keys, hyper, start):
    moved, metrics = mapped(state, images, labels, keys, hyper, start)
    return unless_ended(moved, state, hyper), metrics

  return together


@jax.jit
def select(state: PyTree, k: jax.typing.ArrayLike) -> PyTree:
  """Returns the state of one of several members."""
  return jax.tree.map(
    lambda x: jax.lax.dynamic_index_in_dim(x, k, keepdims=False), state
  )


@contextlib.contextmanager
def memory_advice(config) -> Iterator[None]:
  """Turns JAX's out-of-memory error into a ValueError that lists remedies."""
  try:
    yield
  except jax.errors.JaxRuntimeError as e:
    if "RESOURCE_EXHAUSTED" not in str(e) and "ut of memory" not in str(e):
      raise
    raise ValueError(
      "The devices are out of memory. In order of cost: raise accumulate (now "
      f"{config.accumulate}), which without dropout changes no numbers; set "
      "model.remat_policy='nothing_saveable' and model.scan=True; "
      "sharding.preset='fsdp' on several devices; model.dtype_mm='bfloat16'; "
      f"fewer moving averages (now {len(config.hyper.ema)}); lower population "
      f"(now {config.population}) or data.batch_size (now "
      f"{config.data.batch_size}). --dry_run shows the bytes of the state."
    ) from e
