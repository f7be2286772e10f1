"""Configs; installed as scpo_jax.configs so that a config anywhere can build on `base`."""
