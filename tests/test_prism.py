"""The PRISM adapter: the reference's split and pairs, a small hand-made survey, and every kind of bad input."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from scpo_jax.data import preferences, prism
from scpo_jax.errors import InputError


def person(user: str, country: str | None, **more) -> dict:
    return {"user_id": user, "location": {"reside_country": country}, "religion": {"simplified": "None"}, **more}


def utterance(number: int, user: str, interaction: str, score, text: str, **more) -> dict:
    ids = {"utterance_id": f"ut{number}", "interaction_id": interaction, "user_id": user}
    return ids | {"user_prompt": f"prompt of {interaction}", "model_response": text, "score": score} | more


SURVEY = [
    person("ana", "Chile", age="18-24 years old"),
    person("ben", "Israel", age="25-34 years old"),
    person("cem", "Chile", age=None),
    person("dee", None, age="18-24 years old"),
]
UTTERANCES = [
    utterance(0, "ana", "int0", 10, "low"),
    utterance(1, "ben", "int1", 50, "same"),
    utterance(2, "ana", "int0", 90, "high"),  # interleaved with another interaction
    utterance(3, "ben", "int1", 80, "same"),
    utterance(4, "ana", "int0", 10, "EMPTY STRING"),
    utterance(5, "cem", "int2", 33, "single"),
    utterance(6, "dee", "int3", 1, "x\u2028y"),
    utterance(7, "dee", "int3", 2, "z"),
]


def write_lines(path: pathlib.Path, rows: list) -> None:
    lines = [row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode() for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))


def folder(path: pathlib.Path, survey=SURVEY, utterances=UTTERANCES) -> pathlib.Path:
    write_lines(path / "survey.jsonl", survey)
    write_lines(path / "utterances.jsonl", utterances)
    return path


def ids(source) -> list[tuple[str, str]]:
    return [(pair["chosen_id"], pair["rejected_id"]) for pair in source.pairs]


def test_pairs_of_a_hand_made_survey(tmp_path):
    source = prism.read(folder(tmp_path))
    assert ids(source) == [("ut2", "ut0"), ("ut2", "ut4"), ("ut3", "ut1"), ("ut7", "ut6")]
    assert source.pairs[0] == {
        "pair_id": "ut2-ut0", "group": "Chile", "user_id": "ana", "interaction_id": "int0", "messages": None,
        "prompt": "prompt of int0", "chosen": "high", "rejected": "low", "chosen_id": "ut2", "rejected_id": "ut0",
        "margin": None,
        "score_chosen": 90,
        "score_rejected": 10,
    }  # fmt: skip
    assert source.pairs[3]["rejected"] == "x\u2028y"
    assert source.units == ["ana", "ben", "cem", "dee"]
    assert source.unit_groups == {"ana": "Chile", "ben": "Israel", "cem": "Chile", "dee": ""}
    assert source.ties == {"ana": 1, "ben": 0, "cem": 0, "dee": 0}
    assert (source.rows, source.dropped) == (8, {})
    assert source.counted == {
        "ties": 1,
        "equal_texts": 1,
        "empty_texts": 1,
        "single_utterance_interactions": 1,
        "users_without_group": 1,
        "users_without_utterances": 0,
    }


@pytest.mark.parametrize(
    ("group_by", "expected"),
    [
        ("none", {"ana": "all", "ben": "all", "cem": "all", "dee": "all"}),
        ("age", {"ana": "18-24 years old", "ben": "25-34 years old", "cem": "", "dee": "18-24 years old"}),
        ("religion.simplified", {"ana": "None", "ben": "None", "cem": "None", "dee": "None"}),
    ],
)
def test_group_by(tmp_path, group_by, expected):
    source = prism.read(folder(tmp_path), group_by=group_by)
    assert source.unit_groups == expected
    assert [pair["group"] for pair in source.pairs] == [expected[pair["user_id"]] for pair in source.pairs]


@pytest.mark.parametrize("group_by", ["relgion.simplified", "religion"])
def test_a_field_that_does_not_exist_is_reported_with_those_that_do(tmp_path, group_by):
    with pytest.raises(InputError, match="age, location.reside_country, religion.simplified, user_id"):
        prism.read(folder(tmp_path), group_by=group_by)


def test_a_field_missing_in_some_rows_leaves_these_users_out(tmp_path):
    survey = [*SURVEY[:3], {key: value for key, value in SURVEY[3].items() if key != "age"}]
    assert prism.read(folder(tmp_path, survey), group_by="age").unit_groups["dee"] == ""


def test_byte_order_mark_windows_line_ends_and_blank_lines_are_tolerated(tmp_path):
    expected = ids(prism.read(folder(tmp_path)))
    for file in tmp_path.iterdir():
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n") + b"\r\n\n")
    assert ids(prism.read(tmp_path)) == expected


def changed(row: dict, **changes) -> dict:
    return row | changes


def without(row: dict, *names: str) -> dict:
    return {key: value for key, value in row.items() if key not in names}


LAST = UTTERANCES[7]


@pytest.mark.parametrize(
    ("last", "message"),
    [
        (b"{not json", "not JSON"),
        (b'"a string"', "this line is a string"),
        (b"[" * 100_000, "not JSON"),
        (b'{"utterance_id": "\xff"}', "not UTF-8"),
        (json.dumps(changed(LAST, score=float("nan"))).encode(), "NaN is no JSON number"),
        (json.dumps(LAST).replace('"score": 2', '"score": 1e999').encode(), "finite number"),
        (json.dumps(changed(LAST, model_response="\ud800")).encode(), "'model_response' is not UTF-8"),
        (without(LAST, "score"), "missing field 'score'"),
        (without(LAST, "model_response"), "missing field 'model_response'"),
        (without(LAST, "user_prompt"), "missing field 'user_prompt'"),
        (changed(LAST, score="high"), "'score' is a string"),
        (changed(LAST, score=True), "'score' is a boolean"),
        (changed(LAST, score=None), "'score' is null"),
        (changed(LAST, model_response=None), "'model_response' is null"),
        (changed(LAST, user_prompt=3), "'user_prompt' is a number"),
        (changed(LAST, interaction_id=" "), "'interaction_id' is empty"),
        (changed(LAST, utterance_id="ut6"), "duplicate utterance_id 'ut6', also at .*utterances.jsonl:7"),
        (changed(LAST, user_id="nobody"), "'nobody' is not in survey.jsonl"),
        (changed(LAST, user_prompt="another"), "another user_prompt than utterance 'ut6'"),
    ],
)
def test_a_malformed_utterance_stops_with_its_line(tmp_path, last, message):
    with pytest.raises(InputError, match=f"utterances.jsonl:8: .*({message})") as caught:
        prism.read(folder(tmp_path, utterances=[*UTTERANCES[:7], last]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b"\xff", "not UTF-8"),
        (without(SURVEY[1], "user_id"), "missing field 'user_id'"),
        (changed(SURVEY[1], user_id="ana"), "duplicate user_id 'ana', also at .*survey.jsonl:1"),
        (changed(SURVEY[1], user_id=5), "'user_id' is a number"),
        (without(SURVEY[1], "location"), "missing field 'location'"),
        (changed(SURVEY[1], location={}), "missing field 'reside_country'"),
        (changed(SURVEY[1], location="Israel"), "'location' is a string"),
        (changed(SURVEY[1], location={"reside_country": 3}), "'reside_country' is a number"),
        (
            json.dumps(changed(SURVEY[1], location={"reside_country": "\ud800"})).encode(),
            "'reside_country' is not UTF-8",
        ),
    ],
)
def test_a_malformed_participant_stops_with_its_line(tmp_path, row, message):
    with pytest.raises(InputError, match=f"survey.jsonl:2: .*{message}"):
        prism.read(folder(tmp_path, survey=[SURVEY[0], row, *SURVEY[2:]]))


def test_huge_integers_are_scores(tmp_path):
    source = prism.read(folder(tmp_path, utterances=[*UTTERANCES[:7], changed(LAST, score=10**300)]))
    assert ids(source)[-1] == ("ut7", "ut6")


@pytest.mark.parametrize("break_it", ["survey", "utterances", "nothing"])
def test_an_unknown_group_is_reported_before_anything_else(tmp_path, break_it):
    survey = [SURVEY[0], b"{", *SURVEY[1:]] if break_it == "survey" else SURVEY
    folder(tmp_path, survey, [b"{"] if break_it == "utterances" else UTTERANCES)
    with pytest.raises(InputError, match='no group "Chlie"; there are "Chile", "Israel"'):
        prism.read(tmp_path, groups=("Israel", "Chlie"))


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(InputError, match="survey.jsonl does not exist"):
        prism.read(tmp_path)
    folder(tmp_path, utterances=[])
    with pytest.raises(InputError, match="utterances.jsonl is empty"):
        prism.read(tmp_path)
    (tmp_path / "utterances.jsonl").unlink()
    (tmp_path / "utterances.jsonl").mkdir()
    with pytest.raises(InputError, match="utterances.jsonl is a folder"):
        prism.read(tmp_path)
    folder(tmp_path / "utterances.jsonl", survey=[b"{"])
    with pytest.raises(InputError, match="survey.jsonl:1: not JSON"):
        prism.read(tmp_path / "utterances.jsonl", groups=("Chile",))


def test_split_pairs_and_ties_are_the_references(shared):
    expected = {name: json.loads((shared / "reference/expected" / f"{name}.json").read_text()) for name in (
        "config", "split", "pairs_train", "pairs_test",
    )}  # fmt: skip
    groups = tuple(expected["config"]["target_countries_in_order"])
    source = prism.read(shared / "reference/prism_like", groups=groups)
    table, split, summary = preferences.build(
        source, groups=groups, min_users=0, test_size=0.15, split_seed=0, max_dropped=0.0
    )
    assert (split["train"], split["test"]) == (expected["split"]["train"], expected["split"]["test"])
    assert list(summary["groups"]) == list(groups)
    rows = table.to_pylist()
    for group in groups:
        for name in ("train", "test"):
            pairs = [[r["chosen_id"], r["rejected_id"]] for r in rows if (r["group"], r["split"]) == (group, name)]
            assert pairs == expected[f"pairs_{name}"][group]["pairs"]
            assert summary["groups"][group][f"pairs_{name}"] == len(pairs)
            assert summary["groups"][group][f"ties_{name}"] == expected[f"pairs_{name}"][group]["n_ties_skipped"]


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def hub_cache(cache: pathlib.Path) -> pathlib.Path:
    """A cache folder of huggingface_hub that holds one commit of a data set."""
    repository = cache / "datasets--HannahRoseKirk--prism-alignment"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "snapshots" / COMMIT).mkdir(parents=True)
    return folder(repository / "snapshots" / COMMIT)


@pytest.mark.parametrize("revision", ["", "main", COMMIT])
def test_fetch_from_the_hub_cache_offline(tmp_path, revision):
    snapshot = hub_cache(tmp_path)
    script = f"from scpo_jax.data import prism; print(prism.fetch('HannahRoseKirk/prism-alignment', {revision!r}))"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)}
    root = pathlib.Path(__file__).resolve().parents[1]
    run = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=root, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == str(snapshot)


def test_fetch_of_what_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("HannahRoseKirk/prism-alignment", "no such/name at all", "-/-"):
        with pytest.raises(InputError, match=f"{name} is neither a local path nor") as caught:
            prism.fetch(name)
        assert "\n" not in str(caught.value)
    for name in (f"{tmp_path}/missing", "./missing", "a/b/c"):
        with pytest.raises(InputError, match=f"{name} does not exist"):
            prism.fetch(name)
    with pytest.raises(InputError, match="config.data.path is empty"):
        prism.fetch("")


def test_fetch_of_a_local_folder_and_of_a_file(tmp_path):
    assert str(prism.fetch(str(folder(tmp_path)))) == str(tmp_path)
    with pytest.raises(InputError, match="survey.jsonl is a file: give the folder"):
        prism.fetch(str(tmp_path / "survey.jsonl"))
