"""The stages that decide what to train on: prepare, score, select. Each reads files, writes files, can be resumed."""

import tempfile
import time

import jax
import numpy as np
import pyarrow as pa
from etils import epath

from scpo_jax import calibrate, checkpoint, distributed, examples, guards, logs, score, scpo, storage, tokens
from scpo_jax.checkpoint import Loaded
from scpo_jax.data import encoding, global_opinions, jsonl, preferences, prism, simulated, traits, vocabulary
from scpo_jax.errors import InputError
from scpo_jax.models import hf, peft
from scpo_jax.train_reward import derived_seed
from scpo_jax.workdir import Workdir

SECONDS_PER_PART = 60.0  # so much scoring is lost at most when it is interrupted


def read_source(config, world: epath.Path) -> preferences.Source:
    """All pairs of the data source, unsplit; a simulated world is written to the folder `world` first."""
    data = config.data
    grouping = {"group_by": data.group_by, "groups": named_groups(config)}
    if data.source == "jsonl":
        return jsonl.read(data.path, **grouping, columns=data.columns.to_dict())
    if data.source == "global_opinions":
        path = global_opinions.fetch(data.path, data.revision)
        limits = {"min_gap": data.min_share_gap, "max_pairs": data.max_pairs_per_cell}
        return global_opinions.read(path, **grouping, **limits)
    if data.source == "simulated":
        settings = data.simulated
        simulated.write(
            world,
            users_per_group=settings.users_per_group,
            cultural_strength=settings.cultural_strength,
            extreme_share=settings.extreme_share,
            seed=derived_seed(config.seed, "world") if settings.seed < 0 else settings.seed,
        )
        folder = world
    else:
        folder = prism.fetch(data.path, data.revision)
    return prism.read(folder, **grouping)


def named_groups(config) -> dict[str, str]:
    """Every group that the config names -> the first key that does."""
    named = {}
    for key, groups in (
        ("config.data.groups", preferences.group_names(config.data.groups)),
        ("config.global_rm.groups", majority_groups(config)),
        ("config.per_group", [group for group, _, _ in config.per_group]),
    ):
        for group in groups:
            named.setdefault(group, key)
    return named


def wanted_groups(config) -> tuple[str, ...]:
    """Groups whose pairs the run needs, () for all; also those that only train the global RM."""
    steered, majority = preferences.group_names(config.data.groups), majority_groups(config)
    if not steered or (config.global_rm.train and not majority):
        return ()
    return tuple(dict.fromkeys([*steered, *majority]))


def majority_groups(config) -> tuple[str, ...]:
    """Groups named to train the global RM; () when it is not trained here, or on all."""
    return preferences.group_names(config.global_rm.groups) if config.global_rm.train else ()


def steered_groups(config, table: pa.Table) -> list[str]:
    """Groups that get a reward model, in the order of the config or of appearance: not those of the majority."""
    named = preferences.group_names(config.data.groups)
    if named:
        return list(named)
    present = dict.fromkeys(table["group"].to_pylist())
    return [group for group in present if group not in majority_groups(config)]


