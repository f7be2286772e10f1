"""Steering profiles: how they are read, what blends are, and scoring, evaluating and exporting by one."""

import json

import jax
import numpy as np
import pytest

from scpo_jax import checkpoint, judge, steering
from scpo_jax.errors import InputError
from tests.run_helpers import GROUPS, pairs, read_rows, refusal, scpo, write_rows

KNOWN = ("Chile", "Mexico", "New Zealand", "a=b, c")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}", {}),
        ('{"Mexico": 0.3, "Chile": 1}', {"Chile": 1.0, "Mexico": 0.3}),
        (" Chile=0.7, Mexico = 3e-1 ", {"Chile": 0.7, "Mexico": 0.3}),
        ("New Zealand=-0.5", {"New Zealand": -0.5}),
        ('{"a=b, c": 1.5, "Chile": 0}', {"a=b, c": 1.5}),
        ("Chile=0", {}),
    ],
)
def test_profiles(text, expected):
    found = steering.parse(text, KNOWN)
    assert found == expected and list(found) == sorted(found)
    assert all(isinstance(strength, float) for strength in found.values())


@pytest.mark.parametrize("content", ['{"Chile": 0.5}', '{"profile": {"Chile": 0.5}, "method": "scpo"}'])
@pytest.mark.parametrize("form", ["{}", "@{}"])
def test_profiles_in_files(content, form, tmp_path):
    (tmp_path / "profile.json").write_text(content)
    assert steering.parse(form.format(tmp_path / "profile.json"), KNOWN) == {"Chile": 0.5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Chlie=1", 'there is no group "Chlie"; there are "Chile", '),
        ("chile=1", 'there is no group "chile"; there are "Chile", '),
        ("Chile=1,Chile=0.5", "it names 'Chile' twice"),
        ('{"Chile": 1, "Chile": 1}', "it names 'Chile' twice"),
        ("Chile=much", "the strength of 'Chile' is 'much', not a number"),
        ("Chile=", "the strength of 'Chile' is '', not a number"),
        ("Chile=nan", "the strength of 'Chile' is nan: it has to be from -100 to 100"),
        ("Chile=101", "the strength of 'Chile' is 101.0: it has to be"),
        ("Chile=0.5,Mexico", "'Mexico' is no GROUP=STRENGTH"),
        ("=1", "'=1' is no GROUP=STRENGTH"),
        ('{"Chile": NaN}', "NaN is no JSON number"),
        ('{"Chile": 1e999}', "is inf: it has to be"),
        ('{"Chile": 1' + "0" * 400 + "}", "it has to be from -100 to 100"),
        ('{"Chile": "1"}', "the strength of 'Chile' is a string, not a number"),
        ('{"Chile": true}', "the strength of 'Chile' is a boolean, not a number"),
        ('{"Chile": null}', "the strength of 'Chile' is null, not a number"),
        ('{"profile": 1}', 'there is no group "profile"'),
        ("{oops", "not a profile in JSON"),
        ("Chile", "--profile=Chile: neither a file that can be read"),
        ("@nothing=1.json", "--profile=nothing=1.json: neither a file"),
        ("", "--profile=: neither a file"),
        ("x" * 5000, "neither a file"),
    ],
)
def test_what_is_no_profile(text, message):
    with pytest.raises(InputError) as raised:
        steering.parse(text, KNOWN)
    assert message in str(raised.value)


def test_files_that_are_no_profile(tmp_path):
    path = tmp_path / "profile.json"
    for content, message in ((b"[1]", "a list is no profile"), (b"\xff", "neither a file"), (b'{"x": 1}', 'group "x"')):
        path.write_bytes(content)
        with pytest.raises(InputError) as raised:
            steering.parse(str(path), KNOWN)
        assert message in str(raised.value) and str(path) in str(raised.value)


def tree(seed):
    rng = np.random.default_rng(seed)
    return {"a": rng.standard_normal((5, 3)).astype(np.float32), "b": {"c": rng.standard_normal(4).astype(np.float32)}}


