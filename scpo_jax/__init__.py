"""Steerable cultural preference optimisation of reward models, in JAX."""

__version__ = "0.1.0"
