"""The configuration of a run: a file, changed from the command line, checked before anything is done."""

import ast
import difflib
import json
import math
import pathlib
import re
from collections.abc import Iterator

from absl import flags
from ml_collections import ConfigDict

from scpo_jax import controls, guards, optimizer, scpo
from scpo_jax.configs import base
from scpo_jax.data import encoding, fields
from scpo_jax.data.fields import listing, one_line
from scpo_jax.errors import InputError

CHOICES = {
    "data.source": ("prism", "jsonl", "global_opinions", "simulated"),
    "model.dtype": ("float32", "bfloat16"),
    "model.encoding": encoding.ENCODINGS,
    "model.scratch.family": ("bert", "llama"),
    "train.schedule": optimizer.SCHEDULES,
    "train.batch_order": ("shuffled", "reference"),
    "policy.dtype": ("float32", "bfloat16"),
    "policy.algorithm": ("ppo", "rloo", "grpo"),
    "policy.kl_estimator": ("k1", "k3"),
    "policy.value": ("own", "head"),
    "policy.sft.responses": ("chosen", "rejected", "both"),
}
SHARES = (
    "data.max_dropped", "data.test_size", "train.validation_size", "scpo.tau", "scpo.tau_test", "scpo.trim",
    "policy.gamma", "policy.gae_lambda", "data.simulated.extreme_share",
)  # fmt: skip
SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
AT_LEAST = {
    0: (
        "data.min_users", "train.learning_rate", "global_rm.learning_rate", "train.warmup_steps", "train.eval_every",
        "train.weight_decay", "train.max_grad_norm", "train.center_rewards_coefficient", "checkpoint.every_steps",
        "train.lora.rank", "policy.sft.learning_rate", "policy.sft.warmup_steps", "policy.sft.max_steps",
        "policy.steps", "policy.learning_rate", "policy.kl_coef", "policy.kl_target", "policy.missing_eos_penalty",
        "policy.cliprange", "policy.cliprange_value", "policy.vf_coef", "policy.value_warmup_steps", "policy.lora.rank",
        "data.min_share_gap",
    ),
    1: (
        *(f"{section}.scratch.{size}" for section in ("model", "policy") for size in SIZES), "data.max_pairs_per_cell",
        "policy.scratch.num_key_value_heads",
        "train.batch_size", "train.max_steps", "global_rm.batch_size", "global_rm.max_steps", "checkpoint.keep",
        "data.simulated.users_per_group", "distributed.heartbeat_seconds", "train.max_skipped", "policy.max_prompt",
        "policy.new_tokens", "policy.sft.batch_size", "policy.batch_size", "policy.num_mini_batches",
        "policy.num_ppo_epochs", "policy.kl_horizon",
    ),
    2: ("policy.num_generations", "policy.reference_samples"),
    8: ("model.max_length",),
}  # fmt: skip
BELOW = 2**31  # of whole numbers other than seeds, which may have 63 bits; devices count in 32
PER_GROUP = ("tau", "beta", "learning_rate", "max_steps")


class TupleParser(flags.ArgumentParser):
    """A tuple on the command line: a Python literal in brackets, else strings separated by commas outside quotes."""

    syntactic_help = "a Python tuple, or strings separated by commas"

    def parse(self, argument):
        if not argument.lstrip().startswith(("(", "[")):
            return tuple(part.strip() for part in re.findall(r'(?:"[^"]*"|[^,])+', argument) if part.strip())
        try:
            return tuple(ast.literal_eval(argument.strip()))
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
            raise ValueError(f"not a Python tuple ({one_line(error)})") from error


def define_flags(values: flags.FlagValues) -> None:
    """Defines a flag --config.KEY for every key of the configuration."""
    define = {
        bool: flags.DEFINE_bool,
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        str: flags.DEFINE_string,
        tuple: lambda *arguments, **own: flags.DEFINE(TupleParser(), *arguments, **own),
    }
    for key, owner, name in leaves(base.get_config()):
        define[owner.get_type(name)](f"config.{key}", None, "see configs/base.py", flag_values=values)


def load(path: str, values: flags.FlagValues) -> ConfigDict:
    """The configuration of a file, with the values that flags give; raises InputError."""
    config = read(path)
    check_keys(config, path)
    for key, owner, name in leaves(config):
        if values[f"config.{key}"].present:
            owner[name] = values[f"config.{key}"].value
    for key, owner, name in leaves(config):
        check_plain(owner[name], f"config.{key}")
    return config