def same(tree, other):
    return jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(np.asarray(a), np.asarray(b)), tree, other))


def test_blends_against_the_formula():
    start, groups = tree(0), {"Chile": tree(1), "Mexico": tree(2)}
    profile = {"Mexico": 0.9, "Chile": -0.4}
    found = steering.blend(start, profile, groups.__getitem__)
    for get in (lambda t: t["a"], lambda t: t["b"]["c"]):
        own = [np.float64(get(groups[name])) for name in profile]
        expected = (1 - 0.9 + 0.4) * np.float64(get(start)) + 0.9 * own[0] - 0.4 * own[1]
        assert get(found).dtype == np.float32
        np.testing.assert_allclose(np.asarray(get(found)), expected, rtol=0, atol=1e-6)
    backwards = steering.blend(start, dict(reversed(profile.items())), groups.__getitem__)
    assert same(found, backwards)


def test_the_ends_of_a_blend_are_the_models_themselves():
    start, own = tree(0), tree(1)
    assert steering.blend(start, {}, None) is start and steering.blend(start, {"Chile": 0.0}, None) is start
    assert steering.blend(start, {"Chile": 1.0, "Mexico": 0.0}, {"Chile": own}.__getitem__) is own


def test_linear_models_blend_alike_in_both_spaces():
    start, groups, x = tree(0), {"Chile": tree(1), "Mexico": tree(2)}, tree(3)["a"]
    profile = {"Chile": 0.8, "Mexico": 0.7}
    scores = {name: (x * own["a"]).sum(1) for name, own in groups.items()}
    expected = steering.blend_scores((x * start["a"]).sum(1), scores, profile)
    blended = steering.blend(start, profile, groups.__getitem__)
    np.testing.assert_allclose((x * np.asarray(blended["a"])).sum(1), expected, rtol=0, atol=1e-5)


def as_flag(profile: dict) -> str:
    return f"--profile={json.dumps(profile)}"


@pytest.fixture(scope="module")
def rows():
    return [row | {"group": group} for row in pairs()[:6] for group in (*GROUPS[:2], "nobody")]


def scores_of(model, rows, folder, *flags) -> list[tuple[float, float]]:
    source, output = write_rows(folder / "rows.jsonl", rows), folder / "scored.jsonl"
    output.unlink(missing_ok=True)
    assert scpo("score", f"--model={model}", f"--input={source}", f"--output={output}", *flags) == 0
    return [(row["score_chosen"], row["score_rejected"]) for row in read_rows(output)]


def test_scores_by_a_profile(finished, rows, tmp_path):
    """The ends are the models themselves; a blend lies between; an exported blend scores exactly the same."""
    model, group = finished.workdir, GROUPS[1]
    everybody = scores_of(model / "checkpoints" / "global", rows, tmp_path)
    own = scores_of(model / "checkpoints" / "scpo" / "cote-d-ivoire", rows, tmp_path)
    assert scores_of(model, rows, tmp_path, "--profile={}") == everybody
    assert scores_of(model, rows, tmp_path, as_flag({group: 1})) == own != everybody
    other = scores_of(model / "checkpoints" / "full" / "cote-d-ivoire", rows, tmp_path)
    assert scores_of(model, rows, tmp_path, as_flag({group: 1}), "--method=full") == other != own
    mixed = {group: 0.3, GROUPS[0]: 0.9}
    (tmp_path / "profile.json").write_text(json.dumps({"profile": mixed}))
    blended = scores_of(model, rows, tmp_path, f"--profile=@{tmp_path / 'profile.json'}")
    assert scores_of(model, rows, tmp_path, f"--profile={group}=0.3,{GROUPS[0]}=0.9") == blended != own
    flags = (f"--checkpoint={model}", as_flag(mixed), f"--output={tmp_path / 'export'}")
    assert scpo("export", *flags) == 0
    assert scores_of(tmp_path / "export", rows, tmp_path) == blended


