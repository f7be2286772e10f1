"""A corpus of malformed inputs, made by code: each a name, a command that reads it, and what its refusal has to name.

A damage changes the bytes of a small whole file, or what stands in its place; tables cross damages with the files and
the commands that read them. `tests/test_malformed.py` runs all.
"""

from tests.faults import checkpoint_cases, config_cases, data_cases, model_cases, table_cases

CASES = [
    *data_cases.of_prism(),
    *data_cases.of_opinions(),
    *table_cases.of_tables(),
    *config_cases.of_configs(),
    *model_cases.of_models(),
    *checkpoint_cases.of_checkpoints(),
    *checkpoint_cases.of_records(),
    *checkpoint_cases.of_profiles(),
    *checkpoint_cases.of_others(),
]
