"""Stage policy: a tiny language model trained against the RMs of a tiny run, its checkpoint, and what it refuses."""

import json

import numpy as np
import pytest

from scpo_jax import checkpoint, evaluate_policy, judge, policy, sharding
from scpo_jax.models import hf
from scpo_jax.policy_rewards import Rewards
from tests import run_helpers, test_sft

pytestmark = pytest.mark.filterwarnings("error:::(jax|flax|scpo_jax|tests).*")
KEYS = test_sft.POLICY | {
    "steps": 2, "batch_size": 8, "num_mini_batches": 2, "num_ppo_epochs": 1, "reference_samples": 8, "sft.max_steps": 2,
    "learning_rate": 1e-3,
}  # fmt: skip


def flags(**own) -> list[str]:
    """The flags of a run with a policy."""
    return [f"--config.policy.{key.replace('__', '.')}={value}" for key, value in (KEYS | own).items()]


def test_one_policy_for_several_groups_with_adapters(copy, capsys, monkeypatch):
    """Prompts begin with the group; the export is a language model; a second run finds all done."""
    monkeypatch.setattr(evaluate_policy, "RESPONSES", 16)
    groups = ",".join(f'"{group}"' for group in run_helpers.GROUPS[:2])
    own = flags(groups=groups, tag=True, lora__rank=2, value="head")
    assert copy.run(*own) == 0
    assert list(copy.record()["stages"]) == [*run_helpers.STAGES, "policy"]
    folder, output = copy.workdir / "checkpoints/policy/all", copy.folder / "hf"
    card = checkpoint.load_card(folder)
    assert card["method"] == "policy" and card["groups"] == list(run_helpers.GROUPS[:2]) and card["steps"] == 2
    assert set(card["scales"]) == set(card["groups"]) and all(scale["std"] > 0 for scale in card["scales"].values())
    rows = [row for row in run_helpers.read_rows(copy.workdir / "metrics.jsonl") if row["training"] == "policy/all"]
    assert [row["step"] for row in rows] == [1, 2] and rows[0]["objective/kl"] == pytest.approx(0, abs=1e-5)
    assert run_helpers.scpo("export", f"--checkpoint={folder}", f"--output={output}") == 0
    trained, exported = policy.load(folder), hf.load_language_model(output)[1]
    np.testing.assert_array_equal(
        trained.params["layers"]["attention"]["query"]["kernel"], exported["layers"]["attention"]["query"]["kernel"]
    )
    reference = checkpoint.load_language_model(copy.workdir / "checkpoints/sft")
    mesh = sharding.make_mesh(1, 1, 1)
    writer = policy.Writer(reference, mesh, max_prompt=16, new_tokens=16, rows=4, dtype="float32")
    samples = writer.sample(trained.params, ["[World] question 1"] * 4, 0)
    assert 0 < np.abs(samples.kl).max() < 2
    check_report(copy, card["groups"])
    capsys.readouterr()
    assert copy.run(*own) == 0
    assert "policy" in capsys.readouterr().err.splitlines()[-1] and json.loads((output / "scpo.json").read_text())


def check_report(world, groups):
    """Every RM of the run has judged the policies, and the page shows them; there is no truth to give gold."""
    report = json.loads((world.workdir / "reports" / "policy.json").read_text())
    assert list(report) == groups
    for group, own in report.items():
        assert set(own["judges"]) == {"global", *run_helpers.GROUPS} and own["trained_against"] == group
        assert own["score_after"] == own["judges"][group]["after"]["mean"] and own["responses"] == 16
        assert 0 < abs(own["kl"]) < 2 and len(own["curve"]) == 2 and "gold_std" not in own
        assert all(0 <= record["win_rate"]["mean"] <= 1 for record in own["judges"].values())
    page = run_helpers.Reader((world.workdir / "report.html").read_text(encoding="utf-8"))
    run_helpers.check_page(page)
    assert all(f"{group}: the policy, trained against the RM {group}" in page.text for group in groups)
    assert (world.workdir / "figures" / "policy.png").exists()


@pytest.mark.parametrize(
    "own, said",
    [
        ({"algorithm": "dpo"}, "config.policy.algorithm='dpo': it is one of"),
        ({"groups": "Atlantis"}, "config.policy.groups: there is no group"),
        ({"batch_size": 6, "num_mini_batches": 4}, "config.policy.batch_size=6: not a multiple of"),
        ({"sft__max_steps": 0}, "there is nothing to start from"),
        ({"kl_budget": 0.0}, "config.policy.kl_budget=0.0"),
        ({"profile": "Atlantis=1"}, "there is no group"),
        ({"method": "trim"}, "has no method 'trim'"),
        ({"prompts": "/nowhere.jsonl"}, "/nowhere.jsonl does not exist"),
    ],
)
def test_mistakes_are_one_line(copy, capsys, own, said):
    assert copy.run("--stages=policy", *flags(**own)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("scpo: error: ") and said in error


def test_scores_are_those_of_the_judge_in_one_shape(finished):
    """Whatever the texts, what stands beside them and how many there are: 1e-5, and one compiled program."""
    groups, name = run_helpers.GROUPS[:2], str(finished.workdir)
    other, orders = judge.open_judge(name), (slice(20), slice(3), slice(None, None, -1))
    texts = [f"good answer {i} {'of warm reply ' * (i % 9)}" for i in range(20)]
    prompts = [f"question {i % 7}" for i in range(20)]
    mixed = [groups[i % 2] for i in range(20)]
    wanted = [other.score(prompts[order], texts[order], mixed[order]) for order in orders]
    rewards = Rewards(judge.open_judge(name), groups)
    compiled = rewards._scorers[groups[0]].function.compiled
    compiled.clear_cache()  # of what the judge has compiled, which is the same function
    for group in groups:
        rewards.prepare(group, prompts, texts, 8)
        scores = rewards.scores(prompts, texts, [group] * 20)
        assert rewards.normalised(scores, [group] * 20).mean() == pytest.approx(0, abs=1e-5)
    for order, values in zip(orders, wanted, strict=True):
        found = rewards.scores(prompts[order], texts[order], mixed[order])
        np.testing.assert_allclose(found, values, rtol=0, atol=1e-5)
    assert compiled._cache_size() == 1
    whole = Rewards(judge.open_judge(name, profile="{}"), groups)
    whole.prepare(groups[0], prompts, texts, 8)
    wanted = judge.open_judge(name, method="global").score(prompts, texts, ["x"] * 20)
    np.testing.assert_allclose(whole.scores(prompts, texts, [groups[0]] * 20), wanted, rtol=0, atol=1e-5)


def test_without_steps_there_is_no_such_stage(copy, capsys):
    assert "there is none to train" in run_helpers.refusal(
        capsys, "run", f"--config={copy.config}", f"--workdir={copy.workdir}", "--stages=policy"
    )
