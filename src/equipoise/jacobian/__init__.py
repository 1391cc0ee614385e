"""Methods on the Jacobian of the losses with respect to the shared parameters; they need M backward passes."""

from equipoise.jacobian.aggregator import TaskAggregator
from equipoise.jacobian.descent import JacobianDescent

__all__ = ["JacobianDescent", "TaskAggregator"]
