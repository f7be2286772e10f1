"""Reward models: Flax NNX modules, and Hugging Face folders in and out."""
