"""Tensors from the files of a checkpoint: safetensors or torch, sharded or not. No file is trusted.

Every function raises InputError, one line that names the file, for what is missing or unreadable.
"""

import pathlib
import re
import warnings

import numpy as np
import safetensors
import safetensors.numpy

from scpo_jax import untrusted
from scpo_jax.errors import InputError
from scpo_jax.untrusted import first_line

FILE_NAME = r"(?!\.\.?$)[\w.+-]{1,200}"  # of a file in the same folder


def read_weights(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Every tensor of the folder's weights, from the first of the known files that exists."""
    for name, read in (("model.safetensors", read_safetensors), ("pytorch_model.bin", read_torch)):
        if (folder / name).is_file():
            return read(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            return {key: tensor for file in shard_files(index) for key, tensor in read(file).items()}
    raise InputError(f"{folder}: no weights there; need model.safetensors (or its shards) or pytorch_model.bin")


def shard_files(index: pathlib.Path) -> list[pathlib.Path]:
    """The files that a sharded checkpoint's index names, all of them beside it."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise InputError(f"{index}: no weight_map")
    names = sorted(set(map(str, weight_map.values())))
    for name in names:
        # a downloaded index must not make us read files elsewhere
        if not re.fullmatch(FILE_NAME, name):
            raise InputError(f"{index}: {name[:80]!r} is not a file name beside the index")
        if not (index.parent / name).is_file():
            raise InputError(f"{index}: the shard {name} is missing; download the model again")
    return [index.parent / name for name in names]


def not_finite(name: str, tensor) -> str:
    """Which values of a tensor are NaN or infinite in float32, in words; "" where all are finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(np.sum(tensor, dtype=np.float32)):  # takes no memory; any NaN or inf shows in it
            return ""
        bad = np.argwhere(~np.isfinite(np.asarray(tensor, np.float32)))
    return f"{name} ({len(bad)} of {tensor.size} values, the first at {bad[0].tolist()})" if len(bad) else ""


def read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Every tensor of a safetensors file."""
    try:
        return safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError, TypeError, KeyError) as error:
        raise InputError(f"{path}: not a readable safetensors file: {first_line(error)}") from error


def read_torch(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Every tensor of a torch file, floats as float32; needs the `torch` extra, and runs no code of the file."""
    try:
        import torch
    except ImportError as error:
        raise InputError(f"{path}: reading it needs torch: pip install 'scpo_jax[torch]'") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what it refuses anyway
            state = torch.load(path, map_location="cpu", weights_only=True)
        return {str(name): (t.float() if t.is_floating_point() else t).numpy() for name, t in state.items()}
    except Exception as error:  # UnpicklingError, RuntimeError, EOFError, AttributeError, ... by what is wrong
        raise InputError(f"{path}: not a readable torch file of tensors: {first_line(error)}") from error


def read_json(path: pathlib.Path) -> dict:
    """The object in a JSON file."""
    if not path.exists():
        raise InputError(f"{path.parent}: no {path.name} there; is it a Hugging Face model folder?")
    return untrusted.json_object(path)
