"""Hugging Face folders: loading is total, what is wrong is said in one line, what is saved loads in transformers."""

import json
import re
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

from scpo_jax.errors import InputError
from scpo_jax.models import hf, module, weights
from tests import model_helpers as helpers

pytestmark = pytest.mark.filterwarnings("error:::(jax|flax|scpo_jax|tests).*")


@pytest.fixture(params=["bert", "v3"])
def saved(request, tmp_path):
    """(folder, model, params) of a tiny model in a Hugging Face folder."""
    model, params = helpers.make(request.param)
    hf.save(model, params, tmp_path / "model")
    return tmp_path / "model", model, params


@pytest.fixture
def folder(tmp_path):
    """A tiny BERT in a Hugging Face folder."""
    hf.save(*helpers.make("bert"), tmp_path / "model")
    return tmp_path / "model"


def read(folder):
    return safetensors.numpy.load_file(folder / "model.safetensors")


def write(folder, tensors):
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")


def change_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refusal(folder, **arguments):
    """The one line with which `load` refuses a folder; it names the folder."""
    with pytest.raises(InputError) as caught:
        hf.load(folder, **arguments)
    message = str(caught.value)
    assert "\n" not in message and str(folder) in message
    return message


def test_what_is_saved_loads_bitwise(saved):
    folder, model, params = saved
    loaded, loaded_params = hf.load(folder)
    jax.tree.map(np.testing.assert_array_equal, loaded_params, params)
    assert loaded.family == model.family and loaded.max_positions == model.max_positions


def test_unknown_config_keys_are_kept_and_the_type_is_that_of_the_weights(tmp_path):
    config = helpers.BERT | {
        "made_by": "us",
        "torch_dtype": "float16",
        "dtype": "float16",
        "id2label": {"0": "a", "1": "b"},
    }
    hf.save(module.build(config), helpers.make("bert")[1], tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["made_by"] == "us" and written["hidden_size"] == 64
    assert written["architectures"] == ["BertForSequenceClassification"]
    assert written["num_labels"] == 1 and written["id2label"] == {"0": "LABEL_0"}
    assert written["torch_dtype"] == "float32" and "dtype" not in written


@pytest.mark.parity
@pytest.mark.parametrize("name", ["bert", "v2-buckets", "v3", "llama-biases", "llama31", "qwen2", "qwen3"])
def test_the_export_scores_the_same_in_transformers(name, tmp_path):
    torch = pytest.importorskip("torch")
    import transformers

    config = helpers.CONFIGS[name] | {"torch_dtype": "bfloat16"}
    model, params = module.build(config), helpers.make(name)[1]
    hf.save(model, params, tmp_path)
    reference, report = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path, attn_implementation="eager", output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert reference.dtype == torch.float32
    batch = helpers.one_per_row(helpers.texts([12] * 8))
    theirs = helpers.torch_outputs(reference.eval(), batch)["score"]
    np.testing.assert_allclose(jax.jit(model.score)(params, batch), theirs, rtol=0, atol=1e-5)
    assert theirs.std() >= 0.3


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float64"])
def test_other_float_types_load_as_float32(folder, kind):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    dtype = np.dtype(ml_dtypes.bfloat16) if kind == "bfloat16" else np.dtype(kind)
    tensors = {name: tensor.astype(dtype) for name, tensor in read(folder).items()}
    write(folder, tensors)
    _, params = hf.load(folder)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}
    word = tensors["bert.embeddings.word_embeddings.weight"].astype(np.float32)
    np.testing.assert_array_equal(params["embeddings"]["word"]["embedding"], word)


