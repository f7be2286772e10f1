"""Reward models: structure (`module.py`), families (`bert.py`, `deberta.py`, `llama.py`), files (`hf.py`)."""
