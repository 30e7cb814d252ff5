"""Compensations: what stays makes up for what goes. The registry ``compensations`` knows their names."""

from nas_prune.methods.compensations.compensation import Compensation, compensations

__all__ = ["Compensation", "compensations"]
