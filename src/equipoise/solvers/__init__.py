"""Pure functions on M×M matrices, on the tensor's device and without a host sync."""

from equipoise.solvers.bargaining import bargaining_weights
from equipoise.solvers.equal_projections import equal_projection_weights
from equipoise.solvers.min_norm import min_norm_weights
from equipoise.solvers.pareto_efficient import pareto_efficient_weights
from equipoise.solvers.simplex import project_simplex

__all__ = [
    "bargaining_weights",
    "equal_projection_weights",
    "min_norm_weights",
    "pareto_efficient_weights",
    "project_simplex",
]
