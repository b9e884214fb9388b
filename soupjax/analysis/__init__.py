# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Analyses of ingredients: diagnosis, geometry, planes, pairs, features."""

from soupjax.analysis.diagnose import Diagnosis as Diagnosis
from soupjax.analysis.diagnose import diagnose as diagnose
from soupjax.analysis.ensembles import Relation as Relation
from soupjax.analysis.geometry import Geometry as Geometry
from soupjax.analysis.geometry import geometry as geometry
from soupjax.analysis.pairs import Pair as Pair
from soupjax.analysis.plane import Plane as Plane
from soupjax.lazy import submodules

__getattr__, __dir__ = submodules(__name__, __path__)
