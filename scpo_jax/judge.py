"""Whatever a user can name as a model (`--model=M`), ready to score texts."""

import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from scpo_jax import checkpoint, descriptions, score, steering, storage, untrusted, workdir
from scpo_jax.checkpoint import Loaded
from scpo_jax.data import encoding
from scpo_jax.data.encoding import Prompt
from scpo_jax.errors import InputError
from scpo_jax.models import hf, module, peft
from scpo_jax.score import ScoreFunction

CARD_FILE = "scpo.json"  # beside config.json in a folder that `scpo export` wrote
DEFAULT_MAX_LENGTH = 512


class Scorer(NamedTuple):
    """One reward model with its compiled score function."""

    loaded: Loaded
    function: ScoreFunction

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> np.ndarray:
        """Scores `[N]`, of a model with heads `[N, C]`, float32, all finite; equal texts are scored once."""
        texts = score.distinct_texts((prompts, responses))
        if not texts:
            return np.zeros((0, *self.function.of_text), np.float32)
        card = self.loaded.card
        how = card["max_length"], encoding.form(self.loaded.model.reads, card["encoding"])
        encoded = encoding.encode_for_scoring(self.loaded.tokenizer, *zip(*texts.values(), strict=True), *how)
        score.check_length(encoded, self.loaded.model)
        known = dict(zip(texts, score.score_texts(self.function, self.loaded.params, encoded), strict=True))
        keys = [score.text_key(p, r) for p, r in zip(prompts, responses, strict=True)]
        scores = np.array([known[key] for key in keys], np.float32)
        bad = np.flatnonzero(~np.isfinite(scores).reshape(len(scores), -1).all(1))
        if len(bad):
            raise InputError(f"the model gives no finite score to the response {responses[bad[0]][:60]!r}: check it")
        return scores


class Judge:
    """The reward model that M names; for a workdir its global RM with the RMs of its groups, or one blend of them.

    `load_global` is given with a blend, to have the global RM beside it. `backbone` is the checkpoint of one model with
    a head for each of the groups, if there is one.
    """

    def __init__(
        self,
        default: Loaded,
        method: str,
        groups: dict[str, epath.Path],
        max_length: int | None,
        dtype: str,
        load_global: Callable[[], Loaded] | None = None,
        backbone: epath.Path | None = None,
    ):
        self.method, self.groups, self._load_global, self._backbone = method, groups, load_global, backbone
        self._max_length, self._dtype = max_length, dtype
        self.tolerance = {"float32": 1e-4, "bfloat16": 3e-2}[dtype]  # of the same text's score in another batch
        self.default = self._scorer(default)
        self._current = "", self.default

    def _scorer(self, loaded: Loaded) -> Scorer:
        card = loaded.card | ({"max_length": self._max_length} if self._max_length else {})
        return Scorer(loaded._replace(card=card), score.score_function(loaded.model, self._dtype))

    @property
    def profile(self) -> steering.Profile | None:
        """The profile of a blend."""
        card = self.default.loaded.card
        return card["profile"] if "profile" in card else None

    def global_scorer(self) -> Scorer | None:
        """The global RM that stands beside those that answer; None where one model is all there is."""
        if self._load_global:
            return self._scorer(self._load_global())
        return self.default if self.groups else None

    def scorer(self, group: str) -> Scorer:
        """The RM of a group; the default one for a group without. Keeps one group's RM in memory."""
        if group not in self.groups:
            return self.default
        if self._current[0] != group:
            self._current = group, self._scorer(checkpoint.load(self.groups[group]))
        return self._current[1]

    @functools.cached_property
    def _all(self) -> Scorer | None:
        """The RMs of all groups in one model; None where there is none."""
        return self._scorer(checkpoint.load(self._backbone)) if self._backbone else None

    def score_all(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> np.ndarray:
        """Scores `[N, C]` float32 of texts by the RM of each group, in the order of `groups`.

        It takes one forward pass if these are heads of one backbone, else C.
        """
        if self._all:
            columns = [self._all.loaded.model.heads.index(group) for group in self.groups]
            return self._all(prompts, responses)[:, columns]
        return np.stack([self.scorer(group)(prompts, responses) for group in self.groups], axis=1)

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str], groups: Sequence[str]) -> np.ndarray:
        """Scores `[N]` float32 of texts, each by the RM of its group; heads of one backbone score in one pass."""
        scores, groups = np.zeros(len(prompts), np.float32), [g if g in self.groups else "" for g in groups]

        def scored_by(score: Callable, places: list[int]) -> np.ndarray:
            return score([prompts[i] for i in places], [responses[i] for i in places])

        at_once = [i for i, group in enumerate(groups) if group and self._backbone]
        if at_once:
            columns = {group: column for column, group in enumerate(self.groups)}
            own = [columns[groups[i]] for i in at_once]
            scores[at_once] = scored_by(self.score_all, at_once)[np.arange(len(own)), own]
        for owner in dict.fromkeys("" if self._backbone else group for group in groups):
            places = [i for i, group in enumerate(groups) if group == owner]
            scores[places] = scored_by(self.scorer(owner), places)
        return scores


