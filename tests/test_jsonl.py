"""The adapter of users' own pairs: formats, derived ids, degenerate and malformed rows."""

import csv
import json
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scpo_jax.data import jsonl, preferences
from scpo_jax.errors import InputError

ROWS = [
    {"prompt": "Tea?", "chosen": "Yes", "rejected": "No", "group": "Chile", "user_id": "a"},
    {"prompt": "Rain?", "chosen": "No\u2028way", "rejected": "Yes", "group": "Israel", "user_id": "b"},
    {"prompt": "Tea?", "chosen": "No", "rejected": "Yes", "group": "Chile", "user_id": "b"},
]
TEXTS = [{"prompt": "Tea?", "chosen": "Yes", "rejected": "No"}, {"prompt": "Rain?", "chosen": "No", "rejected": "Yes"}]
USER = {"role": "user", "content": "Tea?"}
YES, NO = ({"role": "assistant", "content": text} for text in ("Yes", "No"))


def write(path: pathlib.Path, rows: list) -> pathlib.Path:
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def read(tmp_path, rows, **options):
    return jsonl.read(write(tmp_path / "pairs.jsonl", rows), **options)


def column(source, name: str) -> list:
    return [pair[name] for pair in source.pairs]


def test_strings_with_users_and_groups(tmp_path):
    source = read(tmp_path, ROWS)
    assert column(source, "prompt") == ["Tea?", "Rain?", "Tea?"]
    assert column(source, "chosen") == ["Yes", "No\u2028way", "No"]
    assert column(source, "group") == ["Chile", "Israel", "Chile"]
    assert source.units == ["a", "b"]
    assert source.unit_groups == {"a": "Chile", "b": ""}  # b is in two groups
    assert (source.groups, source.rows, source.dropped) == (["Chile", "Israel"], 3, {})


def test_derived_ids_are_unique_per_row_and_equal_for_equal_texts(tmp_path):
    first, second, third = read(tmp_path, ROWS).pairs
    assert len({pair["pair_id"] for pair in (first, second, third)}) == 3
    assert first["chosen_id"] == third["rejected_id"] != first["rejected_id"] == third["chosen_id"]
    assert first["rejected_id"] != second["rejected_id"]
    assert first["interaction_id"] == third["interaction_id"] != second["interaction_id"]


def test_without_users_the_unit_of_the_split_is_the_prompt(tmp_path):
    source = read(tmp_path, [*TEXTS, TEXTS[0]])
    assert len(source.units) == 2
    assert source.pairs[0]["user_id"] == source.pairs[2]["user_id"] != source.pairs[1]["user_id"]


def test_given_ids_and_margin_are_kept_and_whole_numbers_become_text(tmp_path):
    ids = {"user_id": 7, "interaction_id": "i", "pair_id": "p", "chosen_id": "c", "rejected_id": "r"}
    source = read(tmp_path, [TEXTS[0] | ids | {"margin": 2}, TEXTS[1] | ids | {"pair_id": "q", "margin": None}])
    assert {name: source.pairs[0][name] for name in ids} == ids | {"user_id": "7"}
    assert column(source, "margin") == [2.0, None]


def test_groups_by_own_field_by_another_and_by_none(tmp_path):
    rows = [row | {"meta": {"age": age}} for row, age in zip(ROWS, (30, None, 41), strict=True)]
    assert column(read(tmp_path, rows, group_by="meta.age"), "group") == ["30", "", "41"]
    assert read(tmp_path, rows, group_by="meta.age").counted["rows_without_group"] == 1
    assert column(read(tmp_path, rows, group_by="none"), "group") == ["all"] * 3
    ungrouped = read(tmp_path, TEXTS)
    assert column(ungrouped, "group") == ["all"] * 2 and ungrouped.counted["rows_without_group_field"] == 2
    with pytest.raises(InputError, match="no field 'age'.* can be chosen, group, meta.age"):
        read(tmp_path, rows, group_by="age")


