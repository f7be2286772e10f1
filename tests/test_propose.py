"""Which pairs are proposed for annotation: uncertain ones, of diverse prompts, whatever the order of the responses."""

import numpy as np
import pytest

from scpo_jax import propose
from tests.run_helpers import GROUPS, read_rows, refusal, scpo, write_rows

RICE, RAIN = "How do I cook rice?", "Will it rain in Santiago tomorrow?"


def test_the_most_uncertain_come_first_and_ties_keep_their_order():
    prompts = [f"{word} {word}" for word in ("alpha", "beta", "gamma", "delta", "epsilon")]
    assert propose.rank(np.array([0.5, -0.1, 2.0, 0.1, -0.3]), prompts, 4, 1) == [1, 3, 4, 0]
    assert propose.rank(np.array([0.5, -0.1]), prompts[:2], 9, 1) == [1, 0]


def test_at_most_so_many_of_a_prompt():
    prompts = [RICE] * 4 + [RAIN] * 2
    differences = np.array([0.1, 0.2, 0.3, 0.4, 5.0, 6.0])
    assert propose.rank(differences, prompts, 6, 2) == [0, 1, 4, 5]
    assert propose.rank(differences, prompts, 6, 1) == [0, 4]
    assert propose.rank(differences, prompts, 6, 9) == [0, 1, 2, 3, 4, 5]


def test_prompts_alike_share_their_places_until_the_others_are_used_up():
    prompts = [RICE, "how do I cook RICE", "How do I cook rice now?", RAIN, "Who wrote Don Quixote?"]
    differences = np.array([0.1, 0.2, 0.3, 4.0, 5.0])
    assert propose.rank(differences, prompts, 3, 1) == [0, 3, 4]
    assert propose.rank(differences, prompts, 4, 1) == [0, 1, 3, 4]


def test_words_that_every_prompt_has_make_none_alike():
    prompts = [f"Please tell me what you think about question {i}" for i in range(6)]
    assert propose.rank(np.arange(6.0), prompts, 3, 1) == [0, 1, 2]


def test_pairs_that_nobody_can_compare_are_left_out():
    def pair(a, b, group=""):
        return propose.Pair({}, RICE, (a, b), group)

    pairs = [pair("a", "b"), pair("a", "a"), pair(" ", "b"), pair("b", "a"), pair("b", "a", "Chile")]
    assert propose.usable(pairs) == [pairs[0], pairs[4]]


def unlabelled(count: int) -> list[dict]:
    return [
        {
            "prompt": f"question {i % 4}",
            "response_a": f"good answer {i}",
            "response_b": f"warm reply {i}",
            "group": GROUPS[1],
            "note": i,
        }
        for i in range(count)
    ]


def test_the_command(finished, tmp_path, capsys):
    rows = [*unlabelled(12), unlabelled(1)[0], {"prompt": "question 9", "response_a": "same", "response_b": "same"}]
    source, output = write_rows(tmp_path / "unlabelled.jsonl", rows), tmp_path / "new" / "to_annotate.jsonl"
    flags = (f"--model={finished.workdir}", f"--pairs={source}", f"--output={output}")
    assert scpo("propose", *flags, "--budget=6") == 0
    assert "2 of 14 pairs have empty, equal or repeated responses" in capsys.readouterr().err
    proposed, content = read_rows(output), output.read_bytes()
    assert [row["rank"] for row in proposed] == [1, 2, 3, 4, 5, 6]
    doubt = [abs(row["probability"] - 0.5) for row in proposed]
    assert doubt == sorted(doubt) and all(rows[row["note"]].items() <= row.items() for row in proposed)
    counts = np.unique([row["prompt"] for row in proposed], return_counts=True)[1]
    assert counts.max() <= 2
    assert scpo("propose", *flags, "--budget=6") == 0 and output.read_bytes() == content

    scored = tmp_path / "scored.jsonl"
    texts = [{key: row[key] for key in ("prompt", "group")} for row in proposed]
    write_rows(source, [t | {"response": row["response_a"]} for t, row in zip(texts, proposed, strict=True)])
    assert scpo("score", f"--model={finished.workdir}", f"--input={source}", f"--output={scored}") == 0
    first = [row["score"] for row in read_rows(scored)]
    write_rows(source, [t | {"response": row["response_b"]} for t, row in zip(texts, proposed, strict=True)])
    scored.unlink()
    assert scpo("score", f"--model={finished.workdir}", f"--input={source}", f"--output={scored}") == 0
    second = [row["score"] for row in read_rows(scored)]
    expected = 1 / (1 + np.exp(np.subtract(second, first)))
    np.testing.assert_allclose([row["probability"] for row in proposed], expected, atol=1e-5)


def test_labelled_pairs_are_ranked_without_their_label(finished, tmp_path):
    ranked = []
    for a, b in (("chosen", "rejected"), ("rejected", "chosen")):
        rows = [
            {"prompt": r["prompt"], a: r["response_a"], b: r["response_b"], "note": r["note"]} for r in unlabelled(9)
        ]
        source, output = write_rows(tmp_path / "pairs.jsonl", rows), tmp_path / "to_annotate.jsonl"
        assert (
            scpo("propose", f"--model={finished.workdir}", f"--pairs={source}", f"--output={output}", "--budget=5") == 0
        )
        ranked.append([row["note"] for row in read_rows(output)])
    assert ranked[0] == ranked[1]


@pytest.mark.parametrize(
    ("flags", "row", "said"),
    [
        (("--budget=0",), {}, "--budget=0: it has to be 1 or more"),
        (("--budget=many",), {}, "budget"),
        (("--budget=3", "--per_prompt=0"), {}, "--per_prompt=0"),
        ((), {}, "--budget=... is missing"),
        (("--budget=3",), {"prompt": "p", "response_a": "a"}, "unlabelled.jsonl:4: missing field 'response_b'"),
        (("--budget=3",), {"prompt": 3, "response_a": "a", "response_b": "b"}, "unlabelled.jsonl:4: field 'prompt'"),
        (("--budget=3", "--pairs=nowhere.jsonl"), {}, "nowhere.jsonl"),
    ],
)
def test_mistakes(flags, row, said, finished, tmp_path, capsys):
    source = write_rows(tmp_path / "unlabelled.jsonl", [*unlabelled(3), *([row] if row else [])])
    own = (f"--model={finished.workdir}", f"--pairs={source}", f"--output={tmp_path / 'out.jsonl'}")
    assert said in refusal(capsys, "propose", *own, *flags)
    assert not (tmp_path / "out.jsonl").exists()


def test_nothing_to_compare(finished, tmp_path, capsys):
    source = write_rows(tmp_path / "same.jsonl", [{"prompt": "p", "response_a": "a", "response_b": "a"}])
    own = (f"--model={finished.workdir}", f"--pairs={source}", f"--output={tmp_path / 'out.jsonl'}")
    assert "no pair of two different responses" in refusal(capsys, "propose", *own, "--budget=1")
