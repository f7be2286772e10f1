"""Adapters in PEFT's form: names and shapes, round trips, refusals; and that PEFT itself reads and writes the same."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from scpo_jax.errors import InputError
from scpo_jax.models import hf, peft
from scpo_jax.models.lora import Lora
from tests import model_helpers as helpers
from tests.test_lora import ALL, adapted, batch

GOLDEN = {  # what PEFT 0.21 writes for a Llama of width 32 with targets q_proj and down_proj, rank 2
    "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": (2, 32),
    "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": (64, 2),
    "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight": (2, 32),
    "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight": (64, 2),
    "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight": (2, 32),
    "base_model.model.model.layers.0.mlp.down_proj.lora_B.weight": (32, 2),
    "base_model.model.model.layers.1.mlp.down_proj.lora_A.weight": (2, 32),
    "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight": (32, 2),
    "base_model.model.score.weight": (1, 32),
}
TWO = Lora(2, 8.0, ("q_proj", "down_proj"))


def write(folder, name="llama31", options=TWO):
    """A model with adapters, written to `folder`/adapter beside its `base`."""
    model, params, base = adapted(name, options)
    hf.save(helpers.make(name)[0], base, folder / "base")
    peft.save(model, params, str(folder / "base"), folder / "adapter")
    return model, params


def test_names_and_shapes_are_those_of_peft(tmp_path):
    write(tmp_path)
    tensors = safetensors.numpy.load_file(tmp_path / "adapter/adapter_model.safetensors")
    assert {name: tensor.shape for name, tensor in tensors.items()} == GOLDEN
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert config["target_modules"] == ["q_proj", "down_proj"] and config["modules_to_save"] == ["score"]
    assert (config["r"], config["lora_alpha"], config["task_type"]) == (2, 8.0, "SEQ_CLS")


@pytest.mark.parametrize(("name", "options"), [("llama31", TWO), ("qwen3", ALL), ("bert", ALL), ("v3", ALL)])
def test_what_is_saved_loads_bitwise(name, options, tmp_path):
    model, params = write(tmp_path, name, options)
    again, loaded, base = peft.load(tmp_path / "adapter")
    assert base == tmp_path / "base" and (again.lora.rank, again.lora.scale) == (options.rank, model.lora.scale)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


REFUSED = {
    "peft_type 'IA3'": {"peft_type": "IA3"},
    "use_dora True": {"use_dora": True},
    "use_rslora True": {"use_rslora": True},
    "rank_pattern": {"rank_pattern": {"q_proj": 4}},
    "needs r, lora_alpha": {"target_modules": ".*q_proj"},
    "the model has all-linear": {"target_modules": ["c_attn"]},
    "is not a folder here": {"base_model_name_or_path": "nobody/nothing"},
    "missing: base_model.model.model.layers.0.self_attn.v_proj.lora_A.weight": {
        "target_modules": ["q_proj", "down_proj", "v_proj"]
    },
    "not expected: base_model.model.model.layers.0.mlp.down_proj.lora_A.weight": {"target_modules": ["q_proj"]},
    "of wrong shape: base_model.model.model.layers.0.mlp.down_proj.lora_A.weight": {"r": 3},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_computed_is_refused(message, tmp_path):
    write(tmp_path)
    path = tmp_path / "adapter/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | REFUSED[message]))
    with pytest.raises(InputError) as caught:
        peft.load(tmp_path / "adapter")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_base_without_a_head_is_no_hindrance(tmp_path):
    """As a language model is, whose adapters were trained with a head of their own."""
    _, params = write(tmp_path)
    tensors = safetensors.numpy.load_file(tmp_path / "base/model.safetensors")
    del tensors["score.weight"]
    safetensors.numpy.save_file(tensors, tmp_path / "base/model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, peft.load(tmp_path / "adapter")[1], params)


def torch_scores(model) -> np.ndarray:
    """Scores by a torch model of the texts of `batch`, one a row."""
    import torch

    rows = helpers.one_per_row(helpers.texts([9, 12] * 4))
    with torch.no_grad():
        return model(**helpers.torch_inputs(getattr(model, "base_model", model).model, rows)).logits[:, 0].numpy()


@pytest.mark.parity
@pytest.mark.parametrize(("name", "options"), [("llama31", TWO), ("qwen3", ALL), ("bert", ALL)])
def test_peft_reads_what_we_write_and_we_what_it_writes(name, options, tmp_path):
    pytest.importorskip("torch")
    theirs = pytest.importorskip("peft")
    import transformers

    model, params = write(tmp_path, name, options)
    base = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    wrapped = theirs.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    ours = np.asarray(jax.jit(model.score)(params, batch()))
    assert ours.std() > 0.1
    np.testing.assert_allclose(torch_scores(wrapped), ours, rtol=0, atol=1e-5 * max(1, ours.std()))
    wrapped.save_pretrained(tmp_path / "again")
    files = [safetensors.numpy.load_file(tmp_path / part / peft.WEIGHTS_FILE) for part in ("adapter", "again")]
    assert files[0].keys() == files[1].keys()
    again, loaded, _ = peft.load(tmp_path / "again")
    assert again.lora.scale == model.lora.scale
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