def open_judge(
    name: str,
    *,
    revision: str = "",
    method: str = "scpo",
    max_length: int | None = None,
    dtype: str = "float32",
    profile: str | None = None,
) -> Judge:
    """Opens M: a workdir, a checkpoint of ours, a Hugging Face folder or a hub id.

    `method` chooses among the methods of a workdir ("global" for its global RM alone) and says nothing elsewhere. With
    a `profile` (see `steering.parse`) a workdir answers with one blend of these RMs, whatever a text's group.
    """
    if max_length is not None and max_length < 8:
        raise InputError(f"--max_length={max_length}: it has to be at least 8")
    storage.check_bucket(name, "--model")
    if profile is not None:
        loaded = load_blend(name, method, profile)
        load_global = functools.partial(_global_model, workdir.Workdir(name))
        return Judge(loaded, method, {}, max_length, dtype, load_global)
    if workdir.is_workdir(name):
        run = _finished_run(name, method)
        groups, backbone = {} if method == "global" else run.groups(method), run.backbone_of(method)
        backbone = backbone if checkpoint.is_checkpoint(backbone) else None
        return Judge(_global_model(run), method, groups, max_length, dtype, backbone=backbone)
    loaded = load_model(name, revision)
    return Judge(loaded, loaded.card["method"], {}, max_length, dtype)


def _finished_run(name: str, method: str) -> workdir.Workdir:
    """A workdir that has the RMs of a method."""
    run, needed = workdir.Workdir(name), "global" if method == "global" else "train"
    if not workdir.finished(run.record(), needed):
        raise InputError(f"{name}: its stage {needed} has not finished; run it first")
    return run


def load_blend(name: str, method: str, profile: str) -> Loaded:
    """The blend of a workdir's RMs that a profile names, merged into one model."""
    if not workdir.is_workdir(name):
        raise InputError(f"--profile blends the RMs of a finished workdir, and {name} is none: name one")
    if method == "global":
        raise InputError("--profile blends the RMs of the groups of a method: --method=global has none")
    run = _finished_run(name, method)
    folders = run.groups(method)
    strengths = steering.parse(profile, folders)
    loaded = _global_model(run)
    params = steering.blend(loaded.params, strengths, lambda group: checkpoint.load_merged(folders[group]).params)
    card = {key: loaded.card[key] for key in ("max_length", "encoding")}
    return loaded._replace(params=params, card=card | {"method": method, "group": "", "profile": strengths})


def load_model(name: str, revision: str = "") -> Loaded:
    """A single reward model: a checkpoint of ours, a Hugging Face folder, one of PEFT's adapters, or a hub id."""
    if checkpoint.is_checkpoint(name):
        loaded = checkpoint.check_one_score(checkpoint.load(name), name)
        return loaded._replace(card=descriptions.check_scores(loaded.card, name))
    if peft.is_adapter(name):
        loaded = checkpoint.load_peft(name)
        return loaded._replace(card=_card_of(pathlib.Path(name).expanduser(), loaded.model.max_positions))
    folder = hf.resolve(name, revision)
    model, params = hf.load(folder)
    return Loaded(model, params, hf.load_tokenizer(folder), _card_of(folder, model.max_positions))


def _card_of(folder: pathlib.Path, max_positions: int | None) -> dict:
    """The card that `export` left in a Hugging Face folder; for anybody else's the defaults."""
    card = {"method": "global", "group": "", "encoding": "pair"}
    card["max_length"] = min(max_positions or DEFAULT_MAX_LENGTH, DEFAULT_MAX_LENGTH)
    path = folder / CARD_FILE
    if path.exists():
        untrusted.check_links(folder, [path])
        card |= untrusted.json_object(path)
        descriptions.check_card(card, path)
    return card


def _global_model(run: workdir.Workdir) -> Loaded:
    """The global RM of a workdir: its own checkpoint, or the model that its config names."""
    if checkpoint.is_checkpoint(run.global_checkpoint):
        return checkpoint.load(run.global_checkpoint)
    config = run.record()["config"]
    if config["global_rm.train"]:
        raise InputError(f"{run.root} has lost checkpoints/global: run its stage global again")
    loaded = load_model(config["model.name_or_path"], config["model.revision"])
    model, params = module.merge(loaded.model, loaded.params)  # as the run did
    card = {"max_length": config["model.max_length"], "encoding": config["model.encoding"]}
    return loaded._replace(model=model, params=params, card=loaded.card | card)