def test_an_exported_blend_says_what_it_is(finished, tmp_path):
    for profile in ({}, {GROUPS[1]: 0.5}):
        folder = tmp_path / str(len(profile))
        assert scpo("export", f"--model={finished.workdir}", as_flag(profile), f"--output={folder}") == 0
        card = json.loads((folder / "scpo.json").read_text())
        assert card["profile"] == profile and card["method"] == "scpo" and card["max_length"] == 64
        opened = judge.open_judge(str(folder))
        train = read_rows(finished.data)
        scores = [opened.default([r["prompt"] for r in train], [r[s] for r in train]) for s in ("chosen", "rejected")]
        assert abs(card["score_mean"] - np.mean(scores)) < 0.5 * np.std(scores)
        assert card["score_std"] == pytest.approx(np.std(scores), rel=0.5)


def test_evaluate_by_a_profile(finished, tmp_path):
    def report(*flags):
        flags = (f"--model={finished.workdir}", f"--data={finished.data}", *flags, f"--output={tmp_path / 'out'}")
        assert scpo("evaluate", *flags) == 0
        return json.loads((tmp_path / "out").read_text())

    plain, blend = report(), report(as_flag({GROUPS[1]: 1.0}))
    assert blend["profile"] == {GROUPS[1]: 1.0} and "profile" not in plain
    assert list(blend["methods"]) == ["global", "scpo"] and blend["methods"]["global"] == plain["methods"]["global"]
    assert blend["methods"]["scpo"][GROUPS[1]] == plain["methods"]["scpo"][GROUPS[1]]
    assert blend["methods"]["scpo"] != plain["methods"]["scpo"]
    nothing = report("--profile={}")["methods"]
    accuracies = {m: [own["all"]["accuracy"] for own in nothing[m].values()] for m in nothing}
    assert accuracies["scpo"] == accuracies["global"]


def test_the_merged_parameters(finished):
    """Bitwise those of the checkpoint at strength 1, of the global one at {}."""
    folder = finished.workdir / "checkpoints"
    for profile, path in (("{}", "global"), (json.dumps({GROUPS[0]: 1}), "scpo/x")):
        blended = judge.load_blend(str(finished.workdir), "scpo", profile)
        assert same(blended.params, checkpoint.load(folder / path).params)


def test_another_profile_does_not_go_on_with_an_output(finished, rows, tmp_path, capsys):
    scores_of(finished.workdir, rows, tmp_path, as_flag({GROUPS[1]: 0.5}))
    flags = [
        f"--model={finished.workdir}",
        f"--input={tmp_path / 'rows.jsonl'}",
        f"--output={tmp_path / 'scored.jsonl'}",
    ]
    assert "scores of another model" in refusal(capsys, "score", *flags, as_flag({GROUPS[1]: 0.9}))
    assert scpo("score", *flags, as_flag({GROUPS[1]: 0.5})) == 0


def test_refusals(finished, rows, tmp_path, capsys):
    model, output = finished.workdir, tmp_path / "out"
    single = model / "checkpoints" / "scpo" / "x"
    score = ("score", f"--input={write_rows(tmp_path / 'rows.jsonl', rows)}", f"--output={output}")
    for message, *arguments in (
        ('there is no group "y"', *score, f"--model={model}", "--profile=y=1"),
        ("is none: name one", *score, f"--model={single}", "--profile={}"),
        ("--method=global has none", *score, f"--model={model}", "--profile={}", "--method=global"),
        ("has no method 'dpo'", *score, f"--model={model}", "--profile={}", "--method=dpo"),
        ("is exported with --profile", "export", f"--checkpoint={model}", f"--output={output}"),
        ("is none: name one", "export", f"--checkpoint={single}", f"--output={output}", "--profile={}"),
        ('there is no group "y"', "export", f"--checkpoint={model}", f"--output={output}", "--profile=y=1"),
    ):
        assert message in refusal(capsys, *arguments) and not output.exists()
