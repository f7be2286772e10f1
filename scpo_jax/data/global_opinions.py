"""GlobalOpinionQA (Durmus et al. 2023, hub id Anthropic/llm_global_opinions): survey answers as shares per country.

A cell is a question and a country. Of two options whose shares differ enough the more popular one is chosen. Surveys
ask long batteries of nearly equal questions, so a battery, not a question, is what the split keeps together.
"""

import ast
import dataclasses
import hashlib
import itertools
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from etils import epath

from scpo_jax.data import fields, hub
from scpo_jax.data.preferences import Source, check_groups
from scpo_jax.data.records import read_rows
from scpo_jax.data.survey_options import without_substance
from scpo_jax.errors import InputError

COUNTRY_NAMES = {  # the two surveys spell these differently
    "Great Britain": "Britain",
    "S. Korea": "South Korea",
    "Czech Rep.": "Czechia",
    "Taiwan ROC": "Taiwan",
}
SAMPLES = ("", "Current national sample", "Old national sample", "Non-national sample")  # the best first
LARGEST_SHARE = 1e9  # counts will do as well as shares
BATTERY_CHARACTERS = 60  # questions of a battery agree in as many, DESIGN section 3


@dataclasses.dataclass
class Question:
    """A row of the file."""

    text: str
    options: list[str]
    shares: dict[str, list[float]]  # country -> share of each option
    other_samples: int  # cells left out because a better sample of the same country is in the row

    @property
    def question_id(self) -> str:
        return f"q-{_digest(self.text, *self.options)}"

    @property
    def battery(self) -> str:
        """Same options of substance (one wave offers "don't know", the next doesn't), same beginning."""
        beginning = " ".join(self.text[:BATTERY_CHARACTERS].split())
        return f"b-{_digest(beginning, *(option for option in self.options if not without_substance(option)))}"


def fetch(path_or_id: str, revision: str = "") -> epath.Path:
    """The csv file: a local one, or the one in a local folder or a snapshot from the hub (see `hub.fetch`)."""
    path = hub.fetch(path_or_id, revision, ("*.csv", "**/*.csv"))
    if not path.is_dir():
        return path
    found = sorted([*path.glob("*.csv"), *path.glob("*/*.csv")])
    if len(found) != 1:
        raise InputError(f"{path} holds {len(found)} csv files: give the path of the one to read")
    return found[0]


def read(path, *, group_by: str = "", groups: tuple[str, ...] = (), min_gap: float = 0.1, max_pairs: int = 6) -> Source:
    """Reads the csv with columns question, selections and options; the rows counted are the cells.

    Args:
        path: the csv file.
        group_by: "" for the country, "none" for one group "all".
        groups: countries to look for, without sample notes; unknown ones are reported before anything else.
        min_gap: two options make a pair if their shares differ by at least this much.
        max_pairs: pairs a cell at most. Which ones is drawn by hash from question and options, not from the shares:
            neither the first nor the easiest are favoured, and countries are compared on the same options.

    Raises:
        InputError: an unknown group, a missing or empty file, or a malformed row (the first, with its line).
    """
    questions = [_question_or_error(where, row) for where, row in read_rows(path)]
    readable = [question for question in questions if isinstance(question, Question)]
    if group_by not in ("", "none"):
        raise InputError(
            f"config.data.group_by={group_by!r}: global_opinions is grouped by country ('') or not ('none')"
        )
    known = ["all"] if group_by == "none" else sorted({name for question in readable for name in question.shares})
    if known:  # else no row is readable: the first one says why
        check_groups(groups, known)
    for question in questions:
        if isinstance(question, InputError):
            raise question
    source = _source(readable, known, min_gap, max_pairs)
    return _ungrouped(source) if group_by == "none" else source


class Cell(NamedTuple):
    """The answers of a country to a question."""

    country: str
    question: str
    battery: str
    options: list[str]  # of substance
    shares: np.ndarray  # of these, sum 1


def cells(path) -> list[Cell]:
    """Every usable cell of the csv once, in the order of the file; raises InputError as `read` does."""
    found = {}
    for where, row in read_rows(path):
        question = _question_or_error(where, row)
        if isinstance(question, InputError):
            raise question
        kept = _substantive(question)
        options = [question.options[i] for i in kept]
        for country, shares in question.shares.items():
            if not _unusable(question, shares):
                own = np.array([shares[i] for i in kept])
                cell = Cell(country, question.text, question.battery, options, own / own.sum())
                found.setdefault((question.question_id, country), cell)
    return list(found.values())


def _question_or_error(where: str, row: dict | InputError) -> Question | InputError:
    try:
        return row if isinstance(row, InputError) else _question(row, where)
    except InputError as error:
        return error


def _question(row: dict, where: str) -> Question:
    options = _literal(row, "options", list, where)
    options = [_option(option, where) for option in options]
    selections = _literal(row, "selections", dict, where)
    for country, shares in selections.items():
        _check_shares(country, shares, where)
    best = {}
    for country in sorted(selections, key=_sample_rank):
        best.setdefault(_country(country), selections[country])
    in_file_order = {name: best[name] for name in map(_country, selections)}
    text = fields.identifier(row, "question", where).strip()
    return Question(text, options, in_file_order, len(selections) - len(best))


