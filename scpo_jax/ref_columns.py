"""What `scpo score --columns` adds to the scores: the reference RM's scores, and what SCPO makes of them."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from scpo_jax import checkpoint, scpo, workdir
from scpo_jax.configs import base
from scpo_jax.data.encoding import Prompt
from scpo_jax.data.fields import listing
from scpo_jax.errors import InputError
from scpo_jax.judge import Judge, Scorer, open_judge

COLUMNS = ("ref", "difference", "keep", "weight")
REFS = ("ref_score", "ref_score_chosen", "ref_score_rejected")  # the column ref of a text, and of a pair
FIELDS = (*REFS, "difference", "keep", "weight")


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns asked for, and what they are computed with."""

    names: tuple[str, ...]  # of COLUMNS, in its order
    judge: Judge  # gives the scores; its groups may have a tau and beta of their own
    reference: Scorer | None  # None: what the judge has for rows without a group
    tau: float | None  # of all rows; None for that of the row's RM
    beta: float | None
    defaults: tuple[float, float]  # tau and beta where an RM has none

    def fields(self, sides: int) -> list[str]:
        """Names of the fields that a text (`sides` 1) or a pair (2) gets."""
        refs = list(REFS[:1] if sides == 1 else REFS[1:])
        return [field for name in self.names for field in (refs if name == "ref" else [name])]

    def check(self, row: dict, sides: int, where: str) -> None:
        """Refuses a row that the columns have no meaning for, or that has a field of their names."""
        if sides == 1 and self.names != ("ref",):
            pairs = listing(name for name in self.names if name != "ref")
            raise InputError(
                f"{where}: --columns={pairs}: they are of pairs, and this row is a text; ask for ref alone"
            )
        taken = [name for name in self.fields(sides) if name in row]
        if taken:
            raise InputError(f"{where}: the row has a field {taken[0]!r}, which --columns would write: rename it")

    def both(self, prompts: Sequence[Prompt], responses: Sequence[str], groups: Sequence[str]) -> np.ndarray:
        """Scores `[2, N]` of texts by the RM of their group, and by the reference."""
        if self.reference is None:  # texts without a group are scored once
            nobody = [""] * len(groups)
            return self.judge.score([*prompts] * 2, [*responses] * 2, [*groups, *nobody]).reshape(2, -1)
        return np.stack([self.judge.score(prompts, responses, groups), self.reference(prompts, responses)])

    def of_row(self, refs: Sequence[np.float32], group: str) -> dict:
        """Every column of a text, or of a pair, from the reference's scores; whether asked for or not."""
        if len(refs) == 1:
            return {REFS[0]: float(refs[0])}
        tau, beta = self.rule(group)
        values = {"difference": float(refs[0] - refs[1]), "keep": bool(scpo.keep(*refs, tau))}
        return dict(zip(REFS[1:], map(float, refs), strict=True)) | values | {"weight": float(scpo.weight(*refs, beta))}

    def same(self, name: str, old, values: dict, group: str, tolerance: float) -> bool:
        """Whether a column that was written is what `of_row` finds now; scores differ by up to `tolerance`."""
        if name in REFS:
            return abs(old - values[name]) <= tolerance
        tau, beta = self.rule(group)
        if name == "keep":  # near tau it may fall to either side
            return old == values[name] or abs(values["difference"] - scpo.logit(tau)) <= 2 * tolerance
        return abs(old - values[name]) <= 2 * tolerance * (1 if name == "difference" else max(1, 1 / beta))

    def rule(self, group: str) -> tuple[float, float]:
        """tau and beta of a row."""
        own = _own_rule(self.judge, group) or self.defaults
        return own[0] if self.tau is None else self.tau, own[1] if self.beta is None else self.beta


@functools.cache
def _own_rule(judge: Judge, group: str) -> tuple[float, float] | None:
    """tau and beta that the RM of a group was trained with, if its card names them."""
    card = checkpoint.load_card(judge.groups[group]) if group in judge.groups else judge.default.loaded.card
    return (card["tau"], card["beta"]) if {"tau", "beta"} <= card.keys() else None


def open_columns(
    names: Sequence[str],
    judge: Judge,
    model: str,
    *,
    reference: str | None,
    tau: float | None,
    beta: float | None,
    max_length: int | None,
    dtype: str,
) -> Columns | None:
    """The columns that flags ask for; None if they ask for none. Raises InputError.

    The reference is the RM `reference`, else the global RM of a workdir, else a single model that is nobody's own.
    """
    names = [name.strip() for name in names]
    _check(names, reference, tau, beta)
    if not names:
        return None
    if reference is not None:
        speaker = open_judge(reference, method="global", max_length=max_length, dtype=dtype).default
    else:
        own = bool(judge.groups) or judge.method == "global"
        speaker = None if own else judge.global_scorer()
        if not own and speaker is None:
            raise InputError(f"--columns={','.join(names)}: name the global RM, --reference=M: {model} is a group's RM")
    settings = base.get_config().scpo
    defaults = settings.tau, settings.beta
    if workdir.is_workdir(model):
        config = workdir.Workdir(model).record()["config"]
        defaults = config["scpo.tau"], config["scpo.beta"]
    return Columns(tuple(name for name in COLUMNS if name in names), judge, speaker, tau, beta, defaults)


def _check(names: Sequence[str], reference: str | None, tau: float | None, beta: float | None) -> None:
    for name in names:
        if name not in COLUMNS:
            raise InputError(f"--columns: unknown {name!r}; there are {listing(COLUMNS)}")
    if not names and (reference, tau, beta) != (None, None, None):
        raise InputError("--reference, --tau and --beta say how --columns are computed: name some")
    if tau is not None and not 0 <= tau <= 1:
        raise InputError(f"--tau={tau}: it is a probability, from 0 to 1")
    if beta is not None and not 0 < beta < float("inf"):
        raise InputError(f"--beta={beta}: it has to be above 0")
