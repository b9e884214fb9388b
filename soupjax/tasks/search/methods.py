# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Search methods: each chooses one model on minival."""

from collections.abc import Callable, Mapping
import dataclasses

from soupjax.tasks.search import arithmetic, averages, learned, patching
from soupjax.tasks.search.inputs import SearchInputs
from soupjax.tasks.search.work import Outcome, Work


def _accept(inputs: SearchInputs) -> None:
  del inputs


def _points(inputs: SearchInputs) -> int:
  return inputs.config.search.points


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
  """A value of `config.method`.

  Attributes:
    run: chooses the model.
    count: returns the maximum number of candidates.
    check: raises a ValueError, before any work, for unsuitable inputs.
    least: minimum number of ingredients.
    same_init: whether ingredients must have the same start.
    needs_initial: whether `config.initial` is required.
    one_run: whether ingredients are checkpoints along one run.
    learned: whether it needs gradients, which a command does not provide.
  """

  run: Callable[[Work], Outcome]
  count: Callable[[SearchInputs], int] = _points
  check: Callable[[SearchInputs], None] = _accept
  least: int = 1
  same_init: bool = True
  needs_initial: bool = True
  one_run: bool = False
  learned: bool = False


_RULE = Method(
  run=averages.rule,
  count=averages.budget,
  check=averages.check_rule,
  needs_initial=False,  # `check_rule` decides.
)
_WINDOW = Method(
  run=averages.window,
  count=averages.count_window,
  check=lambda inputs: averages.schedules(inputs) and None,
  least=2,
  needs_initial=False,
  one_run=True,
)
_DIWA = Method(
  run=averages.diwa,
  count=averages.count_diwa,
  check=averages.check_diwa,
  least=2,
  needs_initial=False,
)
_LEARNED = Method(
  run=learned.entropy,
  count=lambda inputs: 0,  # Each step is a gradient.
  check=learned.check,
  learned=True,
)
METHODS: Mapping[str, Method] = {
  "wise_ft": Method(run=arithmetic.wise_ft),
  # Scale 0, the initial model, is part of the grid.
  "addition": Method(run=arithmetic.addition),
  "negation": Method(run=arithmetic.negation, check=arithmetic.check_negation),
  "analogy": Method(
    run=arithmetic.analogy,
    check=arithmetic.check_analogy,
    least=3,
    needs_initial=False,
  ),
  "paint": Method(run=patching.paint, check=patching.check_single),
  "paint_sequential": Method(
    run=patching.paint_sequential,
    count=lambda inputs: _points(inputs) * len(patching.stages(inputs)),
    check=patching.check_sequential,
    same_init=False,  # Each starts from the previous stage.
  ),
  "paint_parallel": Method(
    run=patching.paint_parallel,
    count=averages.budget,
    check=patching.check_parallel,
    least=2,
  ),
  "diwa": _DIWA,
  # Runs start from different auxiliary tasks.
  "ratatouille": dataclasses.replace(_DIWA, same_init=False),
  "depth": Method(
    run=averages.depth, count=averages.budget, check=averages.check_depth
  ),
  "window": _WINDOW,
  "schedule": _WINDOW,
  "signed": dataclasses.replace(_LEARNED, run=learned.signed),
  "entropy": _LEARNED,
  "ties": _RULE,
  "dare": _RULE,
  "rule": _RULE,
}


def check(inputs: SearchInputs) -> None:
  """Checks that the inputs suit the method.

  Raises:
    ValueError: if `config.initial` or an ingredient is missing, a command
      cannot evaluate for the method, or the check of the method fails.
  """
  name = inputs.config.method
  method = METHODS[name]
  if method.learned and inputs.is_judged:
    raise ValueError(
      f"The search {name!r} needs gradients, which evaluate_command does not "
      "provide. Choose another method, such as depth or ties, or give tasks "
      "with datasets."
    )
  if method.needs_initial and inputs.initial is None:
    raise ValueError(
      f"The search {name!r} needs the model that all ingredients were "
      "fine-tuned from: give --config.initial."
    )
  if len(inputs.ingredients) < method.least:
    present = ", ".join(i.name for i in inputs.ingredients)
    raise ValueError(
      f"The search {name!r} needs at least {method.least} ingredients, but "
      f"--config.ingredients matches only {present}."
    )
  method.check(inputs)
