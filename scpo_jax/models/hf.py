"""Hugging Face folders in and out: where they lie, `config.json`, weights, tokenizer.

Loading is total: every tensor of a file is used or known by name to be of no use, every parameter is filled.
"""

import json
import pathlib
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import traverse_util

from scpo_jax import storage, untrusted
from scpo_jax.errors import InputError
from scpo_jax.models import module, rotary, weights

# Our leaf -> theirs; only matrices differ in layout: theirs are [out, in].
LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}
LEAVES |= {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight"}
HEAD = ("pooler", "score")  # what `load` may draw anew; the rest must come from the file

SENTENCEPIECE_FILES = ("spm.model", "tokenizer.model", "sentencepiece.bpe.model")
VOCABULARY_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", *SENTENCEPIECE_FILES)
TORCH_FILES = ("pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json")
SMALL_FILES = (
    *("config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt"),
    "chat_template.jinja",
    *VOCABULARY_FILES,
)
HUB_FILES = (*SMALL_FILES, "model.safetensors", "model-*.safetensors", "model.safetensors.index.json")


def resolve(name_or_path: str, revision: str = "", weights_too: bool = True) -> pathlib.Path:
    """The folder of a model: a local folder as it is, else the snapshot of a hub id (fetched, or from the cache).

    `revision` pins a branch, tag or commit of a hub id. Of a repository only what `load` and `load_tokenizer` read is
    fetched, `pytorch_model.bin` only where there is no safetensors file; without `weights_too` no weights at all.
    Raises InputError.
    """
    storage.check_local(name_or_path, "model")
    folder = pathlib.Path(name_or_path).expanduser()
    if name_or_path and folder.is_dir():
        return folder
    import huggingface_hub  # slow to import, and not needed for a local folder

    try:
        files = HUB_FILES if weights_too else SMALL_FILES
        found = huggingface_hub.snapshot_download(name_or_path, revision=revision or None, allow_patterns=files)
        if weights_too and not any(pathlib.Path(found).glob("*.safetensors")):
            patterns = [*HUB_FILES, *TORCH_FILES]
            found = huggingface_hub.snapshot_download(name_or_path, revision=revision or None, allow_patterns=patterns)
    except Exception as error:  # the client's own errors, those of its HTTP library, OSError, ValueError
        at = f" at revision {revision}" if revision else ""
        reason = untrusted.first_line(error)
        raise InputError(f"model {name_or_path}{at}: no such folder, nor from the hub: {reason}") from error
    return pathlib.Path(found)


def load(folder, fresh_head_key=None):
    """`(RewardModel, params)` of a folder with `config.json` and weights; float32 whatever the type in the file.

    A folder without score head is refused unless `fresh_head_key` is given: then a missing head, and a missing pooler,
    are drawn anew. Raises InputError.
    """
    model, tensors = read(folder)
    return model, parameters(model, tensors, folder, fresh_head_key)


def load_language_model(folder):
    """`(RewardModel, params)` of a folder with a causal language model; its score head is zero. Raises InputError."""
    model, tensors = read(folder, language=True)
    head = f"{module.FAMILIES[model.family].HF_NAMES['score']}.weight"
    tensors = {name: tensor for name, tensor in tensors.items() if name != head}
    return model, parameters(model, tensors | {head: np.zeros((1, model.width), np.float32)}, folder)


def read(folder, language: bool = False) -> tuple[module.RewardModel, dict]:
    """The model of a folder's `config.json`, and all tensors of its weights under the names of the classifier form."""
    folder = pathlib.Path(folder)
    check_links(folder)
    model = module.build(weights.read_json(folder / "config.json"), str(folder), language=language)
    return model, rename(weights.read_weights(folder), module.FAMILIES[model.family].HF_RENAMES, folder)


def parameters(model: module.RewardModel, tensors: dict, folder, fresh_head_key=None) -> dict:
    """The parameters of a checkpoint's tensors; see `load`."""
    family, sources = module.FAMILIES[model.family], parameter_sources(model)
    head = f"{family.HF_NAMES['score']}.weight"
    if not model.language:
        check_one_label(model.config, head, tensors, folder)
    if fresh_head_key is not None:
        tensors = tensors | fresh_head(model, sources, tensors, fresh_head_key)
    check_tensors(sources, tensors, family.HF_IGNORED, head, folder)
    arrays = {path: assemble(source, tensors) for path, source in sources.items()}
    return traverse_util.unflatten_dict(arrays)


def save(model: module.RewardModel, params: dict, folder) -> None:
    """Write `config.json` and `model.safetensors` for transformers: a classifier of one label, or of one a head.

    A language model is written as one, without its score head. Keys of the original config that mean nothing to us are
    kept. Arrays are fetched to the host.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays, tensors = traverse_util.flatten_dict(params), {}
    for path, source in parameter_sources(model).items():
        if not (model.language and path[0] == "score"):
            tensors |= disassemble(source, arrays[path])
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(saved_config(model), indent=2) + "\n", encoding="utf-8")


def saved_config(model: module.RewardModel) -> dict:
    """The config to write: the model's own, in float32, as a classifier of its heads, or as a language model."""
    names = model.heads or ("LABEL_0",)
    labels = {
        "num_labels": len(names),
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }
    left_out = ("dtype", "torch_dtype", *labels)
    config = {name: value for name, value in model.config.items() if name not in left_out}
    architecture = module.FAMILIES[model.family].HF_ARCHITECTURE
    if model.language:
        architecture = architecture.replace("SequenceClassification", "CausalLM")
    own = {"architectures": [architecture], "torch_dtype": "float32"}
    return rotary.in_both_forms(config) | own | ({} if model.language else labels)


def check_links(folder: pathlib.Path) -> None:
    """Refuses files of a model that are links to places outside of its folder. Raises InputError."""
    names = (*HUB_FILES, *TORCH_FILES, "additional_chat_templates/*")
    untrusted.check_links(folder, (path for name in names for path in folder.glob(name)))


def load_tokenizer(folder):
    """The tokenizer of a folder, also where it exists only as a sentencepiece model. Raises InputError.

    Of several chat templates it keeps the one named "default".
    """
    with storage.reading(folder) as place:
        return _load_tokenizer(place)


def _load_tokenizer(folder: pathlib.Path):
    check_links(folder)
    # transformers makes an empty tokenizer of a folder without vocabulary and says nothing
    if not any((folder / name).is_file() for name in VOCABULARY_FILES):
        raise InputError(f"{folder}: no tokenizer there; copy its files there ({', '.join(VOCABULARY_FILES)})")
    import transformers  # slow to import, and not needed for scores of token ids

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a broken file surfaces as almost any type
        raise InputError(f"{folder}: the tokenizer cannot be loaded: {untrusted.first_line(error)}") from error
    if isinstance(tokenizer.chat_template, dict):
        tokenizer.chat_template = tokenizer.chat_template.get("default")
    return tokenizer


def save_tokenizer(tokenizer, folder) -> None:
    """Write the tokenizer beside the weights, in the form `load_tokenizer` and transformers read."""
    with storage.writing(folder) as place:
        tokenizer.save_pretrained(place)


class Source(NamedTuple):
    """Where a parameter of ours stands in a checkpoint."""

    names: tuple[str, ...]  # one tensor, or one a layer
    shape: tuple[int, ...]  # of each tensor, as in the file
    transposed: bool
    stacked: bool  # the parameter has a leading [L]


def parameter_sources(model: module.RewardModel) -> dict[tuple[str, ...], Source]:
    """Path of a parameter -> its tensors in the file."""
    names = module.FAMILIES[model.family].HF_NAMES
    sources = {}
    for path, array in traverse_util.flatten_dict(module.abstract_params(model)).items():
        template = names["/".join(path[:-1])]
        transposed = path[-1] in ("kernel", "lora_a", "lora_b")
        stacked = "{}" in template
        shape = array.shape[1:] if stacked else array.shape
        layers = range(array.shape[0] if stacked else 1)
        tensors = tuple(f"{template.format(layer)}.{LEAVES[path[-1]]}" for layer in layers)
        sources[path] = Source(tensors, shape[::-1] if transposed else shape, transposed, stacked)
    return sources


def assemble(source: Source, tensors: dict) -> np.ndarray:
    """The float32 parameter of its tensors, on the host: a device may be too small for the whole model."""
    arrays = [np.asarray(tensors[name], np.float32) for name in source.names]
    arrays = [array.T if source.transposed else array for array in arrays]
    return np.stack(arrays) if source.stacked else np.ascontiguousarray(arrays[0])


def disassemble(source: Source, array) -> dict[str, np.ndarray]:
    """The float32 tensors of a parameter, by name."""
    array = np.asarray(array, np.float32)
    layers = array if source.stacked else array[None]
    # safetensors writes the buffer, not the view: a transposed view would come out scrambled
    turned = (np.ascontiguousarray(layer.T if source.transposed else layer) for layer in layers)
    return dict(zip(source.names, turned, strict=True))


def fresh_head(model: module.RewardModel, sources: dict, tensors: dict, key) -> dict:
    """Tensors for the parts of the head of which the checkpoint has nothing: normal kernels, zero biases."""
    std = module.read_settings(model.config, "config").initializer_range
    drawn = {}
    for part, part_key in zip(HEAD, jax.random.split(key, len(HEAD)), strict=True):
        leaves = {path[-1]: source for path, source in sources.items() if path[0] == part}
        if any(source.names[0] in tensors for source in leaves.values()):
            continue
        drawn |= {source.names[0]: np.zeros(source.shape, np.float32) for source in leaves.values()}
        if "kernel" in leaves:
            kernel = leaves["kernel"]
            drawn[kernel.names[0]] = std * jax.random.normal(part_key, kernel.shape, jnp.float32)
    return drawn


def check_one_label(config: dict, head: str, tensors: dict, folder) -> None:
    """Refuse a classifier of several labels: which of them would be the score? (A head yet to be drawn is free.)"""
    if head not in tensors:
        return
    named = config["id2label"] if config.get("id2label") else ["LABEL_0"]
    labels = config["num_labels"] if config.get("num_labels") is not None else named
    labels = len(labels) if isinstance(labels, list | dict) else labels
    shape = list(tensors[head].shape)
    if labels != 1 or shape[:1] != [1]:
        raise InputError(f"{folder}: a reward model has one label, not num_labels {labels} and {head} {shape}")


def check_tensors(sources: dict, tensors: dict, ignored: tuple[str, ...], head: str, folder) -> None:
    """One InputError that names every tensor that is missing, not expected, of another shape or type, or not finite."""
    shapes = {name: source.shape for source in sources.values() for name in source.names}
    missing = sorted(shapes.keys() - tensors.keys())
    unknown = [name for name in sorted(tensors.keys() - shapes.keys()) if not re.fullmatch("|".join(ignored), name)]
    present = {name: (tensors[name], shape) for name, shape in sorted(shapes.items()) if name in tensors}
    wrong = [f"{n} {list(t.shape)} (expected {list(shape)})" for n, (t, shape) in present.items() if t.shape != shape]
    kinds = [f"{n} {t.dtype}" for n, (t, _) in present.items() if not jnp.issubdtype(t.dtype, jnp.floating)]
    problems = {"missing": missing, "not expected": unknown, "of wrong shape": wrong, "no floats": kinds}
    if not (missing or unknown or wrong or kinds):
        problems = {"not finite": [found for n, (t, _) in present.items() if (found := weights.not_finite(n, t))]}
    listed = "; ".join(f"{what}: {', '.join(names)}" for what, names in problems.items() if names)
    if not listed:
        return
    if head in missing:
        listed += "; it has no score head, so it is no reward model (a fresh head must be asked for)"
    raise InputError(f"{folder}: the weights do not fit config.json: {listed}")


def rename(tensors: dict, renames: tuple, folder) -> dict:
    """Tensors under the names of the classifier form, whichever form the checkpoint has."""
    renamed = {}
    for name, tensor in tensors.items():
        new = name
        for pattern, replacement in renames:
            new = re.sub(pattern, replacement, new)
        if new in renamed:
            raise InputError(f"{folder}: the weights hold {new} twice, once as {name}")
        renamed[new] = tensor
    return renamed
