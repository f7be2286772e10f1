"""`scpo export`: a reward model as a folder that transformers or PEFT loads, with its cards; if asked, on the hub."""

import json
import pathlib

from scpo_jax import checkpoint, hub, logs, model_card, score, storage, workdir
from scpo_jax.checkpoint import Loaded
from scpo_jax.data import preferences
from scpo_jax.errors import InputError
from scpo_jax.judge import CARD_FILE, Scorer, load_blend
from scpo_jax.models import hf, module, peft


def export(
    name: str,
    output: str,
    *,
    method: str = "scpo",
    profile: str | None = None,
    form: str = "merged",
    repository: str | None = None,
) -> None:
    """Writes a checkpoint, or with a profile a blend of a workdir's RMs, as a Hugging Face folder.

    Its card is in `scpo.json`, and for people in `README.md`. With `form` "peft" adapters alone are written, as PEFT
    has them. `repository` (USER/NAME) is where on the hub the folder is uploaded to. Raises InputError.
    """
    storage.check_local(output, "--output")
    folder = pathlib.Path(output)
    _check(name, folder, output, profile, form)
    if repository is not None:
        hub.check(repository)
    loaded = _adapters(name, repository) if form == "peft" else _whole(name, method, profile)
    cards = {CARD_FILE: json.dumps(loaded.card, indent=1, ensure_ascii=False) + "\n"}
    if not loaded.model.language:  # now, so that nothing is written where what it reads of the workdir is damaged
        cards["README.md"] = model_card.text_of(name, loaded, repository or folder.resolve().name)
    if form == "peft":
        files = f"{peft.CONFIG_FILE}, {peft.WEIGHTS_FILE}"
        peft.save(loaded.model, loaded.params, _base_for_peft(name, loaded.card["base"], folder), folder)
    else:
        files = "config.json, model.safetensors"
        hf.save(loaded.model, loaded.params, folder)
    hf.save_tokenizer(loaded.tokenizer, folder)
    for file, text in cards.items():
        (folder / file).write_text(text, encoding="utf-8")
    logs.say(f"wrote {folder}: {files}, tokenizer, {', '.join(cards)}")
    if repository is not None:
        hub.push(output, repository)


def _check(name: str, folder: pathlib.Path, output: str, profile: str | None, form: str) -> None:
    if profile is None and not checkpoint.is_checkpoint(name):
        raise InputError(
            f"--checkpoint={name} is not a checkpoint of scpo, such as WORKDIR/checkpoints/scpo/chile; a whole workdir "
            "is exported with --profile"
        )
    if profile is not None and form == "peft":
        raise InputError("--format=peft writes the adapters of one checkpoint: leave --profile out")
    workdir.check_place(folder, "--output")
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"--output={output} is not an empty folder: name another one")


def _whole(name: str, method: str, profile: str | None) -> Loaded:
    """The model to write, without adapters of its own: a blend, or that of a checkpoint."""
    if profile is not None:
        return _standardised(load_blend(name, method, profile), name)
    if not checkpoint.is_language_model(name):
        return checkpoint.load_merged(name)
    loaded = checkpoint.load_language_model(name)
    model, params = module.merge(loaded.model, loaded.params)
    return loaded._replace(model=model, params=params)


def _adapters(name: str, repository: str | None) -> Loaded:
    loaded = checkpoint.load(name)
    if loaded.model.lora is None:
        raise InputError(f"--format=peft: {name} has no adapters: train with config.train.lora.rank, or leave it out")
    checkpoint.check_one_score(loaded, name)
    base = checkpoint.base_place(storage.absolute(name), loaded.card["base"])
    if repository is not None and pathlib.Path(base).expanduser().exists():
        raise InputError(
            f"--format=peft: the base of {name} is the local {base}, which the hub does not have: upload the merged "
            "model, --format=merged"
        )
    return loaded


def _base_for_peft(name: str, base: dict, folder: pathlib.Path) -> str:
    """What PEFT loads the base of a checkpoint from; a base that only we can read is written beside the adapters."""
    place = checkpoint.base_place(storage.absolute(name), base)
    if not checkpoint.is_checkpoint(place) and not peft.is_adapter(place):
        return place
    start, folder = checkpoint.load_merged(place), folder.resolve() / "base"
    hf.save(start.model, start.params, folder)
    hf.save_tokenizer(start.tokenizer, folder)
    return str(folder)


def _standardised(loaded: Loaded, name: str) -> Loaded:
    """A blend whose card has the mean and standard deviation of its scores on training texts of its workdir.

    All blends of a workdir score the same texts, of all its groups.
    """
    rows = [row for row in preferences.read_table(workdir.Workdir(name).pairs).to_pylist() if row["split"] == "train"]
    rows = rows[:: max(2 * len(rows) // score.STANDARDISED_ON, 1)]
    texts = [(preferences.prompt_of(row), row[side]) for row in rows for side in ("chosen", "rejected")]
    scores = Scorer(loaded, score.score_function(loaded.model, "float32"))(*zip(*texts, strict=True))
    card = {"score_mean": float(scores.mean()), "score_std": float(scores.std())}
    return loaded._replace(card=loaded.card | card)
