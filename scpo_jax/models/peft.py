"""Adapters in PEFT's form: `adapter_config.json` and `adapter_model.safetensors` (github.com/huggingface/peft).

The score head is always among the tensors (`modules_to_save`). Loading is total, as in `hf`.
"""

import json
import pathlib

import safetensors.numpy
from flax import traverse_util

from scpo_jax import untrusted
from scpo_jax.errors import InputError
from scpo_jax.models import hf, lora, module, weights
from scpo_jax.models.lora import ALL_LINEAR, Lora
from scpo_jax.models.module import RewardModel

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
# What changes the meaning of the tensors and is not computed here: key -> the values that leave it unchanged.
PLAIN = {
    "use_rslora": (False,), "use_dora": (False,), "use_qalora": (False,), "fan_in_fan_out": (False,),
    "lora_bias": (False,), "bias": ("none",), "rank_pattern": ({},), "alpha_pattern": ({},), "layers_to_transform": (),
    "layer_replication": (), "exclude_modules": (), "trainable_token_indices": (), "target_parameters": ([],),
    "alora_invocation_tokens": (), "arrow_config": (), "corda_config": (),
}  # fmt: skip


def is_adapter(folder) -> bool:
    """Whether a folder holds adapters without their base."""
    return (pathlib.Path(folder).expanduser() / CONFIG_FILE).is_file()


def save(model: RewardModel, params: dict, base: str, folder) -> None:
    """Writes the adapters and the score head of a model; `base` is what PEFT loads the base from."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = traverse_util.flatten_dict(lora.split(params)[0])
    tensors = {
        name: array
        for path, source in sources_of(model).items()
        for name, array in hf.disassemble(source, arrays[path]).items()
    }
    safetensors.numpy.save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    (folder / CONFIG_FILE).write_text(json.dumps(config_of(model, base), indent=2) + "\n", encoding="utf-8")


def config_of(model: RewardModel, base: str) -> dict:
    """What `adapter_config.json` says of a model with adapters."""
    names = module.FAMILIES[model.family].HF_NAMES
    targets = model.lora.targets
    if ALL_LINEAR in targets:  # PEFT has it for models of transformers alone
        adapted = {"/".join(path[:-1]) for path in traverse_util.flatten_dict(model.shapes) if path[-1] == "lora_a"}
        targets = sorted({names[path].rsplit("{}.", 1)[-1] for path in adapted})
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": base,
        "r": model.lora.rank,
        "lora_alpha": model.lora.alpha,
        "lora_dropout": model.lora.dropout,
        "target_modules": list(targets),
        "modules_to_save": [names[lora.HEAD]],
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def load(folder) -> tuple[RewardModel, dict, pathlib.Path]:
    """(model with adapters, its parameters, folder of its base) of a folder that PEFT or `save` wrote.

    The base has to be a local folder. Its score head may be missing: the adapters bring their own. Raises InputError.
    """
    folder = pathlib.Path(folder).expanduser()
    untrusted.check_links(folder, [folder / CONFIG_FILE, folder / WEIGHTS_FILE])
    config = weights.read_json(folder / CONFIG_FILE)
    adapters, base = read_config(config, folder), base_folder(config, folder)
    plain, tensors = hf.read(base)
    if plain.reads == "first":  # training with it is not supported, see `module.build`
        adapters = adapters._replace(dropout=0.0)
    model = module.build(plain.config, str(folder), adapters)
    head, sources = head_of(model), sources_of(model)
    own = {hf_name(name): array for name, array in weights.read_safetensors(folder / WEIGHTS_FILE).items()}
    hf.check_tensors(sources, own, (), f"{PREFIX}{head}.weight", folder)
    tensors |= {name.removeprefix(PREFIX): array for name, array in own.items() if name.startswith(f"{PREFIX}{head}.")}
    arrays = {path: hf.assemble(source, own) for path, source in sources.items()}
    return model, lora.join(traverse_util.unflatten_dict(arrays), hf.parameters(plain, tensors, base)), base


def head_of(model: RewardModel) -> str:
    """The score head's name in the Hugging Face form."""
    return module.FAMILIES[model.family].HF_NAMES[lora.HEAD]


def hf_name(name: str) -> str:
    """A tensor's name without what some versions of PEFT put into it."""
    return name.replace(".modules_to_save.default.", ".").replace(".modules_to_save.", ".")


def sources_of(model: RewardModel) -> dict[tuple[str, ...], hf.Source]:
    """Path of a trained parameter -> its tensors in `adapter_model.safetensors`."""
    trained = traverse_util.flatten_dict(lora.split(module.abstract_params(model))[0])
    return {
        path: source._replace(names=tuple(f"{PREFIX}{name}" for name in source.names))
        for path, source in hf.parameter_sources(model).items()
        if path in trained
    }


def read_config(config: dict, folder) -> Lora:
    """The adapters that an `adapter_config.json` describes. Raises InputError for what is not computed here."""
    if config.get("peft_type") != "LORA":
        raise InputError(f"{folder}: peft_type {config.get('peft_type')!r} in {CONFIG_FILE}; only LORA")
    for key, plain in PLAIN.items():
        if config.get(key) is not None and config[key] not in plain:
            raise InputError(f"{folder}: {key} {config[key]!r} in {CONFIG_FILE} is not supported")
    rank, alpha, rate, targets = (config.get(k) for k in ("r", "lora_alpha", "lora_dropout", "target_modules"))
    targets = [targets] if targets == ALL_LINEAR else targets
    if not isinstance(targets, list):
        raise InputError(f"{folder}: {CONFIG_FILE} needs r, lora_alpha and the names target_modules")
    adapters, rate = Lora(rank, alpha, tuple(targets), rate or 0.0), rate or 0.0
    if lora.problem(adapters):
        raise InputError(f"{folder}: {lora.problem(adapters)} in {CONFIG_FILE}")
    return adapters._replace(alpha=float(alpha), targets=tuple(sorted(targets)), dropout=float(rate))


def base_folder(config: dict, folder: pathlib.Path) -> pathlib.Path:
    """The local folder of the base that an adapter names. Raises InputError."""
    named = config.get("base_model_name_or_path")
    base = pathlib.Path(str(named)).expanduser()
    if not isinstance(named, str) or not named or not (base / "config.json").is_file():
        raise InputError(
            f"{folder}: its base model {named} is not a folder here: put the folder's path into "
            f"base_model_name_or_path of {CONFIG_FILE}"
        )
    return base
