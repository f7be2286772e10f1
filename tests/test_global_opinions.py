"""GlobalOpinionQA: pairs from shares, batteries, countries' spellings, options without substance."""

import csv
import itertools
import pathlib

import pytest

from scpo_jax.data import global_opinions, preferences
from scpo_jax.data.survey_options import without_substance
from scpo_jax.errors import InputError

WORRIED = ["Very", "Somewhat", "Not at all", "DK/Refused"]
BEGINNING = "Please tell me how worried you are about each of these things, "


def row(question: str, selections: dict | str, options: list | str = WORRIED) -> list[str]:
    spelt = selections if isinstance(selections, str) else f"defaultdict(<class 'list'>, {selections})"
    return [question, spelt, str(options), "GAS"]


def write(path: pathlib.Path, *rows: list[str], header=("question", "selections", "options", "source")) -> pathlib.Path:
    with open(path / "opinions.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path / "opinions.csv"


def test_the_more_popular_option_of_enough_distance_is_chosen(tmp_path):
    # Without the last option the shares are 0.5, 0.45, 0.05.
    path = write(tmp_path, row(" How worried\nare you? ", {"Chile": [0.4, 0.36, 0.04, 0.2]}))
    source = global_opinions.read(path)
    assert [(pair["chosen"], pair["rejected"]) for pair in source.pairs] == [
        ("Very", "Not at all"),
        ("Somewhat", "Not at all"),
    ]
    pair = source.pairs[0]
    question = pair["interaction_id"]
    assert pair["prompt"] == "How worried\nare you?" and pair["group"] == "Chile"
    assert (pair["chosen_id"], pair["rejected_id"]) == (f"{question}.0", f"{question}.2")
    assert source.units == [pair["user_id"]] and source.unit_groups == {pair["user_id"]: ""}
    assert len(global_opinions.read(path, min_gap=0.05).pairs) == 3
    assert len(global_opinions.read(path, min_gap=0.46).pairs) == 0


@pytest.mark.filterwarnings("error")
def test_a_lone_backslash_stays_one_and_nothing_is_said(tmp_path):
    source = global_opinions.read(write(tmp_path, row("Q?", {"Chile": [0.7, 0.3]}, r"['A\Y', 'B']")))
    assert [pair["chosen"] for pair in source.pairs] == [r"A\Y"]


def test_a_gap_of_exactly_the_least_counts(tmp_path):
    path = write(tmp_path, row("Q?", {"Chile": [0.35, 0.25, 0.4]}, ["A", "B", "C"]))
    chosen = {(pair["chosen"], pair["rejected"]) for pair in global_opinions.read(path, min_gap=0.1).pairs}
    assert chosen == {("A", "B"), ("C", "B")}


def test_pairs_of_a_cell_are_drawn_alike_for_all_countries_and_not_by_share(tmp_path):
    options = [f"Option {i}" for i in range(8)]
    rising = [0.01, 0.04, 0.07, 0.10, 0.13, 0.17, 0.21, 0.27]
    path = write(tmp_path, row("Which?", {"Chile": rising, "Peru": rising[::-1]}, options))
    pairs = global_opinions.read(path, min_gap=0.001, max_pairs=6).pairs
    drawn = {country: {frozenset((pair["chosen"], pair["rejected"])) for pair in pairs if pair["group"] == country}
             for country in ("Chile", "Peru")}  # fmt: skip
    assert len(drawn["Chile"]) == 6 and drawn["Chile"] == drawn["Peru"]
    assert drawn["Chile"] != {frozenset(two) for two in list(itertools.combinations(options, 2))[:6]}
    assert all(pair["chosen"] > pair["rejected"] for pair in pairs if pair["group"] == "Chile")
    assert global_opinions.read(path, min_gap=0.001, max_pairs=6).pairs == pairs
    assert len({pair["pair_id"] for pair in pairs}) == 12


def test_a_battery_is_one_unit_also_where_a_wave_has_no_dont_know(tmp_path):
    path = write(
        tmp_path,
        row(BEGINNING + "crime", {"Chile": [0.6, 0.3, 0.05, 0.05]}),
        row(BEGINNING + "war", {"Chile": [0.6, 0.3, 0.1]}, WORRIED[:3]),
        row(BEGINNING + "war", {"Chile": [0.6, 0.4]}, ["Yes", "No"]),
        row("Another question", {"Chile": [0.6, 0.3, 0.05, 0.05]}),
    )
    source = global_opinions.read(path)
    units = {pair["interaction_id"]: pair["user_id"] for pair in source.pairs}
    crime, war, yes_no, another = units.values()
    assert crime == war and len({war, yes_no, another}) == 3
    assert source.units == [crime, yes_no, another]


def test_spellings_and_samples_of_a_country_are_one_group(tmp_path):
    selections = {
        "China": [0.9, 0.1],
        "China (Non-national sample)": [0.1, 0.9],
        "Great Britain": [0.9, 0.1],
        "India (Non-national sample)": [0.1, 0.9],
        "India (Old national sample)": [0.1, 0.9],
        "India (Current national sample)": [0.9, 0.1],
        "Angola (Non-national sample)": [0.9, 0.1],
    }
    source = global_opinions.read(write(tmp_path, row("Q?", selections, ["A", "B"])), groups=("Britain", "Angola"))
    assert [(pair["group"], pair["chosen"]) for pair in source.pairs] == [
        ("China", "A"), ("Britain", "A"), ("India", "A"), ("Angola", "A"),
    ]  # fmt: skip
    assert source.counted["other_samples"] == 3
    assert source.groups == ["Angola", "Britain", "China", "India"]
    for spelling, name in [("S. Korea", "South Korea"), ("Czech Rep.", "Czechia"), ("Taiwan ROC", "Taiwan")]:
        assert global_opinions.read(write(tmp_path, row("Q?", {spelling: [0.9, 0.1]}, ["A", "B"]))).groups == [name]


def test_unusable_cells_are_dropped_by_reason(tmp_path):
    path = write(
        tmp_path,
        row("Q1?", {"Chile": [0.0, 0.0, 1.0], "Peru": [0.5, 0.5], "Kenya": [1, 0, 0]}, ["A", "B", "Refused"]),
        row("Q2?", {"Chile": [0.5, 0.5]}, ["A", "Don't know"]),
        row("Q1?", {"Kenya": [0, 1, 0]}, ["A", "B", "Refused"]),
        row("Q3?", {"Chile": [0.5, 0.5]}, [1.0, 2.0]),
    )
    source = global_opinions.read(path)
    assert source.dropped == {
        "zero_total": 1, "shares_unlike_options": 1, "fewer_than_two_options": 1, "repeated_cell": 1,
    }  # fmt: skip
    assert source.rows == 6 and source.counted["cells_without_pair"] == 1
    assert [(pair["group"], pair["chosen"]) for pair in source.pairs] == [("Kenya", "A")]


def test_numeric_options_become_text_and_one_group(tmp_path):
    path = write(tmp_path, row("Q?", {"Chile": [0.9, 0.1], "Peru": [0.9, 0.1]}, [1.0, 2.0]))
    source = global_opinions.read(path, group_by="none")
    assert [(pair["group"], pair["chosen"]) for pair in source.pairs] == [("all", "1.0")] * 2
    assert list(source.unit_groups.values()) == source.groups == ["all"]
    with pytest.raises(InputError, match="group_by='age'"):
        global_opinions.read(path, group_by="age")


@pytest.mark.parametrize("option", [
    "DK/Refused", "Don't know", "don’t know", "DON'T KNOW/REFUSED", "No answer", "No answer/refused", "Refused (DK)",
    "Other missing; Multiple answers Mail (EVS)", "Missing; Not available", "INAP: No internet", "Hard to say",
    "Both (VOL)", "Same (VOL.)", "Neither/Both equally (Vol.)", "Other (DO NOT READ)", "Never heard of",
    "No difference [ONLY IF VOLUNTEERED]", "Don't -9:-2", "Total          N=", "", "Don't know / No opinion",
])  # fmt: skip
def test_options_without_substance(option):
    assert without_substance(option)


@pytest.mark.parametrize("option", [
    "No, I do not know anyone", "No, have not heard of it", "Not mentioned", "Neither", "Both", "None of them", "Other",
    "Depends", "Not at all", "Don't want to help", "Refused to help the poor", "Missing school often", "Volunteer",
    "Don't mind", "Not applicable to our country", "No opinion polls before elections", "1.0",
])  # fmt: skip
def test_options_of_substance(option):
    assert not without_substance(option)


FINE = row("Q?", {"Chile": [0.9, 0.1]}, ["A", "B"])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row("Q?", "defaultdict(<class 'list'>, {'Chile': [0.9, 0.1]"), "'selections' is no Python dict"),
        (row("Q?", "{'Chile': [nan, 0.1]}"), "'selections' is no Python dict"),
        (row("Q?", "__import__('os').getcwd()"), "'selections' is no Python dict"),
        (row("Q?", "[0.9, 0.1]"), "'selections' is a list"),
        (row("Q?", {"Chile": [0.9, -0.1]}), "selections of 'Chile'"),
        (row("Q?", "{'Chile': [1e999, 0.1]}"), "selections of 'Chile'"),
        (row("Q?", {"Chile": [0.9, "0.1"]}), "selections of 'Chile'"),
        (row("Q?", {"Chile": 0.9}), "selections of 'Chile'"),
        (row("Q?", {1: [0.9, 0.1]}), "selections of 1"),
        (row("Q?", {"Chile": [0.9, 0.1]}, "A, B"), "'options' is no Python list"),
        (row("Q?", {"Chile": [0.9, 0.1]}, "['\\ud800', 'B']"), "'options' is not UTF-8"),
        (row(" ", {"Chile": [0.9, 0.1]}, ["A", "B"]), "'question' is empty"),
        (["Q?"], "1 cells, but the header has 4"),
    ],
)
def test_a_malformed_row_stops_with_its_line_and_after_unknown_groups(tmp_path, bad, message):
    path = write(tmp_path, FINE, bad, FINE)
    with pytest.raises(InputError, match=f"opinions.csv:3: .*{message}") as caught:
        global_opinions.read(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match='no group "Chlie"; there are "Chile"'):
        global_opinions.read(path, groups=("Chlie",))