def prepare(config, workdir: Workdir) -> None:
    """Reads the data source into one table of pairs, splits it by user, and settles on a tokenizer.

    Nothing but `reports/guards.json` is written before everything has been checked.
    """
    with tempfile.TemporaryDirectory() as world:
        source = read_source(config, epath.Path(world))
        table, split, summary = split_source(config, source)
        tokenizer, reads = make_tokenizer(config, table)
        if reads == "last" and not tokenizer.chat_template:
            logs.say("prepare: the tokenizer has no chat template: texts are prompt, empty line, response, end token")
        encoded = tokens.encode_all(config, tokenizer, reads, table.to_pylist())
        cut = sum(text.cut > 0 for text in encoded[tokens.name_of(config, training=True)].values())
        summary |= {"known_groups": sorted(source.groups), "cut_texts": cut}
        scored = encoded[tokens.name_of(config, training=False)]
        found = guards.check(table.to_pylist(), tokenizer, scored, encoding.form(reads, config.model.encoding))
        guards.report(workdir, *found, config.allow)
        for file in epath.Path(world).iterdir():
            storage.write(workdir.simulated / file.name, file.read_bytes())
    for group, counts in summary["groups"].items():
        if not counts["pairs_train"] + counts["pairs_test"]:
            logs.say(f"prepare: {group} has no pair, skipped")
    hf.save_tokenizer(tokenizer, workdir.tokenizer)
    tokens.write(workdir, encoded)
    preferences.write_table(table, workdir.pairs)
    traits.write(traits.categories(source.traits, list(dict.fromkeys(table["user_id"].to_pylist()))), workdir.traits)
    workdir.write_json(workdir.split, split)
    workdir.write_json(workdir.summary, summary)


def split_source(config, source: preferences.Source) -> tuple[pa.Table, dict, dict]:
    """(table of pairs, split, summary) of a data source, as the config splits it and limits it to groups."""
    data = config.data
    seed = derived_seed(config.seed, "split") if data.split_seed < 0 else data.split_seed
    return preferences.build(
        source,
        groups=wanted_groups(config),
        min_users=data.min_users,
        test_size=data.test_size,
        split_seed=seed,
        max_dropped=data.max_dropped,
    )


def check_group_names(config, existing: list[str]) -> None:
    """Refuses names of groups that the data do not have."""
    preferences.check_groups(named_groups(config), existing)


def make_tokenizer(config, table: pa.Table) -> tuple:
    """The model's tokenizer and which token of a text it reads; from scratch one made of the training texts."""
    if config.model.name_or_path:
        start = load_start(config)
        return start.tokenizer, start.model.reads
    rows = table.filter(pa.compute.equal(table["split"], "train")).to_pydict()
    texts = [*rows["prompt"], *rows["chosen"], *rows["rejected"]]
    sizes = config.model.scratch.vocab_size, config.model.max_length
    if config.model.scratch.family == "llama":
        return vocabulary.make_causal_tokenizer(texts, *sizes), "last"
    return vocabulary.make_tokenizer(texts, *sizes), "first"


def load_start(config) -> Loaded:
    """The model the run starts from: config.model, with a fresh head or from scratch if it says so."""
    settings = config.model
    name = settings.name_or_path
    if name and (checkpoint.is_checkpoint(name) or peft.is_adapter(name)):
        return checkpoint.check_one_score(checkpoint.load_merged(name), name)
    folder = hf.resolve(name, settings.revision)
    key = jax.random.key(derived_seed(config.seed, "head")) if settings.fresh_head else None
    model, params = hf.load(folder, fresh_head_key=key)
    return Loaded(model, params, hf.load_tokenizer(folder), {})