def test_columns_map_our_names_to_the_files(tmp_path):
    rows = [{"question": "Tea?", "good": "Yes", "bad": "No", "country": "Chile", "rater": "a"}]
    columns = {"prompt": "question", "chosen": "good", "rejected": "bad", "group": "country", "user_id": "rater"}
    source = read(tmp_path, rows, columns=columns)
    assert source.pairs[0]["prompt"] == "Tea?"
    assert (source.units, source.groups) == (["a"], ["Chile"])
    assert column(read(tmp_path, ROWS, columns={name: name for name in jsonl.NAMES}), "user_id") == ["a", "b", "b"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"promt": "question"}, "unknown promt; it maps prompt, chosen"),
        ({"user_id": "annotatr"}, "no column 'annotatr', which config.data.columns gives for user_id"),
        ({"group": "cuontry"}, "no field 'cuontry'"),
    ],
)
def test_misspelt_columns_are_errors(tmp_path, columns, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path, ROWS, columns=columns)


def test_csv_and_parquet_give_the_same_as_json_lines(tmp_path):
    expected = read(tmp_path, [row | {"margin": 0.5} for row in ROWS])
    rows = [row | {"margin": 0.5} for row in ROWS]
    with open(tmp_path / "pairs.csv", "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    assert jsonl.read(tmp_path / "pairs.csv") == expected
    assert jsonl.read(tmp_path / "pairs.parquet") == expected


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER], "chosen": "Yes", "rejected": "No"},
        {"prompt": [USER], "chosen": [YES], "rejected": [NO]},
        {"chosen": [USER, YES], "rejected": [USER, NO]},
        {"prompt": [USER], "chosen": [USER, YES], "rejected": [USER, NO]},
        {"prompt": "Tea?", "chosen": [USER, YES], "rejected": [USER, NO]},
        {"prompt": "", "chosen": [USER, YES], "rejected": [USER, NO]},
    ],
)
def test_trl_conversations(tmp_path, row):
    source = read(tmp_path, [row, TEXTS[1]])  # messages and strings may be mixed
    assert {name: source.pairs[0][name] for name in ("prompt", "messages", "chosen", "rejected")} == {
        "prompt": "user: Tea?", "messages": [USER], "chosen": "Yes", "rejected": "No",
    }  # fmt: skip
    assert source.pairs[1]["messages"] is None


def test_what_both_conversations_share_belongs_to_the_prompt(tmp_path):
    system = {"role": "system", "content": "Be brief."}
    source = read(tmp_path, [{"prompt": [system], "chosen": [USER, YES], "rejected": [USER, NO]}])
    assert source.pairs[0]["prompt"] == "system: Be brief.\nuser: Tea?"


def test_messages_in_parquet(tmp_path):
    pq.write_table(pa.Table.from_pylist([{"chosen": [USER, YES], "rejected": [USER, NO]}]), tmp_path / "p.parquet")
    assert jsonl.read(tmp_path / "p.parquet").pairs[0]["messages"] == [USER]


def test_degenerate_rows_are_dropped_and_counted_but_their_users_are_split(tmp_path):
    rows = [
        *ROWS,
        ROWS[0] | {"chosen": " \n", "user_id": "c"},
        ROWS[0] | {"rejected": ""},
        ROWS[0] | {"chosen": "No"},
        ROWS[0] | {"prompt": " "},
    ]
    source = read(tmp_path, rows)
    assert source.dropped == {"empty_response": 2, "equal_responses": 1}
    assert source.counted["empty_prompts"] == 1
    assert (len(source.pairs), source.rows, source.units) == (4, 7, ["a", "b", "c"])
    with pytest.raises(InputError, match="3 of 7 rows are unusable .2 empty_response, 1 equal_responses"):
        preferences.build(source, groups=(), min_users=0, test_size=0.2, split_seed=0, max_dropped=0.2)


