"""Preflight: what it refuses, what it says of a run, and, where the TPU compiler is, that loops count in full."""

import functools
import importlib.util
import json
import types
from unittest import mock

import jax
import pytest

from scpo_jax import hlo, program_cost, sharding, tpu, train_step, workload
from scpo_jax.configs import base
from scpo_jax.models import lora, module
from scpo_jax.models.lora import Lora
from tests import tpu_helpers
from tests.run_helpers import World, refusal, scpo, snapshot

CONFIG = {
    "model_type": "deberta-v2", "vocab_size": 512, "hidden_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 256, "relative_attention": True, "position_buckets": 32,
    "norm_rel_ebd": "layer_norm", "share_att_key": True, "pos_att_type": "p2c|c2p", "position_biased_input": False,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "max_position_embeddings": 128,
}  # fmt: skip
SMALL = CONFIG | {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 64}
KEYS = {"fits", "hbm_bytes", "capacity_bytes", "flops", "collectives"}
SCORING = (
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (8.00T) exceeds "
    "available HBM (15.75G)."
)


@pytest.fixture
def folder(tmp_path):
    """A model of which there is only `config.json`."""
    place = tmp_path / "model"
    place.mkdir()
    (place / "config.json").write_text(json.dumps(SMALL))
    return place


@pytest.fixture
def prism(folder):
    """The flags of a run whose data are on the hub: two groups, few steps, texts of one length."""
    config = folder.parent / "config.py"
    config.write_text(
        "from scpo_jax.configs import base\n\n\ndef get_config():\n    config = base.get_config()\n"
        "    config.data.source = 'prism'\n    config.data.path = 'HannahRoseKirk/prism-alignment'\n"
        f"    config.model.name_or_path = {str(folder)!r}\n    config.model.max_length = 128\n"
        "    config.data.groups = ('Chile', 'Mexico')\n    config.train.max_steps = 3\n"
        "    config.data.length_quantiles = (60, 60)\n    return config\n"
    )
    return ["preflight", f"--config={config}"]


@pytest.fixture
def here(monkeypatch):
    """Compiles for this machine instead of a slice; returns what may be changed of it."""
    slice_ = types.SimpleNamespace(capacity=2**30)
    facts = {"device_kind": "a CPU", "devices": 1, "devices_per_chip": 1, "cores_per_device": 1}
    monkeypatch.setattr(tpu, "devices", lambda topology: jax.devices()[:1])
    monkeypatch.setattr(tpu, "describe", lambda devices: facts)
    monkeypatch.setattr(tpu, "capacity", lambda device: slice_.capacity)
    return slice_


@pytest.fixture
def uncompiled(monkeypatch):
    """Programs are lowered only."""

    def cost_of(program, device):
        program.lower()
        return program_cost.Cost(True, 100, 60, 0, 40, 1, {})

    monkeypatch.setattr(program_cost, "cost_of", cost_of)


@pytest.mark.parametrize(
    ("message", "sizes"),
    [
        (SCORING, (8 * 2**40, int(15.75 * 2**30))),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.31G of 15.48G hbm. Exceeded hbm "
            "capacity by 4.84G.",
            (int(20.31 * 2**30), int(15.48 * 2**30)),
        ),
        ("INTERNAL: Mosaic failed to compile TPU kernel", None),
    ],
)
def test_what_the_compiler_says_of_too_large_a_program(message, sizes):
    assert tpu.too_large(message) == sizes


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "--topology=... is missing"),
        (("--topology=v5e:2x2", "--workdir=w"), "unknown flag workdir; it is a flag of run"),
        (("--topology=v5e:2x2", "--config.train.batch_size=0"), "at least 1"),
        (("--topology=v5e:2x2", "--config.data.length_quantiles=300,200"), "two or more rising numbers of tokens"),
        (("--topology=v5e:2x2", "--config.data.length_quantiles=(300,200)"), "two or more rising numbers of tokens"),
        (("--topology=v5e:2x2", "--config.data.length_quantiles=(0,20)"), "two or more rising numbers of tokens"),
    ],
)
def test_flags_that_are_refused(prism, flags, message, capsys):
    assert message in refusal(capsys, *prism, *flags)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.data.groups=()", "which groups there are is not known: name them in --config.data.groups"),
        ("--config.model.name_or_path=owner/model", "a folder with its config.json is enough here"),
        ("--config.data.path=/nowhere/prism", "/nowhere/prism"),
        ("--config.mesh.group=3", "they do not make up the 1 devices"),
    ],
)
def test_runs_that_are_refused(prism, here, flag, message, capsys):
    assert message in refusal(capsys, *prism, "--topology=v5e:2x2", flag)