def scratch_config(config, tokenizer) -> dict:
    """The `config.json` of a BERT or a Llama to start from random weights."""
    settings = config.model.scratch.to_dict()
    family, dropout = settings.pop("family"), settings.pop("dropout")
    known = settings | {
        "model_type": family,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": config.model.max_length,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if family == "llama":
        return known | {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id")}
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return known | {"type_vocab_size": 2} | rates


def load_global(config, workdir: Workdir) -> Loaded:
    """The global RM of a run."""
    return checkpoint.load(workdir.global_checkpoint) if config.global_rm.train else load_start(config)


def score_global(config, workdir: Workdir) -> None:
    """Scores every distinct text with the global RM. What was scored before an interruption is not scored again.

    Of several processes each scores a part and keeps it in files of its own; process 0 writes the whole.
    """
    table = preferences.read_table(workdir.pairs)
    loaded = load_global(config, workdir)
    texts = tokens.texts_of(scored_rows(config, table))
    parts = workdir.scores.parent / f"parts-{workdir.fingerprint('score')[:12]}"
    # named by process 0: another one may be about to write its next part
    names = distributed.on_writer("scored parts", lambda: sorted(path.name for path in parts.glob("*.parquet")))
    known = read_scores([parts / name for name in names])
    missing = {key: text for key, text in texts.items() if key not in known}
    if known:
        logs.say(f"score: {len(known)} of {len(texts)} texts were scored before the interruption")
    encoded = tokens.read(config, workdir, missing, training=False)
    score.check_length(list(encoded.values()), loaded.model)
    known |= score_parts(config, loaded, encoded, parts)
    check_finite(known, texts)
    if distributed.is_writer():
        write_scores(workdir.scores, {key: known[key] for key in texts})
        for folder in workdir.scores.parent.glob("parts-*"):
            folder.rmtree()


def scored_rows(config, table: pa.Table) -> list[dict]:
    """The pairs whose texts the global RM scores: of the steered groups, and the test pairs of the majority."""
    steered, majority = set(steered_groups(config, table)), set(majority_groups(config))
    return [
        row
        for row in table.to_pylist()
        if row["group"] in steered or (row["group"] in majority and row["split"] == "test")
    ]


def score_parts(config, loaded: Loaded, texts: dict[str, encoding.Text], folder) -> dict[str, np.float32]:
    """text key -> reward of encoded texts; every minute the latest ones are written to `folder`."""
    function = score.score_function(loaded.model, config.model.dtype)
    progress = logs.Progress(len(texts), "score", "text")
    keys, scores, fresh, written = list(texts), np.zeros(len(texts), np.float32), {}, time.monotonic()
    for indices, values in score.score_batches(function, loaded.params, list(texts.values())):
        scores[indices] = values
        fresh |= {keys[i]: value for i, value in zip(indices, values, strict=True)}
        progress.add(len(indices) * distributed.count())  # the others are about as far
        if time.monotonic() - written > SECONDS_PER_PART:
            # named by its first text: a part of an earlier attempt has other texts
            write_scores(folder / f"{next(iter(fresh))}.parquet", fresh)
            fresh, written = {}, time.monotonic()
    progress.close()
    return dict(zip(keys, distributed.summed(scores), strict=True))


def read_scores(paths) -> dict[str, np.float32]:
    """text key -> reward of score files."""
    scores = {}
    for path in sorted(paths):
        columns = preferences.read_table(path).to_pydict()
        if not {"key", "reward"} <= columns.keys():
            raise InputError(f"{path} is no file of scores: it was changed after stage score wrote it")
        scores |= zip(columns["key"], np.asarray(columns["reward"], np.float32), strict=True)
    return scores


def stored_scores(workdir: Workdir, rows: list[dict]) -> dict[str, np.float32]:
    """text key -> reward by the global RM, on disk. Raises InputError where a text of these pairs has no finite one."""
    scores = read_scores([workdir.scores])
    texts = tokens.texts_of(rows)
    bad = [key for key in texts if not np.isfinite(scores.get(key, np.nan))]
    if bad:
        prompt, response = (preferences.as_text(text)[:60] for text in texts[bad[0]])
        raise InputError(
            f"{workdir.scores} has no finite score of {len(bad)} of {len(texts)} texts, first prompt {prompt!r} with "
            f"response {response!r}: it was changed after stage score wrote it; restore it, or use another --workdir"
        )
    return scores


REWARDS = ("ref_chosen", "ref_rejected", "p_global", "weight")


def read_selection(workdir: Workdir) -> dict[str, dict]:
    """pair_id -> row of the selection on disk. Raises InputError where a number of it is not finite."""
    selection = {row["pair_id"]: row for row in preferences.read_table(workdir.selection).to_pylist()}
    for pair_id, row in selection.items():
        for name in REWARDS:
            if row[name] is None or not np.isfinite(row[name]):
                raise InputError(
                    f"{workdir.selection}: pair {pair_id!r} has {name} {row[name]}: it was changed after stage select "
                    "wrote it; restore it, or use another --workdir"
                )
    return selection


def write_scores(path, scores: dict[str, np.float32]) -> None:
    """Writes text key -> reward, whole or not at all."""
    preferences.write_table(pa.table({"key": list(scores), "reward": pa.array(scores.values(), pa.float32())}), path)


def check_finite(scores: dict[str, np.float32], texts: dict[str, tuple[str, str]]) -> None:
    """Refuses scores that are not numbers, which would keep or drop pairs at random."""
    bad = [key for key, value in scores.items() if not np.isfinite(value)]
    if bad:
        prompt, response = texts[bad[0]]
        raise InputError(
            f"the global RM gives {len(bad)} of {len(scores)} texts no finite score, first prompt {prompt[:60]!r} "
            f"with response {response[:60]!r}: check the model, or use config.model.dtype=float32"
        )


def select(config, workdir: Workdir) -> None:
    """Records what the global RM says of every pair of the steered groups, whether it is kept, and its weight."""
    table = preferences.read_table(workdir.pairs)
    steered = steered_groups(config, table)
    rows = [row for row in table.to_pylist() if row["group"] in steered]
    scores = stored_scores(workdir, rows)
    chosen, rejected = (
        np.array([scores[score.text_key(row["prompt"], row[side])] for row in rows], np.float32)
        for side in ("chosen", "rejected")
    )
    groups, is_train = np.array([row["group"] for row in rows]), np.array([row["split"] == "train" for row in rows])
    columns = {key: [row[key] for row in rows] for key in ("pair_id", "group", "split")}
    columns |= {name: np.zeros(len(rows)) for name in ("tau", "beta")}
    columns |= {name: np.zeros(len(rows), np.float32) for name in scpo.Selection._fields}
    columns |= {name: np.zeros(len(rows), bool) for name in ("keep", "uncertain", "trim")}
    calibrated = calibrate_groups(config, workdir, rows, chosen, rejected) if config.scpo.calibrate else {}
    if calibrated:
        workdir.write_json(workdir.calibration, calibrated)
    else:
        workdir.calibration.unlink(missing_ok=True)
    for group in steered:
        own = groups == group
        values = calibrated.get(group, config.scpo)
        tau, beta = (override(config, group, key, values[key]) for key in ("tau", "beta"))
        selected = scpo.select(chosen[own], rejected[own], tau, beta, config.scpo.trim)
        for name, values in {**selected._asdict(), "tau": tau, "beta": beta}.items():
            columns[name][own] = values
    columns["keep"] = np.where(is_train, columns["keep"], scpo.keep(chosen, rejected, config.scpo.tau_test))
    selection = pa.table(columns)
    preferences.write_table(selection, workdir.selection)
    examples.write(workdir, rows, selection.to_pylist())


def calibrate_groups(config, workdir: Workdir, rows: list[dict], chosen: np.ndarray, rejected: np.ndarray) -> dict:
    """{group: what `calibrate.choose` found} from the training pairs of every group that has some."""
    found = {}
    for group in dict.fromkeys(row["group"] for row in rows):
        places = [i for i, row in enumerate(rows) if row["split"] == "train" and row["group"] == group]
        own, refs = [rows[i] for i in places], (chosen[places], rejected[places])
        if own:
            texts = tokens.read(config, workdir, tokens.texts_of(own), training=False)
            differences, users = calibrate.token_differences(texts, own), [row["user_id"] for row in own]
            seed = derived_seed(config.seed, f"calibrate/{group}")
            found[group] = calibrate.choose(differences, refs, users, config.scpo.tau, config.scpo.beta, seed)
            logs.say(f"calibrate {group}: {calibrate.line(found[group])}")
    return found


def override(config, group: str, key: str, default):
    """The value of `key` for a group: of config.per_group, else the default."""
    return next((value for name, own, value in config.per_group if (name, own) == (group, key)), default)
