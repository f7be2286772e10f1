"""Checkpoints: one self-contained Orbax folder per model."""

import base64
import functools
import gc
import hashlib
import logging
import pathlib
import re
import sys
import tempfile
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util

from scpo_jax import descriptions, distributed, storage, untrusted
from scpo_jax.data.fields import one_line
from scpo_jax.errors import InputError
from scpo_jax.models import hf, lora, module, peft, weights
from scpo_jax.models.module import RewardModel

SCHEMA_VERSION = 1
SAMPLED = 1024  # values of an array that a fingerprint looks at


class Loaded(NamedTuple):
    """A reward model, ready to score."""

    model: RewardModel
    params: dict  # nested, float32; of a model with adapters its base and the adapters
    tokenizer: object
    card: dict  # method, group, max_length, encoding, score_mean, score_std, provenance; with adapters their base


def save(folder: epath.PathLike, loaded: Loaded) -> None:
    """Writes everything needed to load the model alone into `folder`, replacing it; whole or not at all.

    With `card["base"]` (made by `reference`) the score head and the adapters alone are written: the rest is found
    there. The parameters are whole on this process, which alone calls this.
    """
    description = {
        "schema_version": SCHEMA_VERSION,
        "family": loaded.model.family,
        "config": loaded.model.config,
        "card": loaded.card,
        "tokenizer": _pack_tokenizer(loaded.tokenizer),
        "lora": loaded.model.lora and loaded.model.lora._asdict(),
        "language": loaded.model.language,
        "heads": list(loaded.model.heads),
    }
    with _checkpointer() as checkpointer:
        params = jax.device_get(_own(loaded.params, loaded.card))
        items = {"params": ocp.args.StandardSave(params), "model": ocp.args.JsonSave(description)}
        checkpointer.save(storage.absolute(folder), ocp.args.Composite(**items), force=True)


def is_checkpoint(folder: epath.PathLike) -> bool:
    """Whether a folder was written by `save`."""
    folder = epath.Path(folder)
    return (folder / "model").is_dir() and (folder / "params").is_dir()


def load_card(folder: epath.PathLike) -> dict:
    """The card of a checkpoint without its parameters; {} where there is no whole checkpoint."""
    return _describe(folder)["card"] if is_checkpoint(folder) else {}


def is_language_model(folder: epath.PathLike) -> bool:
    """Whether `save` wrote a language model to a folder."""
    return is_checkpoint(folder) and _describe(folder)["language"]


def load(folder: epath.PathLike) -> Loaded:
    """Reads the checkpoint of a reward model that `save` wrote. Raises InputError."""
    if is_language_model(folder):
        raise InputError(f"{folder} is a language model of scpo, not a reward model")
    return _load(folder, language=False)


def load_language_model(folder: epath.PathLike) -> Loaded:
    """Reads the checkpoint of a language model that `save` wrote. Raises InputError."""
    if is_checkpoint(folder) and not is_language_model(folder):
        raise InputError(f"{folder} is a reward model of scpo, not a language model")
    return _load(folder, language=True)


def _load(folder: epath.PathLike, language: bool) -> Loaded:
    description = _describe(folder)
    card, adapters = description["card"], description["lora"]
    model = module.build(description["config"], str(folder), adapters, language, description["heads"])
    params = _read_params(folder, _own(module.abstract_params(model), card))
    check_finite(params, folder)
    if "base" in card:
        params = lora.join(params, _base_of(folder, card["base"], model))
    return Loaded(model, params, _unpack_tokenizer(description["tokenizer"], folder), card)


def _read_params(folder: epath.PathLike, like: dict) -> dict:
    """The parameters in a checkpoint, of these shapes."""
    return _restore(folder, "params", ocp.args.StandardRestore(jax.tree.map(abstract, like)))


def check_finite(params: dict, folder: epath.PathLike) -> None:
    """Refuses parameters that hold NaN or infinity, and names them. Raises InputError."""
    params = jax.tree.map(np.asarray, params) if jax.default_backend() == "cpu" else params  # there without a copy
    bad = [weights.not_finite("/".join(path), leaf) for path, leaf in traverse_util.flatten_dict(params).items()]
    if any(bad):
        raise InputError(f"{folder}: its parameters are not finite: {', '.join(filter(None, bad))}: train it again")


def _own(params: dict, card: dict) -> dict:
    """What a checkpoint with this card holds of parameters, or of a tree like them."""
    return lora.parts(params)[0] if "base" in card else params


def check_one_score(loaded: Loaded, name: str) -> Loaded:
    """The model, if it gives a text one score. Raises InputError for the backbone of several groups' heads."""
    if loaded.model.heads:
        raise InputError(
            f"{name} gives a text the scores of {', '.join(loaded.model.heads)}: name the folder of one beside it"
        )
    return loaded


def load_merged(folder: epath.PathLike) -> Loaded:
    """A checkpoint of ours or adapters in PEFT's form, the adapters merged into the kernels. Raises InputError."""
    loaded = load_peft(folder) if peft.is_adapter(folder) else load(folder)
    model, params = module.merge(loaded.model, loaded.params)
    return loaded._replace(model=model, params=params)


def load_peft(folder: epath.PathLike) -> Loaded:
    """Adapters in PEFT's form with their base and, unless they have their own, its tokenizer; no card."""
    model, params, base = peft.load(folder)
    places = [pathlib.Path(folder).expanduser(), base]
    own = [place for place in places if any((place / name).is_file() for name in hf.VOCABULARY_FILES)]
    return Loaded(model, params, hf.load_tokenizer((own or places)[0]), {})