def test_without_the_compiler_it_says_what_to_install(prism, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install -e '.[tpu]'" in refusal(capsys, *prism, "--topology=v5e:2x2")


def test_it_says_and_writes_what_every_program_takes(prism, here, tmp_path, capsys):
    output = tmp_path / "preflight.json"
    assert scpo(*prism, "--topology=v5e:2x2", "--config.train.eval_every=2", f"--output={output}") == 0
    written, said = json.loads(output.read_text()), capsys.readouterr().out
    assert written["fits"] and all(set(program) == KEYS for program in written["programs"].values())
    assert {name.split(" ")[0] for name in written["programs"]} == {"optimizer", "train", "score", "validate"}
    assert all(name in said for name in written["programs"])
    assert "config.data.length_quantiles (HannahRoseKirk/prism-alignment is not here)" in said
    assert written["fill"]["train 2 groups"] == pytest.approx(60 / 64, abs=0.01)
    (step,) = (program for name, program in written["programs"].items() if name.startswith("train"))
    assert step["flops"] > 0 and step["capacity_bytes"] == here.capacity
    assert step["hbm_bytes"] > 4 * 3 * 2 * parameters()  # of two groups, with AdamW's two moments


def parameters() -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(module.abstract_params(module.build(SMALL))))


@pytest.mark.parametrize(("eval_every", "models"), [(0, 1), (2, 2 + 1)])
def test_what_is_in_memory_beside_a_step(prism, here, uncompiled, tmp_path, eval_every, models):
    """The model that all started from and, if steps are validated, the best parameters of the two groups."""
    output = tmp_path / "preflight.json"
    assert scpo(*prism, "--topology=v5e:2x2", f"--config.train.eval_every={eval_every}", f"--output={output}") == 0
    programs = json.loads(output.read_text())["programs"]
    steps = {program["hbm_bytes"] for name, program in programs.items() if name.startswith("train")}
    assert steps == {100 + models * 4 * parameters()}
    if eval_every:  # the whole state of the training; its steps are counted too, a number for each group
        (validation,) = {program["hbm_bytes"] for name, program in programs.items() if name.startswith("validate")}
        assert validation == 100 + (3 * 2 + models) * 4 * parameters() + 2 * 4


def test_adapters_and_not_their_base_have_groups(prism, here, uncompiled, tmp_path):
    """Beside a step are the best adapters of the two groups; the whole state counts the base once."""
    flags = ["--topology=v5e:2x2", "--config.train.lora.rank=2", "--config.train.eval_every=2"]
    assert scpo(*prism, *flags, f"--output={tmp_path / 'preflight.json'}") == 0
    programs = json.loads((tmp_path / "preflight.json").read_text())["programs"]
    shapes = module.build(SMALL, adapters=Lora(2, 16.0, ("all-linear",))).shapes
    trained, frozen = (4 * sum(leaf.size for leaf in jax.tree.leaves(part)) for part in lora.split(shapes))
    (step,) = {program["hbm_bytes"] for name, program in programs.items() if name.startswith("train")}
    assert step == 100 + 2 * trained
    (validation,) = {program["hbm_bytes"] for name, program in programs.items() if name.startswith("validate")}
    assert validation == 100 + (3 + 1) * 2 * trained + frozen + 2 * 4


def test_heads_are_one_training_of_all_groups(prism, here, uncompiled, tmp_path):
    flags = ["--topology=v5e:2x2", "--config.scpo.methods=scpo,heads"]
    assert scpo(*prism, *flags, f"--output={tmp_path / 'preflight.json'}") == 0
    programs = json.loads((tmp_path / "preflight.json").read_text())["programs"]
    steps = {name.rsplit(" ", 1)[0]: own for name, own in programs.items() if name.startswith("train")}
    assert steps.keys() == {"train 2 groups", "train heads"}
    wide = jax.tree.leaves(module.build(SMALL, heads=("Chile", "Mexico")).shapes)
    assert steps["train heads"]["hbm_bytes"] == 100 + 4 * sum(leaf.size for leaf in wide) > 100 + 4 * parameters()


def test_a_run_takes_as_long_however_many_groups_a_program_has(prism, here, monkeypatch, tmp_path):
    """Two groups at once, where a step takes two seconds, or one after the other, a second a step; scoring 0.25."""
    seconds = {"train 2 groups 16x64": 2.0, "train 1 group 16x64": 1.0}

    def cost_of(program, device):
        return program_cost.Cost(True, 100, 60, 0, 40, 1, {}, seconds.get(program.key, 0.25))

    monkeypatch.setattr(program_cost, "cost_of", cost_of)
    output = tmp_path / "preflight.json"
    for at_once in (-1, 1):
        flags = [f"--config.train.groups_per_program={at_once}", "--config.scpo.methods=scpo,full"]
        assert scpo(*prism, "--topology=v5e:2x2", *flags, f"--output={output}") == 0
        steps, methods = 3, 2
        assert json.loads(output.read_text())["estimated_run_seconds"] == 2.0 * steps * methods + 0.25