def read(path: str) -> ConfigDict:
    """What `get_config()` of a Python file returns; where there is no `configs/NAME.py`, the package's own is meant."""
    packaged = pathlib.Path(base.__file__).with_name(pathlib.Path(path).name)
    file = packaged if path == f"configs/{packaged.name}" and not pathlib.Path(path).exists() else pathlib.Path(path)
    if not file.is_file():
        raise InputError(f"--config={path}: no such file")
    namespace = {"__name__": "scpo_config", "__file__": str(file)}
    try:
        exec(compile(file.read_bytes(), path, "exec"), namespace)
        config = namespace["get_config"]() if "get_config" in namespace else None
    except (Exception, SystemExit) as error:  # the file is a program of the user's own: anything may be wrong with it
        raise InputError(f"--config={path}: {type(error).__name__}: {one_line(error)}") from error
    if not isinstance(config, ConfigDict):
        raise InputError(f"--config={path}: it has no get_config() that returns a ConfigDict; see configs/base.py")
    return config


def check_keys(config: ConfigDict, path: str) -> None:
    """Refuses a configuration with other keys than `configs/base.py`."""
    known, own = ({key for key, _, _ in leaves(c)} for c in (base.get_config(), config))
    if own - known:
        hints = [hint for key in sorted(own - known) for hint in difflib.get_close_matches(key, known)]
        meant = f"; did you mean {listing(hints)}?" if hints else "; configs/base.py lists all keys"
        raise InputError(f"--config={path}: unknown config key {listing(sorted(own - known))}{meant}")
    if known - own:
        raise InputError(
            f"--config={path}: missing config key {listing(sorted(known - own))}; start from base.get_config()"
        )
    for (key, owner, name), (_, mine, _) in zip(by_key(base.get_config()), by_key(config), strict=True):
        kind = owner.get_type(name)
        kinds = (kind, type(owner[name]), int) if kind is float else (kind, type(owner[name]))
        if type(mine[name]) not in kinds:
            raise InputError(
                f"--config={path}: config.{key} is {str(mine[name])[:60]!r}; it has to be of type {kind.__name__}"
            )


def by_key(config: ConfigDict) -> list[tuple[str, ConfigDict, str]]:
    """The leaves of a configuration, sorted by their keys."""
    return sorted(leaves(config), key=lambda leaf: leaf[0])


def check_plain(value, key: str) -> None:
    """Refuses what JSON has no form for: run.json holds the config."""
    if isinstance(value, tuple | list):
        for part in value:
            check_plain(part, key)
    elif value is not None and not isinstance(value, bool | int | float | str):
        raise InputError(f"{key} holds {str(value)[:60]!r}: it has to be text, numbers, or tuples of these")
    elif isinstance(value, str):
        fields.valid_text(value, key, "the config")
    elif isinstance(value, int) and abs(value) >= (2**63 if "seed" in key else BELOW):
        raise InputError(f"{key} is a whole number of {value.bit_length()} bits: that is too large")