GOOD = ROWS[0] | {"pair_id": "p", "margin": 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (b"{not json", "not JSON"),
        (b"[1]", "this line is a list"),
        (b'{"prompt": "\xff"}', "not UTF-8"),
        (b'{"margin": NaN}', "NaN is no JSON number"),
        ({"prompt": ...}, "missing field 'prompt'"),
        ({"chosen": ...}, "missing field 'chosen'"),
        ({"rejected": ...}, "missing field 'rejected'"),
        ({"group": ...}, "missing field 'group'"),
        ({"user_id": ...}, "missing field 'user_id'"),
        ({"pair_id": ...}, "missing field 'pair_id'"),
        ({"prompt": 5}, "'prompt' is a number"),
        ({"chosen": None}, "'chosen' is null"),
        ({"rejected": {"text": "No"}}, "'rejected' is an object"),
        ({"chosen": "\ud83d"}, "'chosen' is not UTF-8"),
        ({"group": "\ud83d"}, "'group' is not UTF-8"),
        ({"user_id": True}, "'user_id' is a boolean"),
        ({"user_id": ""}, "'user_id' is empty"),
        ({"pair_id": "p"}, "duplicate pair_id 'p', also at .*pairs.jsonl:1"),
        ({"margin": "wide"}, "'margin' is 'wide'"),
        ({"margin": True}, "'margin' is a boolean"),
        ({"margin": 10**400}, "'margin' is 1000"),
        ({"prompt": []}, "'prompt' is an empty list"),
        ({"prompt": ["Tea?"]}, "a message in 'prompt' is a string"),
        ({"prompt": [{"role": "user"}]}, "missing field 'content'"),
        ({"prompt": [{"role": "user", "content": ["Tea?"]}]}, "'content' is a list"),
        ({"chosen": [USER]}, "the last message of 'chosen' is by 'user'"),
        ({"chosen": [USER, YES], "rejected": [NO]}, "differ before their last message"),
    ],
)
def test_a_malformed_row_stops_with_its_line_and_after_unknown_groups(tmp_path, changes, message):
    row = changes
    if isinstance(changes, dict):
        changed = GOOD | {"pair_id": "q"} | changes
        row = {name: value for name, value in changed.items() if value is not ...}
    with pytest.raises(InputError, match=f"pairs.jsonl:2: .*{message}") as caught:
        read(tmp_path, [GOOD, row])
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match='no group "Peru"'):
        read(tmp_path, [GOOD, row], groups=("Peru",))


def test_a_group_that_only_a_later_row_names_is_known(tmp_path):
    with pytest.raises(InputError, match="pairs.jsonl:2: not JSON"):
        read(tmp_path, [GOOD, b"{", ROWS[1]], groups=("Israel",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"prompt,chosen,rejected\n", "is empty"),
        (b"prompt,chosen\nTea?,Yes\n", "csv:2: missing field 'rejected'"),
        (b"prompt,chosen,rejected\nTea?,Yes,No\nTea?,Yes\n", "csv:3: 2 cells, but the header has 3"),
        (
            b'prompt,chosen,rejected,note\n"Tea\nor not?",Yes,No,\nTea?,Yes,No,\xff\n',
            "csv:4: field 'note' is not UTF-8",
        ),
        (b"prompt,chosen,chosen\nTea?,Yes,No\n", "csv:1: the header names .'chosen'. more than once"),
        (b'prompt,chosen,rejected\n"Tea?,Yes,No\n', "csv:2: not CSV"),
        (b"prompt,chosen,rejected,margin\nTea?,Yes,No,nan\n", "csv:2: field 'margin' is nan"),
    ],
)
def test_malformed_csv(tmp_path, content, message):
    (tmp_path / "pairs.csv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        jsonl.read(tmp_path / "pairs.csv")


def test_malformed_parquet(tmp_path):
    (tmp_path / "pairs.parquet").write_bytes(b"PAR1 or not")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        jsonl.read(tmp_path / "pairs.parquet")
    pq.write_table(pa.Table.from_pylist([ROWS[0], ROWS[0] | {"chosen": None}]), tmp_path / "pairs.parquet")
    with pytest.raises(InputError, match="pairs.parquet: row 2: field 'chosen' is null"):
        jsonl.read(tmp_path / "pairs.parquet")


def test_missing_file_folder_and_blank_file(tmp_path):
    with pytest.raises(InputError, match="missing.jsonl does not exist"):
        jsonl.read(tmp_path / "missing.jsonl")
    with pytest.raises(InputError, match="no file is named"):
        jsonl.read("")
    with pytest.raises(InputError, match="is a folder: give the file"):
        jsonl.read(tmp_path)
    with pytest.raises(InputError, match="is empty"):
        read(tmp_path, [b"", b"  "])


def test_real_pairs_are_split_by_user(shared):
    source = jsonl.read(shared / "data/prism_pairs/pairs.jsonl", group_by="none")
    table, split, summary = preferences.build(
        source, groups=(), min_users=0, test_size=0.15, split_seed=0, max_dropped=0.0
    )
    assert (summary["rows"], table.num_rows, len(split["train"]), len(split["test"])) == (5104, 5104, 149, 27)
    users = {name: {r["user_id"] for r in table.to_pylist() if r["split"] == name} for name in ("train", "test")}
    assert not users["train"] & users["test"]
