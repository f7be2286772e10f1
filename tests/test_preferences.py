"""The table of preferences, the split, names of groups and their slugs."""

import re

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scpo_jax.data import preferences
from scpo_jax.data.preferences import Source
from scpo_jax.errors import InputError

NAMES = st.text(max_size=80) | st.sampled_from(["..", "/", "a/../b", "A", "a", "Ä", "日本", "中国", "x" * 300])


def pair(pair_id: str, group: str, user: str, **more) -> dict:
    texts = {"prompt": "Why?", "chosen": "Because.", "rejected": "No.", "chosen_id": "c", "rejected_id": "r"}
    return {"pair_id": pair_id, "group": group, "user_id": user, "interaction_id": "i", **texts, **more}


def source(**changes) -> Source:
    """Ten users; the even ones live in Chile, the odd ones in Israel, nobody in Peru; user u0 has no pair."""
    units = [f"u{i}" for i in range(10)]
    unit_groups = {unit: ("Chile", "Israel")[i % 2] for i, unit in enumerate(units)}
    pairs = [pair(f"p-{unit}", unit_groups[unit], unit) for unit in units[1:]]
    fields = {"pairs": pairs, "units": units, "unit_groups": unit_groups, "groups": ["Chile", "Israel", "Peru"]}
    return Source(**(fields | {"rows": 20, "dropped": {}, "counted": {}, "ties": {"u0": 2, "u1": 3}} | changes))


def build(made: Source, **changes):
    defaults = {"groups": (), "min_users": 0, "test_size": 0.2, "split_seed": 0, "max_dropped": 0.2}
    return preferences.build(made, **(defaults | changes))


@given(st.lists(st.uuids().map(str), max_size=50, unique=True), st.floats(0, 0.99), st.integers(0, 2**32))
def test_split_is_disjoint_complete_and_numpys(units, test_size, seed):
    train, test = preferences.split_units(units, test_size, seed)
    order = [units[i] for i in np.random.default_rng(seed).permutation(len(units))]
    assert test + train == order
    assert len(test) == int(np.ceil(test_size * len(units)))


def test_split_is_that_of_datasets():
    datasets = pytest.importorskip("datasets")
    units = [f"u{i}" for i in range(161)]
    expected = datasets.Dataset.from_dict({"u": units}).train_test_split(test_size=0.15, seed=7)
    assert preferences.split_units(units, 0.15, 7) == (list(expected["train"]["u"]), list(expected["test"]["u"]))


@pytest.mark.parametrize("test_size", [-0.1, 1, 1.5, float("nan")])
def test_split_refuses_what_is_no_share(test_size):
    with pytest.raises(InputError, match="test_size"):
        preferences.split_units(["a", "b"], test_size, 0)


def test_table_keeps_file_order_and_the_split_of_all_users():
    table, split, _ = build(source(), groups=("Israel",))
    expected_train, expected_test = preferences.split_units(source().units, 0.2, 0)
    assert (split["train"], split["test"]) == (expected_train, expected_test)
    assert table.column_names == list(preferences.TEXT_COLUMNS)
    assert table["pair_id"].to_pylist() == ["p-u1", "p-u3", "p-u5", "p-u7", "p-u9"]
    assert all(row["split"] == ("test" if row["user_id"] in expected_test else "train") for row in table.to_pylist())


def test_summary_counts_by_group_and_names_the_empty_ones():
    _, split, summary = build(source(dropped={"empty_response": 1}, counted={"equal_texts": 4}))
    assert (summary["rows"], summary["pairs"]) == (20, 9)
    assert summary["dropped"] == {"empty_response": 1} and summary["counted"] == {"equal_texts": 4}
    assert list(summary["groups"]) == ["Chile", "Israel", "Peru"]
    chile = summary["groups"]["Chile"]
    assert chile["users_train"] + chile["users_test"] == 5
    assert chile["pairs_train"] + chile["pairs_test"] == 4
    assert chile["ties_test" if "u0" in split["test"] else "ties_train"] == 2
    assert summary["without_users"] == ["Peru"]
    assert "Peru" in summary["without_train_pairs"] and "Peru" in summary["without_test_pairs"]


def test_min_users_leaves_out_small_groups_unless_named():
    few = source(unit_groups={f"u{i}": "Israel" if i == 1 else "Chile" for i in range(10)}, pairs=[
        pair("p1", "Israel", "u1"), pair("p2", "Chile", "u2"),
    ])  # fmt: skip
    assert list(build(few, min_users=2)[2]["groups"]) == ["Chile"]
    assert list(build(few, min_users=2, groups=("Israel", "Chile"))[2]["groups"]) == ["Israel", "Chile"]