@pytest.fixture
def planned(folder):
    """(group, data) -> trainings of seven groups at PRISM's lengths on such a mesh, and the divisions that are better.

    Of its devices only the kind is asked.
    """
    config = base.get_config()
    config.data.source, config.data.path = "prism", "HannahRoseKirk/prism-alignment"
    config.data.groups, config.model.name_or_path = tuple("ABCDEFG"), str(folder)
    config.train.max_steps = 20

    def plan(group: int, data: int, methods: tuple[str, ...] = ("scpo", "full")) -> tuple[list, list]:
        config.scpo.methods = methods
        mesh = sharding.make_mesh(group, data, 1, [mock.Mock(platform="tpu") for _ in range(group * data)])
        material = workload.collect(config)
        works = workload.trainings_of(config, material, mesh)
        return works, workload.denser_divisions(config, material, mesh, works)

    return plan


def test_devices_divided_otherwise_compute_fewer_tokens(planned):
    (own,), better = planned(1, 8)
    assert [(division.group, division.data) for division in better] == [(8, 1), (4, 2), (2, 4)]
    for division in better:
        (other,), _ = planned(division.group, division.data)
        assert division.computed == pytest.approx(own.fill / other.fill)
    assert better[0].computed < 0.5 and not planned(8, 1)[1]


def test_no_devices_are_left_to_groups_that_are_not_there(planned):
    """Sixteen devices of the axis group would have the tokens of eight, and compute nothing on half of them."""
    assert {division.group for division in planned(1, 16)[1]} == {2, 4, 8}


def test_a_run_that_trains_nothing_has_no_better_division(planned):
    assert not planned(1, 8, methods=())[1]


def test_it_names_the_better_division(prism, here, uncompiled, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(workload, "denser_divisions", lambda *_: [workload.Division(8, 1, 0.394)])
    assert scpo(*prism, "--topology=v5e:2x2", f"--output={tmp_path / 'preflight.json'}") == 0
    assert "--config.mesh.group=8 --config.mesh.data=1: 0.39 times as many" in capsys.readouterr().out
    written = json.loads((tmp_path / "preflight.json").read_text())["denser_divisions"]
    assert written == [{"group": 8, "data": 1, "computed": 0.394}]


def test_a_program_that_does_not_fit_is_named(prism, here, uncompiled, tmp_path, capsys):
    output = tmp_path / "preflight.json"
    here.capacity = 1000
    assert scpo(*prism, "--topology=v5e:2x2", f"--output={output}") == 1
    said, programs = capsys.readouterr().out, json.loads(output.read_text())["programs"]
    assert not programs["train 2 groups 16x64"]["fits"] and programs["score 128x64, 128 scores"]["fits"]
    assert "It does not fit: " in said and "train 2 groups: " in said


def test_the_other_programs_are_tried_when_the_compiler_refuses_one(prism, here, monkeypatch, capsys):
    kept = jax.stages.Lowered.compile

    def compile_small(self, *arguments):
        if "step_of_device" in self.as_text()[:200]:
            raise jax.errors.JaxRuntimeError(SCORING)
        return kept(self, *arguments)

    monkeypatch.setattr(jax.stages.Lowered, "compile", compile_small)
    assert scpo(*prism, "--topology=v5e:2x2") == 1
    said = capsys.readouterr()
    assert "8192.00" in said.out and "does not fit: train 2 groups 16x64." in said.out
    assert "3 of 3" in said.err


def test_data_that_are_here_are_what_counts(tmp_path, here, uncompiled, capsys):
    world = World(tmp_path)
    before = snapshot(tmp_path)
    assert scpo("preflight", f"--config={world.config}", "--topology=v5e:2x2", "--config.train.eval_every=2") == 0
    said = capsys.readouterr().out
    assert "lengths from the data." in said
    for name in ("train global", "train 3 groups", "score", "validate"):
        assert f"| {name}" in said
    assert snapshot(tmp_path) == before


def test_a_model_from_scratch_without_its_texts(prism, here, uncompiled, capsys):
    flags = ("--config.model.name_or_path=", "--config.global_rm.train=true", "--config.global_rm.max_steps=2")
    assert scpo(*prism, "--topology=v5e:2x2", *flags) == 0
    assert "| train global" in capsys.readouterr().out


STEP = """HloModule step

ENTRY %main (a: f32[64,32], b: f32[32,16]) -> f32[64,16] {
  %a = f32[64,32]{1,0} parameter(0)
  %b = f32[32,16]{1,0} parameter(1)
  %k = f32[64,32]{1,0} custom-call(%a), custom_call_target="tpu_custom_call", \
config={"cost_estimate":{"flops":"28000","bytes_accessed":"8"}}
  ROOT %dot = f32[64,16]{1,0} dot(%k, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}, \
config={"estimated_cycles":"CYCLES"}
}
"""


@pytest.mark.parametrize(
    ("cycles", "dtype", "expected"),
    [
        ("500", "bfloat16", 500 / 100 + 28000 / 280 + 2 * 30 / 10 + 50 / 10),
        (str(2**63 - 1), "bfloat16", 2 * 64 * 32 * 16 / 400 + 28000 / 280 + 2 * 30 / 10 + 50 / 10),
        ("500", "float32", 500 / 100 + 6 * 28000 / 280 + 2 * 30 / 10 + 50 / 10),
    ],
)
def test_the_time_of_a_program(cycles, dtype, expected):
    """Cycles, or products where the compiler has none; kernels at a share of the peak; an all-reduce passes twice."""
    device = program_cost.Device(0, tpu.Machine(flops=1000, memory=10, clock=100, interconnect=10), {}, dtype)
    program = hlo.parse(STEP.replace("CYCLES", cycles))
    moved = {"all-reduce": 30, "all-gather": 50}
    assert program_cost.seconds(program, moved, device) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("topology", "kind", "devices", "per_chip", "gib"),
    [
        ("v5e:1x1", "TPU v5 lite", 1, 1, 15.75),
        ("v5e:2x4", "TPU v5 lite", 8, 1, 15.75),
        ("v5p:2x2x2", "TPU v5", 8, 1, 95.74),
        ("v6e:2x4", "TPU v6 lite", 8, 1, 31.25),
        ("v4:2x2x1", "TPU v4", 8, 2, 15.25),
        ("tpu7x:2x2x1", "TPU7x", 8, 2, 94.75),
    ],
)
def test_devices_of_a_slice(topology, kind, devices, per_chip, gib):
    found = tpu_helpers.devices_or_skip(topology)
    facts = tpu.describe(found)
    assert (facts["device_kind"], facts["devices"], facts["devices_per_chip"]) == (kind, devices, per_chip)
    assert tpu.capacity(found[0]) == int(gib * 2**30)
    assert kind in tpu.MACHINES


