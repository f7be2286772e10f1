"""What can make a result look better than it is, looked for before anything is trained.

A finding stops the run where going on would give numbers that mean nothing (the test set is trained on, the label is
written on the response) and warns where it may be a property of the data. `config.allow` lets named ones pass.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from scpo_jax import baselines, logs, score
from scpo_jax.data import chat, encoding
from scpo_jax.data.encoding import Text
from scpo_jax.errors import InputError
from scpo_jax.workdir import Workdir

SHARED_PAIRS = 5e-2  # stop above this share of test pairs that are in training as well; short texts do repeat
SHARED_TEXTS = 1e-2  # warn above this share of test pairs one of whose texts is in training
TEMPLATE_PAIRS = 0.5  # stop if a mark tells the sides apart in this share of the pairs ...
TEMPLATE_WARNING = 0.05  # ... warn from this one
ONE_SIDED = 0.95  # of the pairs with the mark on one side, so many have it on the same one; a taste is never so pure
FEW = 20  # pairs below which nothing is said about templates and baselines
BROKEN_TEXTS = 1e-2  # stop above this share of texts with too many or too few special tokens
CUT_GAP = 0.1  # stop if truncation hits one side in so many more of the pairs than the other ...
CUT_PAIRS = 1e-2  # ... warn if it hits one side only in so many
PREDICTED = 0.9  # stop if length or characters alone are right so often; raters agree with each other in 0.6 to 0.8
SUSPECT = 0.7  # warn if certainly above; also the most that an honest reward model reaches on PRISM
ROLES = ("user:", "assistant:", "human:", "system:", "###", "<|", "[INST]", "[{")


class Finding(NamedTuple):
    """What one guard found."""

    name: str
    level: str  # ok, warning or stop
    count: int
    of: int
    what: str  # one line: what was found, and what to do if it is not ok


def check(rows: Sequence[dict], tokenizer, texts: dict[str, Text], form: str) -> tuple[list[Finding], dict]:
    """(findings of all guards, accuracy records of the baselines) of a table of preferences.

    Args:
      rows: of the table, with their splits.
      texts: text key -> encoded text, as it is scored.
      form: how it was encoded, see `encoding.form`.
    """
    if form == "chat":
        marks = conversation_marks(tokenizer, texts.values(), any(row.get("messages") for row in rows))
    else:
        marks = special_tokens(tokenizer, texts.values())
    records = baselines.records(rows)
    findings = [
        users_in_both_splits(rows),
        pairs_in_both_splits(rows),
        texts_in_both_splits(rows),
        templates(rows),
        marks,
        pad_token(tokenizer),
        truncation(rows, texts),
        *(predicted(name, record) for name, record in records.items()),
    ]
    return findings, records


NAMES = (
    "user_in_both_splits", "pair_in_both_splits", "text_in_both_splits", "templates", "special_tokens", "pad_token",
    "truncation", "length", "characters",
)  # fmt: skip


def users_in_both_splits(rows: Sequence[dict]) -> Finding:
    """Stops: what was learnt of a user is no evidence about others. Spaces around a name do not make it another."""
    names = [{_user(row) for row in rows if row["split"] == split} for split in ("train", "test")]
    both = sorted(names[0] & names[1])
    what = f"users are in train and test, like {both[0]!r}: give each one spelling" if both else ""
    return _finding("user_in_both_splits", bool(both), False, len(both), len(names[1]), what)


def pairs_in_both_splits(rows: Sequence[dict]) -> Finding:
    """Warns, above SHARED_PAIRS stops: the same prompt with the same two responses, whichever is chosen."""
    train = {_pair(row) for row in rows if row["split"] == "train"}
    test = [row for row in rows if row["split"] == "test"]
    both = [row for row in test if _pair(row) in train]
    what = f"test pairs are in train as well, like {both[0]['pair_id']!r}: remove repeated pairs" if both else ""
    stop = len(both) > SHARED_PAIRS * len(test)
    return _finding("pair_in_both_splits", stop, bool(both), len(both), len(test), what)


def texts_in_both_splits(rows: Sequence[dict]) -> Finding:
    """Warns above SHARED_TEXTS: a prompt with the same response. The other half differs, so the label is not known."""
    train = {text for row in rows if row["split"] == "train" for text in _texts(row)}
    test = [row for row in rows if row["split"] == "test"]
    both = [row for row in test if not train.isdisjoint(_texts(row))]
    what = f"test pairs have a text that is in train, like {both[0]['pair_id']!r}" if both else ""
    return _finding("text_in_both_splits", False, len(both) > SHARED_TEXTS * len(test), len(both), len(test), what)


def templates(rows: Sequence[dict]) -> Finding:
    """Stops where a mark at an end of the responses, or of a chat template, tells chosen from rejected by itself."""
    only = {side: Counter() for side in ("chosen", "rejected")}
    for row in rows:
        marks = {side: marks_of(row[side]) for side in only}
        only["chosen"].update(marks["chosen"] - marks["rejected"])
        only["rejected"].update(marks["rejected"] - marks["chosen"])
    worst = _finding("templates", False, False, 0, len(rows), "")
    for mark in sorted(only["chosen"].keys() | only["rejected"].keys()):
        counts = {side: only[side][mark] for side in only}
        side = max(counts, key=counts.get)
        total = sum(counts.values())
        if total < FEW or total <= worst.count or counts[side] < ONE_SIDED * total:
            continue
        stop, warn = total >= TEMPLATE_PAIRS * len(rows), total >= TEMPLATE_WARNING * len(rows)
        what = f"pairs have a response that {mark}, nearly always the {side} one: render both sides alike"
        if stop or warn:
            worst = _finding("templates", stop, warn, total, len(rows), what)
    return worst


def marks_of(response: str) -> set[str]:
    """Marks of a template: what is no letter or digit at either end, space there, and names of roles."""
    marks = {f"has {role!r}" for role in ROLES if role in response}
    if response != response.strip():
        marks.add("has space around it")
    bare = response.strip()
    if bare and not bare[0].isalnum():
        marks.add(f"begins with {bare[0]!r}")
    if bare and not bare[-1].isalnum():
        marks.add(f"ends with {bare[-1]!r}")
    return marks


def special_tokens(tokenizer, texts: Iterable[Text]) -> Finding:
    """Stops if the tokenizer does not mark texts as models expect, or if more than BROKEN_TEXTS hold such marks.

    A text pair has its first token and separators as often as the pair ("a", "b"); "[SEP]" written in a text makes
    one more.
    """
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("cls", "sep", "bos", "eos")}
    ids = {name: number for name, number in ids.items() if number is not None}
    pattern = tokenizer(["a"], ["b"])["input_ids"][0]
    missing = [name for name in ("cls", "sep") if name in ids and ids[name] not in pattern]
    doubled = [name for name in ids for i in range(len(pattern) - 1) if pattern[i] == pattern[i + 1] == ids[name]]
    texts = list(texts)
    if missing or doubled:
        kind = f"lack the {missing[0]} token" if missing else f"have the {doubled[0]} token twice in a row"
        what = f"texts {kind}: mend the post-processor in tokenizer.json"
        return _finding("special_tokens", True, True, len(texts), len(texts), what)
    expected = {number: pattern.count(number) for number in ids.values()}
    broken = sum(any((text.input_ids == number).sum() != count for number, count in expected.items()) for text in texts)
    what = "texts have special tokens written in them, or lack them: remove markers such as '[SEP]' from the data"
    return _finding("special_tokens", broken > BROKEN_TEXTS * len(texts), broken > 0, broken, len(texts), what)


def conversation_marks(tokenizer, texts: Iterable[Text], turns: bool) -> Finding:
    """As `special_tokens` for the conversations of causal models: one BOS token, and an end token after the response.

    With `turns`, prompts of several messages, how many marks a text has is not looked at, nor where it was cut.
    """
    pattern = encoding.encode_for_scoring(tokenizer, ["a"], ["b"], 512, "chat")[0].input_ids
    bos, special = tokenizer.bos_token_id, list(chat.special_ids(tokenizer))
    marked = np.isin(pattern, special)
    end, texts = pattern[marked.nonzero()[0][-1] :], list(texts)
    if (pattern == bos).sum() > 1:
        what = "texts have the bos token twice: mend the chat template"
        return _finding("special_tokens", True, True, len(texts), len(texts), what)

    def whole(ids: np.ndarray, cut: int) -> bool:
        framed = (ids == bos).sum() == (pattern == bos).sum() and np.array_equal(ids[-len(end) :], end)
        return framed and (turns or cut > 0 or np.isin(ids, special).sum() == marked.sum())

    count = sum(not whole(text.input_ids, text.cut) for text in texts)
    what = f"texts have special tokens written in them, or lack them: remove markers such as {tokenizer.eos_token!r}"
    return _finding("special_tokens", count > BROKEN_TEXTS * len(texts), count > 0, count, len(texts), what)


def pad_token(tokenizer) -> Finding:
    """Warns: nothing here looks for the end by the pad token, but who uses the exported model might."""
    pad, ends = tokenizer.pad_token_id, (tokenizer.eos_token_id, tokenizer.sep_token_id)
    same = pad is not None and pad in ends
    what = f"token {tokenizer.pad_token!r} both pads and ends texts: code that masks padding would cut the end off"
    return _finding("pad_token", False, same, int(same), 1, what)


def truncation(rows: Sequence[dict], texts: dict[str, Text]) -> Finding:
    """Stops if max_length cuts one side in CUT_GAP more of the pairs than the other, warns from CUT_PAIRS on."""
    cut = [[texts[key].cut > 0 for key in _keys(row)] for row in rows]
    chosen, rejected = (sum(own and not other for own, other in pairs) for pairs in (cut, [c[::-1] for c in cut]))
    stop = abs(chosen - rejected) > CUT_GAP * len(rows)
    what = f"pairs are cut on one side only, {chosen} chosen and {rejected} rejected: raise config.model.max_length"
    return _finding("truncation", stop, chosen + rejected > CUT_PAIRS * len(rows), chosen + rejected, len(rows), what)


def predicted(name: str, record: dict) -> Finding:
    """Stops if a baseline is right in PREDICTED of train and test pairs, warns if its interval lies above SUSPECT."""
    right, of = round((record["accuracy"] or 0) * record["n"]), record["n"]
    stop = of >= FEW and min(record["accuracy"], record["train_accuracy"]) >= PREDICTED
    what = f"test pairs are right by {name} alone: look for a difference in form between chosen and rejected"
    return _finding(name, stop, of >= FEW and record["low"] > SUSPECT, right, of, what)


def prism_accuracy(methods: dict[str, dict]) -> Finding:
    """Warns if a reward model is right on more than SUSPECT of all test pairs of PRISM: no honest system is.

    `methods` is that of evaluation.json: method -> group -> "all" -> record A.
    """
    worst, right, of = "", 0, 1
    for method, groups in methods.items():
        records = [group["all"] for group in groups.values() if group["all"]["n"]]
        total = sum(record["n"] for record in records)
        correct = sum(round(record["accuracy"] * record["n"]) for record in records)
        if total and correct / total > right / of:
            worst, right, of = method, correct, total
    what = f"test pairs are right by {worst}: on PRISM look for a leak above 70 %"
    return _finding("prism_accuracy", False, right > SUSPECT * of, right, of, what)


def report(workdir: Workdir, findings: Sequence[Finding], records: dict, allowed: Sequence[str]) -> None:
    """Writes `reports/guards.json`, says the warnings, and raises InputError for what stops the run."""
    levels = ["allowed" if f.level == "stop" and f.name in allowed else f.level for f in findings]
    found = [f._asdict() | {"level": level} for f, level in zip(findings, levels, strict=True)]
    workdir.write_json(workdir.guards, {"findings": found, "baselines": records})
    stops = [f for f, level in zip(findings, levels, strict=True) if level == "stop"]
    if stops:
        names = ",".join(f.name for f in stops)
        raise InputError(f"{'; '.join(map(line, stops))}. Or let it pass with --config.allow={names}")
    for f, level in zip(findings, levels, strict=True):
        if level != "ok":
            logs.say(line(f))


def add(workdir: Workdir, finding: Finding) -> None:
    """Says a warning of a later stage, and puts it in `reports/guards.json` in place of an earlier one of its name."""
    found = workdir.read_json(workdir.guards, {"findings": [], "baselines": {}})
    others = [other for other in found["findings"] if other["name"] != finding.name]
    workdir.write_json(workdir.guards, found | {"findings": [*others, finding._asdict()]})
    if finding.level != "ok":
        logs.say(line(finding))


def line(finding: Finding) -> str:
    """A finding as people read it."""
    return f"guard {finding.name}: {finding.count} of {finding.of} {finding.what}"


def _finding(name: str, stop: bool, warn: bool, count: int, of: int, what: str) -> Finding:
    level = "stop" if stop else "warning" if warn else "ok"
    return Finding(name, level, count, of, what if level != "ok" else "")


def _user(row: dict) -> str:
    return unicodedata.normalize("NFKC", row["user_id"]).strip()


def _texts(row: dict) -> tuple[tuple[str, str], ...]:
    return tuple((row["prompt"], row[side]) for side in ("chosen", "rejected"))


def _pair(row: dict) -> tuple[str, frozenset[str]]:
    return row["prompt"], frozenset((row["chosen"], row["rejected"]))


def _keys(row: dict) -> list[str]:
    return [score.text_key(*text) for text in _texts(row)]