def shard(folder):
    """The same weights in two shards with an index."""
    tensors = read(folder)
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in sorted(set(weight_map.values())):
        part = {name: tensors[name] for name in names if weight_map[name] == file}
        safetensors.numpy.save_file(part, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return weight_map


def test_shards_are_read_together(saved):
    folder, _, params = saved
    shard(folder)
    jax.tree.map(np.testing.assert_array_equal, hf.load(folder)[1], params)


@pytest.mark.parametrize("name", ["/etc/passwd", "../model.safetensors", "..", "sub/a.safetensors", "..\\a", ""])
def test_shards_elsewhere_are_refused(folder, name):
    weight_map = shard(folder)
    index = {"weight_map": weight_map | {"bert.pooler.dense.bias": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "is not a file name beside the index" in refusal(folder)


def test_a_missing_shard_is_named(folder):
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors is missing" in refusal(folder)


def test_torch_files_are_read(folder):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.from_numpy(tensor).half() for name, tensor in read(folder).items()}
    tensors["bert.embeddings.position_ids"] = torch.arange(512)[None]
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    _, params = hf.load(folder)
    word = tensors["bert.embeddings.word_embeddings.weight"].float().numpy()
    np.testing.assert_array_equal(params["embeddings"]["word"]["embedding"], word)
    names = sorted(tensors)
    (folder / "pytorch_model.bin").unlink()
    weight_map = dict.fromkeys(names[:9], "pytorch_model-1.bin") | dict.fromkeys(names[9:], "pytorch_model-2.bin")
    for file in ("pytorch_model-1.bin", "pytorch_model-2.bin"):
        torch.save({name: tensors[name] for name in names if weight_map[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    jax.tree.map(np.testing.assert_array_equal, hf.load(folder)[1], params)


class Malicious:
    def __reduce__(self):
        return print, ("this code must not run",)


def test_torch_files_run_no_code(folder, capsys):
    torch = pytest.importorskip("torch")
    (folder / "model.safetensors").unlink()
    torch.save({"a": Malicious()}, folder / "pytorch_model.bin")
    assert "not a readable torch file" in refusal(folder)
    assert "this code" not in capsys.readouterr().out


def test_torch_files_without_torch(folder, monkeypatch):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "pip install 'scpo_jax[torch]'" in refusal(folder)


def test_first_release_names_and_pretraining_heads(folder):
    """Bare or old checkpoints: gamma and beta, no prefix, heads of other tasks, buffers."""
    tensors = read(folder)
    renamed = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): tensor for name, tensor in tensors.items()}
    renamed = {name.replace("LayerNorm.bias", "LayerNorm.beta").removeprefix("bert."): t for name, t in renamed.items()}
    renamed |= {"cls.predictions.bias": np.ones(3, np.float32), "embeddings.position_ids": np.arange(512)[None]}
    write(folder, renamed)
    jax.tree.map(np.testing.assert_array_equal, hf.load(folder)[1], helpers.make("bert")[1])


def test_ignored_tensors_of_deberta(tmp_path):
    hf.save(*helpers.make("v3"), tmp_path)
    more = ("lm_predictions.lm_head.bias", "mask_predictions.dense.weight", "deberta.embeddings.position_ids")
    more += ("deberta.embeddings.position_embeddings.weight",)
    write(tmp_path, read(tmp_path) | dict.fromkeys(more, np.ones((2, 2), np.float32)))
    jax.tree.map(np.testing.assert_array_equal, hf.load(tmp_path)[1], helpers.make("v3")[1])


def test_one_line_names_everything_missing_unexpected_and_misshapen(saved):
    folder, model, _ = saved
    tensors = read(folder)
    names = sorted(tensors)
    first, last = names[4], names[-1]
    del tensors[first]
    tensors[last] = tensors[last][..., :-1]
    write(folder, tensors | {"adapter.weight": np.ones(2, np.float32), "extra.bias": np.ones(2, np.float32)})
    message = refusal(folder)
    assert f"missing: {first};" in message and "not expected: adapter.weight, extra.bias;" in message
    assert f"of wrong shape: {last} " in message and "(expected [" in message


def test_a_head_is_needed_or_asked_for(saved):
    folder, _, params = saved
    write(folder, {name: tensor for name, tensor in read(folder).items() if "classifier" not in name})
    assert "missing: classifier.bias, classifier.weight; it has no score head" in refusal(folder)
    change_config(folder, num_labels=2)  # says nothing of a head yet to be drawn
    loaded = [hf.load(folder, fresh_head_key=jax.random.key(seed))[1] for seed in (0, 0, 1)]
    kernel = loaded[0]["score"]["kernel"]
    assert kernel.shape == (64, 1) and 0.01 < kernel.std() < 0.03 and not loaded[0]["score"]["bias"].any()
    np.testing.assert_array_equal(kernel, loaded[1]["score"]["kernel"])
    assert (kernel != loaded[2]["score"]["kernel"]).all()
    np.testing.assert_array_equal(loaded[0]["pooler"]["kernel"], params["pooler"]["kernel"])


def test_a_bare_encoder_gets_pooler_and_head(folder):
    tensors = read(folder)
    bare = {
        name.removeprefix("bert."): t for name, t in tensors.items() if "pooler" not in name and "classi" not in name
    }
    write(folder, bare)
    message = refusal(folder)
    assert "bert.pooler.dense.bias, bert.pooler.dense.weight, classifier.bias, classifier.weight" in message
    params = hf.load(folder, fresh_head_key=jax.random.key(0))[1]
    assert 0.018 < params["pooler"]["kernel"].std() < 0.022 and not params["pooler"]["bias"].any()


def test_an_existing_head_is_kept(saved):
    folder, _, params = saved
    jax.tree.map(np.testing.assert_array_equal, hf.load(folder, fresh_head_key=jax.random.key(0))[1], params)


def test_a_fresh_head_heals_nothing_else(folder):
    tensors = read(folder)
    del tensors["classifier.bias"], tensors["bert.embeddings.LayerNorm.bias"]
    write(folder, tensors)
    message = refusal(folder, fresh_head_key=jax.random.key(0))
    assert "missing: bert.embeddings.LayerNorm.bias, classifier.bias" in message


def test_several_labels_are_refused(folder):
    change_config(folder, num_labels=3)
    assert "num_labels 3" in refusal(folder)
    change_config(folder, num_labels=1)
    tensors = read(folder)
    write(folder, tensors | {"classifier.weight": np.repeat(tensors["classifier.weight"], 3, 0)})
    assert "classifier.weight [3, 64]" in refusal(folder)


def test_a_tensor_under_two_names_is_refused(folder):
    tensors = read(folder)
    write(folder, tensors | {"pooler.dense.bias": tensors["bert.pooler.dense.bias"]})
    assert "hold bert.pooler.dense.bias twice" in refusal(folder)


@pytest.mark.parametrize(
    "break_it, message",
    [
        (lambda f: (f / "config.json").unlink(), "no config.json there"),
        (lambda f: (f / "config.json").write_text("{"), "not readable as JSON"),
        (lambda f: (f / "config.json").write_bytes(b"\xff"), "not readable as JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "not a JSON object"),
        (lambda f: (f / "config.json").write_text("{}"), "unknown model family None"),
        (lambda f: (f / "model.safetensors").unlink(), "no weights there; need model.safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes(b"broken"), "not a readable safetensors file"),
        (lambda f: change_config(f, model_type="gpt2"), "unknown model family 'gpt2'.*known: bert, deberta-v2"),
        (lambda f: change_config(f, num_hidden_layers=3), "missing: bert.encoder.layer.2.attention"),
        (lambda f: change_config(f, num_hidden_layers=1), "not expected: bert.encoder.layer.1.attention"),
    ],
)
def test_a_broken_folder_gives_one_line(folder, break_it, message):
    break_it(folder)
    assert re.search(message, refusal(folder))


def test_first_line_of_an_error_without_words():
    assert weights.first_line(ValueError("\n a\nb")) == "a" and weights.first_line(KeyError()) == "KeyError"