def _literal(row: dict, name: str, expected: type, where: str):
    """The Python literal in a cell; a `defaultdict(<class 'list'>, {...})` counts as its dict."""
    spelt = re.sub(r"^defaultdict\(<class 'list'>, (.*)\)$", r"\1", fields.text(row, name, where).strip(), flags=re.S)
    try:
        with warnings.catch_warnings(action="ignore"):  # Python's word on a lone backslash, which stays one
            value = ast.literal_eval(spelt)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise InputError(f"{where}: field '{name}' is no Python {expected.__name__}; fix its quotes") from error
    if not isinstance(value, expected):
        raise InputError(f"{where}: field '{name}' is {fields.kind(value)}; it has to be a Python {expected.__name__}")
    return value


def _option(value, where: str) -> str:
    """An option as text; the file has numbers too."""
    try:
        return fields.valid_text(str(value).strip(), "options", where)
    except ValueError as error:  # an integer of thousands of digits
        raise InputError(f"{where}: an option is no text ({fields.one_line(error)}); fix it") from error


def _check_shares(country, shares, where: str) -> None:
    numbers = isinstance(shares, list) and all(type(share) in (int, float) for share in shares)
    if not isinstance(country, str) or not numbers or not all(0 <= share <= LARGEST_SHARE for share in shares):
        raise InputError(
            f"{where}: the selections of {country!r} are no list of shares; every share is from 0 to {LARGEST_SHARE:g}"
        )
    fields.valid_text(country, "selections", where)


def _country(spelling: str) -> str:
    name = re.sub(r"\s*\([^()]*sample\)$", "", spelling.strip())
    return COUNTRY_NAMES.get(name, name)


def _sample_rank(spelling: str) -> int:
    note = re.search(r"\(([^()]*sample)\)$", spelling.strip())
    note = note.group(1) if note else ""
    return SAMPLES.index(note) if note in SAMPLES else len(SAMPLES)


def _source(questions: list[Question], known: list[str], min_gap: float, max_pairs: int) -> Source:
    pairs, seen, dropped, counted = [], set(), Counter(), Counter()
    for question in questions:
        counted["other_samples"] += question.other_samples
        for country, shares in question.shares.items():
            cell = (question.question_id, country)
            reason = "repeated_cell" if cell in seen else _unusable(question, shares)
            seen.add(cell)
            if reason:
                dropped[reason] += 1
                continue
            chosen = list(itertools.islice(_ordered_pairs(question, shares, min_gap), max_pairs))
            counted["cells_without_pair"] += not chosen
            pairs += [_pair(question, country, winner, loser) for winner, loser in sorted(chosen)]
    units = list(dict.fromkeys(question.battery for question in questions))
    rows = sum(len(question.shares) for question in questions)
    return Source(pairs, units, dict.fromkeys(units, ""), known, rows, dict(dropped), dict(counted))


def _ungrouped(source: Source) -> Source:
    pairs = [pair | {"group": "all"} for pair in source.pairs]
    return dataclasses.replace(source, pairs=pairs, unit_groups=dict.fromkeys(source.units, "all"))


def _substantive(question: Question) -> list[int]:
    return [i for i, option in enumerate(question.options) if not without_substance(option)]


def _unusable(question: Question, shares: list[float]) -> str:
    if len(shares) != len(question.options):
        return "shares_unlike_options"
    kept = _substantive(question)
    if len(kept) < 2:
        return "fewer_than_two_options"
    return "" if sum(shares[i] for i in kept) > 0 else "zero_total"


def _ordered_pairs(question: Question, shares: list[float], min_gap: float) -> Iterator[tuple[int, int]]:
    """(more chosen, less chosen) for all options far enough apart, in the question's hash order."""
    kept = _substantive(question)
    total = sum(shares[i] for i in kept)
    candidates = [(i, j) for i, j in itertools.combinations(kept, 2) if question.options[i] != question.options[j]]
    for i, j in sorted(candidates, key=lambda ij: _digest(question.question_id, *map(str, ij))):
        if abs(shares[i] - shares[j]) / total >= min_gap - 1e-9:  # 0.35 - 0.25 is a little less than 0.1
            yield (i, j) if shares[i] > shares[j] else (j, i)


def _pair(question: Question, country: str, winner: int, loser: int) -> dict:
    return {
        "pair_id": f"{question.question_id}.{winner}-{loser}.{country}",
        "group": country,
        "user_id": question.battery,
        "interaction_id": question.question_id,
        "prompt": question.text,
        "messages": None,
        "chosen": question.options[winner],
        "rejected": question.options[loser],
        "chosen_id": f"{question.question_id}.{winner}",
        "rejected_id": f"{question.question_id}.{loser}",
        "margin": None,
    }


def _digest(*texts: str) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:12]