def reference(name: str, revision: str, params: dict) -> dict:
    """What a checkpoint of adapters, or of a score head alone, says of its base.

    `name` is a hub id, an absolute path of a checkpoint or a Hugging Face folder, or a path from the checkpoint's own
    folder ("../../global"). `params` are those of the model, or of the base.
    """
    return {"name": name, "revision": revision, "fingerprint": fingerprint(params)}


def fingerprint(params: dict) -> str:
    """Names the frozen part of parameters by at most `SAMPLED` evenly spaced values of each array."""
    found = hashlib.sha256()
    for path, leaf in sorted(traverse_util.flatten_dict(params).items()):
        if path[-1] in lora.LEAVES or path[0] == lora.HEAD:
            continue
        values = np.asarray(leaf).reshape(-1)
        found.update(f"{path} {leaf.shape}".encode() + values[:: -(-values.size // SAMPLED)].tobytes())
    return found.hexdigest()[:32]


def base_place(folder: epath.PathLike, base: dict) -> str:
    """Where the base of a checkpoint is: a folder or a hub id."""
    place, parts = epath.Path(folder), base["name"].split("/")
    if parts[0] != "..":
        return base["name"]
    for part in parts:
        place = place.parent if part == ".." else place / part
    return str(place)


def _base_of(folder: epath.PathLike, base: dict, model: RewardModel) -> dict:
    """The parameters of the base of a checkpoint that holds adapters or a score head alone. Raises InputError."""
    held = "adapters alone, and their" if model.lora else "a score head alone, and its"
    place = base_place(storage.absolute(folder), base)
    try:
        return _load_base(place, base["revision"], base["fingerprint"], model.language)
    except InputError as error:
        raise InputError(f"{folder} holds {held} base cannot be read: {error}") from error


@functools.lru_cache(maxsize=1)  # the RMs of several groups share one
def _load_base(place: str, revision: str, wanted: str, language: bool) -> dict:
    """The parameters of a base; its score head, which checkpoints on it have their own of, may be missing."""
    if language:
        own = is_checkpoint(place)
        params = load_language_model(place).params if own else hf.load_language_model(hf.resolve(place, revision))[1]
    elif is_checkpoint(place) or peft.is_adapter(place):
        params = load_merged(place).params
    else:
        source = hf.resolve(place, revision)
        params = hf.load(source, fresh_head_key=jax.random.key(0))[1]
    if fingerprint(params) != wanted:
        raise InputError(f"{place} is another model than the one of that training")
    return params


def _describe(folder: epath.PathLike) -> dict:
    if not is_checkpoint(folder):
        raise InputError(f"{folder} is not a checkpoint of scpo: it needs the folders 'model' and 'params'")
    if not storage.is_remote(folder):  # where there are no links
        untrusted.check_links(folder, pathlib.Path(folder).rglob("*"))
    description = _restore(folder, "model", ocp.args.JsonRestore())
    schema = description.get("schema_version") if isinstance(description, dict) else None
    if schema is not None and schema != SCHEMA_VERSION:
        raise InputError(
            f"{folder} has checkpoint schema {schema}, this version reads {SCHEMA_VERSION}: "
            "train it again, or use the version of scpo that wrote it"
        )
    return descriptions.checked(description if schema else {}, folder)


def _restore(folder: epath.PathLike, item: str, args):
    """One item of a checkpoint."""
    expect_failures()
    try:
        with _checkpointer() as checkpointer:
            return checkpointer.restore(storage.absolute(folder), ocp.args.Composite(**{item: args}))[item]
    except Exception as error:  # a damaged file surfaces as almost any type
        reason = one_line(error)
    forget_failures()
    raise InputError(f"{folder} is a damaged checkpoint ({reason:.200}): train it again")


def expect_failures() -> None:
    """Before a restore: what it still reads if it fails would print tracebacks at any later time, from any thread."""
    hook = sys.unraisablehook
    if not (isinstance(hook, functools.partial) and hook.func is _unless_given_up):
        sys.unraisablehook = functools.partial(_unless_given_up, hook)


def _unless_given_up(hook, unraisable) -> None:
    """Passes on what could not be raised, unless a read of Orbax did not raise it, whose restore has failed."""
    code = getattr(unraisable.object, "cr_code", None)
    if str(unraisable.exc_value) != "Event loop is closed" and not (code and "orbax" in code.co_filename):
        hook(unraisable)


def forget_failures() -> None:
    """After a restore that failed: drops what is left of it."""
    log = logging.getLogger("asyncio")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    gc.collect()
    log.setLevel(level)


def _checkpointer() -> ocp.Checkpointer:
    """Writes and reads whole arrays for this process alone: it waits for no other one."""
    me = distributed.index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process {me}"
    )
    options = ocp.CompositeOptions(multiprocessing_options=alone)
    handler = ocp.CompositeCheckpointHandler(composite_options=options)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def abstract(leaf):
    """What an array is and where it is restored to: where it lives, or else to a device of this process."""
    one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    sharding = leaf.sharding if isinstance(leaf, jax.Array) else one
    return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=sharding)


def _pack_tokenizer(tokenizer) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        hf.save_tokenizer(tokenizer, folder)
        files = sorted(path for path in pathlib.Path(folder).rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): base64.b64encode(path.read_bytes()).decode() for path in files}


def _unpack_tokenizer(files: dict[str, str], source: epath.PathLike):
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            if not re.fullmatch(weights.FILE_NAME, name):
                raise InputError(f"{source}: the checkpoint's tokenizer holds the file name {name[:80]!r}: refused")
            try:
                (pathlib.Path(folder) / name).write_bytes(base64.b64decode(content))
            except (TypeError, ValueError) as error:
                raise InputError(f"{source}: its tokenizer's {name} is damaged ({one_line(error)})") from error
        try:
            return hf.load_tokenizer(folder)
        except InputError as error:
            raise InputError(f"{source}: {str(error).replace(folder, 'its files')}") from error
