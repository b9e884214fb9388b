# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""soupjax: one better model out of many fine-tuned ones.

Names imported here are the public API. The subpackages (`soupjax.models`,
`soupjax.data`, `soupjax.evaluators`, `soupjax.report`, ...) are also public;
they are imported at first use.
"""

from soupjax.analysis.diagnose import Diagnosis as Diagnosis
from soupjax.analysis.diagnose import diagnose as diagnose
from soupjax.checkpoints.adapters.combined import AdapterMix as AdapterMix
from soupjax.checkpoints.adapters.combined import mix_adapters as mix_adapters
from soupjax.checkpoints.adapters.opened import open_adapter as open_adapter
from soupjax.checkpoints.mix import Mixed as Mixed
from soupjax.checkpoints.mix import mix as mix
from soupjax.checkpoints.open import find_ingredients as find_ingredients
from soupjax.checkpoints.open import load_params as load_params
from soupjax.checkpoints.open import open_ingredient as open_ingredient
from soupjax.checkpoints.provenance import provenance as provenance
from soupjax.checkpoints.save import save_params as save_params
from soupjax.checkpoints.task_vector import TaskVector as TaskVector
from soupjax.lazy import submodules
from soupjax.soups import rules as rules
from soupjax.soups import search as search
from soupjax.soups.average import ensemble_logits as ensemble_logits
from soupjax.soups.average import uniform_soup as uniform_soup
from soupjax.soups.average import wise_ft as wise_ft
from soupjax.soups.core.ingredient import Ingredient as Ingredient
from soupjax.soups.core.ingredient import rank_by as rank_by
from soupjax.soups.greedy.decisions import Turns as Turns
from soupjax.soups.greedy.ensemble import GreedyEnsemble as GreedyEnsemble
from soupjax.soups.greedy.ensemble import greedy_ensemble as greedy_ensemble
from soupjax.soups.greedy.permutations import BestOrder as BestOrder
from soupjax.soups.greedy.permutations import best_order as best_order
from soupjax.soups.greedy.permutations import random_orders as random_orders
from soupjax.soups.greedy.soup import Decision as Decision
from soupjax.soups.greedy.soup import GreedySoup as GreedySoup
from soupjax.soups.greedy.soup import greedy_soup as greedy_soup
from soupjax.soups.learned.entropy import entropy_loss as entropy_loss
from soupjax.soups.learned.options import (
  CoefficientOptimizer as CoefficientOptimizer,
)
from soupjax.soups.learned.options import Granularity as Granularity
from soupjax.soups.learned.soup import LearnedSoup as LearnedSoup
from soupjax.soups.learned.soup import learned_soup as learned_soup
from soupjax.soups.rules.estimate import activation_grams as activation_grams
from soupjax.soups.rules.estimate import diagonal_fisher as diagonal_fisher
from soupjax.version import __version__ as __version__

__getattr__, __dir__ = submodules(__name__, __path__)
