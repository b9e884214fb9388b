# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Devices, shardings and compiled steps, of one member or several at once."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np

from soupjax import sharding
from soupjax.tasks.finetune import config as settings
from soupjax.tasks.finetune import objective, towers
from soupjax.train import adapters, optimizers
from soupjax.train import step as train_step

PyTree = Any


@dataclasses.dataclass(frozen=True, eq=False)
class Compiled:
  """Functions of one static config, compiled at their first call.

  Attributes:
    step: `step(state, batch, key, hyper, shared) -> state, metrics`; the state
      is donated. Arrays in the batch and the metrics have a leading axis of
      `config.steps_per_call` steps. With several members, all arguments but
      `shared` have an axis of members, after that of the steps if there is one.
    begin: maps parameters to the initial state.
    ready: maps hyperparameters and seed, on the host, to `hyper` and `key`.
    shapes: shapes and dtypes of the state.
    places: shardings of the state.
  """

  step: Callable[..., Any]
  begin: Callable[[PyTree], train_step.FineTuneState]
  ready: Callable[..., tuple[train_step.Hyper, jax.Array]]
  shapes: PyTree
  places: PyTree


def make_mesh(
  config, at_once: int = 1, devices: Sequence[jax.Device] | None = None
) -> jax.sharding.Mesh:
  """Makes the mesh of a config.

  Args:
    config: the config of the sweep.
    at_once: number of members that are trained side by side. Several of them
      are split over an axis "member", in place of the config's axes.
    devices: devices of the mesh; None for all devices of JAX.

  Raises:
    ValueError: if mesh, batch size and devices do not fit together, or there
      are sharding rules for several members.
  """
  axes = dict(config.sharding.mesh)
  devices = jax.devices() if devices is None else devices
  if at_once > 1:
    if settings.sharding_rules(config):
      raise ValueError(
        "The parameters of members trained at once (population) cannot be "
        "sharded: use sharding.preset='replicated' without rules."
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
  """Returns the shardings of a state, by the rules of a config."""
  return sharding.of_state(
    mesh,
    state,
    params,
    settings.sharding_rules(config),
    fsdp_min_size=config.sharding.fsdp_min_size,
  )


def abstract_params(config, model) -> PyTree:
  """Returns the shapes and dtypes of a model's parameters; computes nothing."""
  inputs = towers.inputs(config, model)
  return jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]


def param_shardings(config, model, mesh) -> PyTree:
  """Returns the shardings of a model's parameters."""
  shapes = abstract_params(config, model)
  return shardings(config, mesh, shapes, shapes)