def test_pairs_without_group_stay_out():
    table, _, _ = build(source(pairs=[pair("p1", "", "u1"), pair("p2", "Chile", "u2")]))
    assert table["pair_id"].to_pylist() == ["p2"]


def test_margin_and_messages_are_columns_only_if_there_are_any():
    messages = [{"role": "user", "content": "Why?"}]
    pairs = [pair("p1", "Chile", "u2", margin=0.5, messages=None), pair("p2", "Chile", "u4", messages=messages)]
    table, _, _ = build(source(pairs=pairs))
    assert table["margin"].to_pylist() == [0.5, None]
    assert table["messages"].to_pylist() == [None, messages]


def test_too_many_dropped_rows_stop_with_the_reasons():
    made = source(dropped={"empty_response": 3, "equal_responses": 2})
    with pytest.raises(InputError, match=r"5 of 20 .*3 empty_response, 2 equal_responses.*max_dropped=0.2"):
        build(made)
    build(made, max_dropped=0.25)


def test_an_unknown_group_comes_before_dropped_rows():
    with pytest.raises(InputError, match='no group "Chlie"; there are "Chile", "Israel", "Peru"'):
        build(source(dropped={"empty_response": 20}), groups=("Chlie",))


def test_repeated_pair_ids_and_no_pairs_are_errors():
    with pytest.raises(InputError, match="id 'p'"):
        build(source(pairs=[pair("p", "Chile", "u2"), pair("p", "Chile", "u4")]))
    with pytest.raises(InputError, match="no preference pairs"):
        build(source(), groups=("Peru",))


def test_check_groups_lists_the_similar_first_and_not_all_of_hundreds():
    existing = [f"group {i:03}" for i in range(200)] + ["zimbabwe"]
    with pytest.raises(InputError) as caught:
        preferences.check_groups(["zimbabwee", "group 001"], existing)
    message = str(caught.value)
    assert 'no group "zimbabwee"; there are "zimbabwe",' in message and "and 171 more" in message
    assert "\n" not in message
    preferences.check_groups([], existing)


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ((), ()),
        ("Chile,Mexico", ("Chile", "Mexico")),
        (("Chile, Mexico,", " Israel ", "Chile"), ("Chile", "Mexico", "Israel")),
        (('"Unemployed, seeking work",Retired',), ("Unemployed, seeking work", "Retired")),
        (('"Chile', "Mexico"), ("Chile", "Mexico")),
        (("", ","), ()),
    ],
)
def test_group_names_split_at_commas(value, names):
    assert preferences.group_names(value) == names


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        ("South Africa", "south-africa"),
        ("Côte d'Ivoire", "cote-d-ivoire"),
        ("  Türkiye/../.. ", "turkiye"),
        ("18-24 years old", "18-24-years-old"),
    ],
)
def test_slug_of_ordinary_names(group, expected):
    assert preferences.slug(group) == expected


@pytest.mark.parametrize("group", ["日本 2", "Łódź", "..", "x" * 300, "x-0123abcd"])
def test_slug_of_a_name_that_would_not_do_ends_in_a_hash(group):
    assert re.search("-[0-9a-f]{8}$", preferences.slug(group))
    assert preferences.slug(group) != group


@given(NAMES)
def test_slug_is_a_safe_folder_name(group):
    assert re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", preferences.slug(group))
    assert len(preferences.slug(group)) <= 60


@given(st.lists(NAMES, unique=True, max_size=12))
@example(["A", "a", f"a-{preferences.slugs(['A', 'a'])['A'][2:]}"])
@example(["Россия", "Украина", "..", "/", "日本 2", "2"])
def test_slugs_are_unique_and_depend_on_names_only(groups):
    made = preferences.slugs(groups)
    assert len(set(made.values())) == len(groups)
    assert made == preferences.slugs(groups[::-1])
    assert all(re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", name) for name in made.values())


def test_table_round_trip_leaves_no_other_file(tmp_path):
    table, _, _ = build(source(pairs=[pair("p", "Chile", "u2", chosen="Māori\u2028שלום 🙂")]))
    preferences.write_table(table, tmp_path / "data" / "pairs.parquet")
    assert preferences.read_table(str(tmp_path / "data" / "pairs.parquet")).equals(table)
    assert [file.name for file in (tmp_path / "data").iterdir()] == ["pairs.parquet"]


def test_an_unreadable_table_is_an_input_error(tmp_path):
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    for name in ("missing.parquet", "broken.parquet"):
        with pytest.raises(InputError, match=name):
            preferences.read_table(tmp_path / name)
