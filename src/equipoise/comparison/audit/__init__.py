"""The audit of a data set and model: do the tasks conflict, is one drowned out, and does balancing pay?"""

from equipoise.comparison.audit.probe import Probe, probe
from equipoise.comparison.audit.run import Audit, audit, read_audit

__all__ = ["Audit", "Probe", "audit", "probe", "read_audit"]