def leaves(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, ConfigDict, str]]:
    """(dotted key, the ConfigDict that holds it, its name there) of every value."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", config, name


def flatten(config: ConfigDict) -> dict:
    """Dotted key -> value, as JSON has it."""
    return {key: json.loads(json.dumps(owner[name])) for key, owner, name in leaves(config)}


def check(config: ConfigDict) -> None:
    """Refuses values that cannot work."""
    values = flatten(config)
    for key, allowed in CHOICES.items():
        if values[key] not in allowed:
            raise InputError(f"config.{key}={values[key]!r}: it is one of {listing(allowed)}")
    for key, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"config.{key}={value}: it has to be a finite number")
    for key in SHARES:
        if not 0 <= values[key] <= 1:
            raise InputError(f"config.{key}={values[key]}: it has to be from 0 to 1")
    for least, keys in AT_LEAST.items():
        for key in keys:
            if values[key] < least:
                raise InputError(f"config.{key}={values[key]}: it has to be at least {least}")
    check_quantiles(config.data.length_quantiles)
    check_scratch(config.model.scratch, "config.model.scratch")
    check_scratch(config.policy.scratch, "config.policy.scratch")
    check_lora(config.train.lora, "config.train.lora")
    check_lora(config.policy.lora, "config.policy.lora")
    if not config.scpo.beta > 0:
        raise InputError(f"config.scpo.beta={config.scpo.beta}: it has to be above 0")
    if config.train.groups_per_program < 1 and config.train.groups_per_program != -1:
        raise InputError(f"config.train.groups_per_program={config.train.groups_per_program}: 1 or more, or -1 for all")
    for method in config.scpo.methods:
        if method not in scpo.METHODS:
            raise InputError(f"config.scpo.methods names {method!r}; methods are {listing(scpo.METHODS)}")
    check_controls(config)
    for name in config.allow:
        if name not in guards.NAMES:
            raise InputError(f"config.allow names {name!r}; guards are {listing(guards.NAMES)}")
    for entry in config.per_group:
        check_per_group(entry)
    check_policy(config.policy)
    if not config.model.name_or_path and not config.global_rm.train:
        raise InputError(
            "config.model.name_or_path is empty and config.global_rm.train is False: name a reward model or train one"
        )


def check_quantiles(quantiles: tuple) -> None:
    """Refuses lengths of texts that are no quantiles."""
    whole = all(isinstance(length, int) and not isinstance(length, bool) for length in quantiles)
    if len(quantiles) < 2 or not whole or list(quantiles) != sorted(quantiles) or quantiles[0] < 1:
        raise InputError(
            f"config.data.length_quantiles={str(tuple(quantiles))[:80]}: it has to be two or more rising numbers of "
            "tokens, like (8,105,310)"
        )


def check_scratch(scratch: ConfigDict, key: str) -> None:
    """Refuses sizes of a model that do not go together."""
    if scratch.hidden_size % scratch.num_attention_heads:
        raise InputError(f"{key}.num_attention_heads={scratch.num_attention_heads}: it has to divide hidden_size")
    if "num_key_value_heads" in scratch and scratch.num_attention_heads % scratch.num_key_value_heads:
        raise InputError(
            f"{key}.num_key_value_heads={scratch.num_key_value_heads}: it has to divide num_attention_heads"
        )
    if "dropout" in scratch and not 0 <= scratch.dropout < 1:
        raise InputError(f"{key}.dropout={scratch.dropout}: it has to be at least 0 and below 1")


def check_lora(lora: ConfigDict, key: str) -> None:
    """Refuses adapters that cannot be; whether the model has their targets is known when it is read."""
    if not lora.alpha > 0:
        raise InputError(f"{key}.alpha={lora.alpha}: it has to be above 0")
    if "dropout" in lora and not 0 <= lora.dropout < 1:
        raise InputError(f"{key}.dropout={lora.dropout}: it has to be at least 0 and below 1")
    if not all(isinstance(target, str) for target in lora.targets):
        raise InputError(f"{key}.targets={tuple(lora.targets)}: they are names, like q_proj,v_proj")


def check_policy(policy: ConfigDict) -> None:
    """Refuses a policy that cannot be trained."""
    if not policy.steps:
        return
    if not policy.name_or_path and not policy.sft.max_steps:
        raise InputError(
            "config.policy.sft.max_steps=0 and no config.policy.name_or_path: there is nothing to start from"
        )
    if policy.kl_budget is not None and not policy.kl_budget > 0:
        raise InputError(f"config.policy.kl_budget={policy.kl_budget}: it has to be above 0")
    sizes = {"num_mini_batches": policy.num_mini_batches}
    sizes |= {} if policy.algorithm == "ppo" else {"num_generations": policy.num_generations}
    for name, size in sizes.items():
        if policy.batch_size % size:
            raise InputError(
                f"config.policy.batch_size={policy.batch_size}: not a multiple of config.policy.{name}={size}"
            )


def check_controls(config: ConfigDict) -> None:
    """Refuses controls that do not exist or that stand beside nothing."""
    for control in config.controls:
        if control not in controls.CONTROLS:
            raise InputError(f"config.controls names {control!r}; controls are {listing(controls.CONTROLS)}")
    if config.controls and not config.scpo.methods:
        raise InputError("config.controls stand beside the RMs of a method: name one in config.scpo.methods")


def check_per_group(entry) -> None:
    """Refuses an override that is not (group, key, number)."""
    if not (isinstance(entry, tuple) and len(entry) == 3 and isinstance(entry[0], str) and entry[1] in PER_GROUP):
        raise InputError(
            f"config.per_group holds {entry!r}: an entry is (group, key, value), key one of {listing(PER_GROUP)}"
        )
    kinds = int if entry[1] == "max_steps" else (int, float)
    if not isinstance(entry[2], kinds) or isinstance(entry[2], bool) or not 0 < entry[2] < math.inf:
        raise InputError(
            f"config.per_group holds {entry!r}: the value has to be a number above 0, that of max_steps a whole one"
        )
    if entry[1] == "tau" and entry[2] > 1:
        raise InputError(f"config.per_group holds {entry!r}: tau is a probability, at most 1")