def test_a_missing_column_and_an_empty_file(tmp_path):
    with pytest.raises(InputError, match="opinions.csv:2: missing field 'selections'"):
        global_opinions.read(write(tmp_path, FINE, header=("question", "choices", "options", "source")))
    with pytest.raises(InputError, match="is empty"):
        global_opinions.read(write(tmp_path))


def test_fetch_from_a_file_a_folder_and_the_hub_cache(tmp_path, monkeypatch):
    repository = tmp_path / "hub" / "datasets--Anthropic--llm_global_opinions"
    snapshot = repository / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    (snapshot / "data").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    path = write(snapshot / "data", FINE)
    assert str(global_opinions.fetch(str(path))) == str(global_opinions.fetch(str(snapshot))) == str(path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert str(global_opinions.fetch("Anthropic/llm_global_opinions")) == str(path)
    with pytest.raises(InputError, match="holds 0 csv files"):
        global_opinions.fetch(str(repository / "refs"))


def test_the_shared_file(shared):
    source = global_opinions.read(
        shared / "data/global_opinions/global_opinions.csv", groups=("Britain", "South Korea")
    )
    assert (source.rows, len(source.units), source.dropped) == (8964 - 71, 791, {})
    table, split, summary = preferences.build(
        source, groups=("Germany", "Turkey"), min_users=0, test_size=0.15, split_seed=0, max_dropped=0.0
    )
    assert len(split["test"]) == 119
    assert summary["groups"]["Germany"]["pairs_train"] > 4 * summary["groups"]["Germany"]["pairs_test"] > 400
    batteries = {name: {r["user_id"] for r in table.to_pylist() if r["split"] == name} for name in ("train", "test")}
    assert not batteries["train"] & batteries["test"]
    assert not any(without_substance(row["chosen"]) for row in table.to_pylist())
