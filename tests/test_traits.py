"""Survey fields as traits of users: which are kept, and that they come back from disk."""

from scpo_jax.data import jsonl, prism, traits
from tests.run_helpers import write_rows


def test_records_of_users():
    records = [
        ("u1", {"age": " 18-24 ", "religion": {"simplified": "None"}, "text": "q1", "x": True, "y": ["a"]}),
        ("u1", {"age": "18-24", "religion": {"simplified": None}, "text": "q2", "note": "n" * 200}),
        ("u2", {"age": "", "mood": "good", "text": "q3", "odd": "\ud800"}),
    ]  # fmt: skip
    expected = {"u1": {"age": "18-24", "religion.simplified": "None", "x": "true"}, "u2": {"mood": "good"}}
    assert traits.of_records(records) == expected  # the text of u1 varies
    assert traits.of_records(records, without=("age", "mood"))["u2"] == {}


def test_categories_have_a_few_values_among_these_users():
    known = {f"u{i}": {"id": f"v{i}", "sex": "fm"[i % 2], "planet": "Earth"} for i in range(30)}
    known["x"] = {"planet": "Mars"}
    kept = traits.categories(known, [f"u{i}" for i in range(30)] + ["stranger"])
    assert kept["u1"] == {"sex": "m"} and kept["stranger"] == {} and "x" not in kept


def test_there_and_back(tmp_path):
    known = {"u1": {"a": "1", "b": "日本"}, "u2": {"a": "2"}}
    traits.write(known, tmp_path / "traits.parquet")
    assert traits.read(tmp_path / "traits.parquet") == known
    traits.write({}, tmp_path / "none.parquet")
    assert traits.read(tmp_path / "none.parquet") == traits.read(tmp_path / "absent.parquet") == {}


def test_adapters_hand_them_on(tmp_path):
    rows = [
        {"prompt": "p", "chosen": f"a{i}", "rejected": "b", "person": f"u{i % 2}", "faith": "xy"[i % 2], "id": str(i)}
        for i in range(6)
    ]
    source = jsonl.read(write_rows(tmp_path / "pairs.jsonl", rows), columns={"user_id": "person", "pair_id": "id"})
    assert source.traits == {"u0": {"faith": "x"}, "u1": {"faith": "y"}}
    (tmp_path / "prism").mkdir()
    survey = [{"user_id": "u1", "age": "old", "location": {"reside_country": "Chile"}}]
    write_rows(tmp_path / "prism" / "survey.jsonl", survey)
    utterance = {"user_id": "u1", "interaction_id": "i", "user_prompt": "p"}
    write_rows(
        tmp_path / "prism" / "utterances.jsonl",
        [utterance | {"utterance_id": f"t{i}", "model_response": f"r{i}", "score": i} for i in range(2)],
    )
    assert prism.read(tmp_path / "prism").traits == {"u1": {"age": "old", "location.reside_country": "Chile"}}
