"""Methods on the Jacobian of the losses with respect to the shared parameters: the costly classic."""

from equipoise.jacobian.descent import JacobianDescent

__all__ = ["JacobianDescent"]