def leaf_sharding(config, model, mesh) -> Callable[..., jax.sharding.Sharding]:
  """Returns the shardings of a model's parameters as `load_params` takes them.

  They are a function of leaf name and spec.
  """
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
    config: the config of a member.
    model: with `num_classes`, or a CLIP.
    mesh: with axes "data" and, for several members, "member".
    params: parameters of the start, or their shapes.
    off: hyperparameters of batch ops that are 0 in all members.
    l2_sp: whether any member is pulled to the start.
    count: number of members side by side.

  Raises:
    ValueError: if `config.decay` does not match any leaf.
  """
  # A match among frozen leaves is enough; then nothing decays.
  if not any(jax.tree.leaves(optimizers.matches(params, config.decay))):
    raise ValueError(
      f"decay={config.decay!r} matches none of the leaves that --dry_run "
      "lists, so no weight would decay. To turn decay off, set "
      "hyper.weight_decay=0."
    )
  tx, adapter = settings.build_tx(config), settings.adapter_of(config)
  frozen = settings.frozen(config)
  if adapter:
    model = adapters.Adapted(model, adapter)
  step = train_step.make_step(
    model,
    tx,
    settings.build_augment(config, off),
    recipe=objective.recipe_of(config),
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
    # Like the weights, the initial factors are the same for all members.
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
  config, mesh, compiled: Compiled, shared: PyTree | None, count: int = 1
) -> tuple[Any, ...]:
  """Returns shapes, dtypes and shardings of the arguments of `Compiled.step`.

  Args:
    config: the config of a member.
    mesh: the mesh of the step.
    compiled: from `compile_step`.
    shared: from `abstract_shared`.
    count: number of members side by side.
  """
  size, batch = config.data.image_size, config.data.batch_size
  image = (size, size, 3)
  if objective.recipe_of(config).embedded:
    image = towers.embedding_shape(config, settings.build_model(config))
  members = (count,) * (count > 1)
  shape = (config.steps_per_call, *members, batch)
  batches = sharding.along(mesh, None, *["member"] * len(members), "data")
  # Any number of images will do: only the shapes of the values matter.
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
    {
      "images": jax.ShapeDtypeStruct(
        (*shape, *image), np.float32, sharding=batches
      ),
      "labels": jax.ShapeDtypeStruct(shape, np.int32, sharding=batches),
    },
    keys,
    hyper,
    shared,
  )


def shared_of(config, l2_sp: bool, start: PyTree, arrays) -> PyTree | None:
  """Returns the argument `shared` of `Compiled.step`; None if it is not used.

  Args:
    config: the config of a member.
    l2_sp: whether any member is pulled to the start.
    start: parameters of the start.
    arrays: the arrays in `Job.shared`.
  """
  recipe = objective.recipe_of(config)
  names = {*recipe.shared, *["start"] * l2_sp, *["prompts"] * recipe.pairs}
  available = {**arrays, "start": start}
  return {name: available[name] for name in sorted(names)} or None


def abstract_shared(config, mesh, model, l2_sp: bool, start: PyTree) -> PyTree:
  """Returns shapes and shardings in place of the arrays of `shared_of`."""
  place, arrays = sharding.replicated(mesh), {}
  recipe = objective.recipe_of(config)
  if recipe.pairs:
    arrays["prompts"] = jax.ShapeDtypeStruct(
      towers.prompt_shape(config, model), np.int32, sharding=place
    )
  if "context" in recipe.shared:
    arrays["context"] = jax.ShapeDtypeStruct(
      towers.context_shape(config, start), np.float32, sharding=place
    )
  return shared_of(config, l2_sp, start, arrays)


def several_steps(step, count: int):
  """Makes a function of `count` steps; steps past the end change nothing.

  Its batches and metrics have a leading axis of steps, even for one step.
  """
  if count == 1:

    def single(state, batch, keys, hyper, shared):
      batch = jax.tree.map(lambda x: x[0], batch)
      state, metrics = step(state, batch, keys, hyper, shared)
      return state, jax.tree.map(lambda x: x[None], metrics)

    return single

  def several(state, batches, keys, hyper, shared):
    def body(state, batch):
      moved, metrics = step(state, batch, keys, hyper, shared)
      return unless_ended(moved, state, hyper), metrics

    return jax.lax.scan(body, state, batches)

  return several


def unless_ended(moved: PyTree, state: PyTree, hyper) -> PyTree:
  """Returns the new state of each member, or the old one if it has ended."""
  active = state.step < hyper.total_steps

  def choose(new, old):
    shape = active.shape + (1,) * (new.ndim - active.ndim)
    return jnp.where(active.reshape(shape), new, old)

  return jax.tree.map(choose, moved, state)


def side_by_side(step, mesh):
  """Makes a step of several members; those past their end stay unchanged.

  Members are split over the devices. An accelerator computes its members at
  once. A CPU computes them in turn, since batched kernels are not faster there.
  """

  def part(state, batch, keys, hyper, shared):
    members = state, batch, keys, hyper
    if mesh.devices.flat[0].platform == "cpu":
      return jax.lax.map(lambda member: step(*member, shared), members)
    return jax.vmap(lambda *member: step(*member, shared))(*members)

  members, everywhere = PartitionSpec("member"), PartitionSpec()
  mapped = jax.shard_map(
    part,
    mesh=mesh,
    in_specs=(*[members] * 4, everywhere),
    out_specs=members,
    axis_names={"member"},
    check_vma=False,
  )

  def together(state, batch, keys, hyper, shared):
    moved, metrics = mapped(state, batch, keys, hyper, shared)
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
  """Turns JAX's out-of-memory error into a ValueError with advice."""
  try:
    yield
  except jax.errors.JaxRuntimeError as e:
    if "RESOURCE_EXHAUSTED" not in str(e) and "ut of memory" not in str(e):
      raise
    raise ValueError(
      "The devices are out of memory. In order of cost: raise accumulate (now "
      f"{config.accumulate}), which without dropout changes no results; set "
      "model.remat_policy='nothing_saveable' and model.scan=True; "
      "sharding.preset='fsdp' on several devices; model.dtype_mm='bfloat16'; "
      f"fewer moving averages (now {len(config.hyper.ema)}); lower population "
      f"(now {config.population}) or data.batch_size (now "
      f"{config.data.batch_size}). --dry_run shows the bytes of the state."
    ) from e