def test_an_unknown_topology(prism, capsys):
    tpu_helpers.devices_or_skip("v5e:2x2")
    assert "like v5e:2x4" in refusal(capsys, *prism, "--topology=v9:2x4")


def step_cost(devices, monkeypatch, unrolled: bool) -> program_cost.Cost:
    """The training step of three layers, two of them by a loop or written out."""
    scan = functools.partial(jax.lax.scan, unroll=True) if unrolled else jax.lax.scan
    monkeypatch.setattr("scpo_jax.models.layers.jax.lax.scan", scan)
    model = module.build(CONFIG | {"num_hidden_layers": 3})
    program = train_step.make_program(
        model, sharding.make_mesh(1, -1, 1, devices),
        dtype="bfloat16", weight_decay=0.0, max_grad_norm=1.0, center_rewards_coefficient=0.0,
    )  # fmt: skip
    arguments = train_step.step_arguments(program, model, 2, 1, (2, 128))
    kind = devices[0].device_kind
    device = program_cost.Device(2**34, tpu.MACHINES[kind], {"": 2}, "bfloat16")
    return program_cost.cost_of(program_cost.Program("", program_cost.lowering(program.step, *arguments), 0, 0), device)


def test_a_step_costs_what_its_layers_cost(monkeypatch):
    devices = tpu_helpers.devices_or_skip("v5e:2x4")[:4]
    with monkeypatch.context() as patch:
        unrolled = step_cost(devices, patch, True)
    loop = step_cost(devices, monkeypatch, False)
    assert loop.flops == pytest.approx(unrolled.flops, rel=0.02)
    assert sum(loop.collectives.values()) == pytest.approx(sum(unrolled.collectives.values()), rel=0.02)
    assert {"all-gather", "reduce-scatter"} <= set(loop.collectives), (loop.collectives, unrolled.collectives)


@pytest.mark.parametrize("topology", ["v4:2x2x1"])
def test_preflight_of_a_slice(prism, topology, capsys):
    tpu_helpers.devices_or_skip(topology)
    assert scpo(*prism, f"--topology={topology}") == 0
    said = capsys.readouterr().out
    assert "TPU v4" in said and "A step (an estimate)" in said
