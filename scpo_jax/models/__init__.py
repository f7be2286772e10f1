"""Reward models: structure (`module.py`), families (`bert.py`, `deberta.py`), Hugging Face folders (`hf.py`)."""
