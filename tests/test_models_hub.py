"""Where models and tokenizers come from: local folders, the hub's cache through its own client, sentencepiece files."""

import json

import jax
import numpy as np
import pytest

from scpo_jax.errors import InputError
from scpo_jax.models import hf
from tests import model_helpers as helpers

pytestmark = pytest.mark.filterwarnings("error:::(jax|flax|scpo_jax|tests).*")


@pytest.fixture
def folder(tmp_path):
    """A tiny BERT in a Hugging Face folder, without tokenizer."""
    hf.save(*helpers.make("bert"), tmp_path / "model")
    return tmp_path / "model"


def sentencepiece_folder(folder):
    """A tokenizer as Microsoft publishes DeBERTa-v3's: spm.model and tokenizer_config.json, nothing else."""
    sentencepiece = pytest.importorskip("sentencepiece")
    folder.mkdir()
    sentences = ["the quick brown fox jumps over the lazy dog", "El veloz murciélago comía feliz", "reward models"] * 20
    pieces = {"pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]"}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_prefix=str(folder / "spm"), vocab_size=40, minloglevel=2,
        pad_id=0, bos_id=1, eos_id=2, unk_id=3, **pieces,
    )  # fmt: skip
    (folder / "spm.vocab").unlink()
    config = {"tokenizer_class": "DebertaV2Tokenizer", "do_lower_case": False, "vocab_type": "spm"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model"))


def test_a_tokenizer_that_is_only_a_sentencepiece_model(tmp_path):
    pieces = sentencepiece_folder(tmp_path / "spm")
    tokenizer = hf.load_tokenizer(tmp_path / "spm")
    hf.save_tokenizer(tokenizer, tmp_path / "saved")
    again = hf.load_tokenizer(tmp_path / "saved")
    for text in ("the lazy murciélago jumps", "reward  models\n☃", ""):
        ids = tokenizer(text)["input_ids"]
        assert ids == [1, *pieces.encode(text), 2] == again(text)["input_ids"]
    both = tokenizer("the fox", "dog")["input_ids"]
    assert both == [1, *pieces.encode("the fox"), 2, *pieces.encode("dog"), 2] == again("the fox", "dog")["input_ids"]
    assert (tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id) == (0, 1, 2)


def test_a_folder_without_tokenizer(folder):
    with pytest.raises(InputError, match="no tokenizer there; copy its files there .*spm.model") as caught:
        hf.load_tokenizer(folder)
    assert str(folder) in str(caught.value)


def test_a_broken_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="the tokenizer cannot be loaded") as caught:
        hf.load_tokenizer(folder)
    assert "\n" not in str(caught.value)


def cached_repository(cache, folder, commit="0" * 40):
    """The folder as the hub's client caches it for `org/name` at branch main."""
    repository = cache / "models--org--name"
    (repository / "snapshots").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    folder.rename(repository / "snapshots" / commit)
    return repository / "snapshots" / commit


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the hub's client, which may not use the network."""
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_a_hub_id_is_found_in_the_cache(folder, cache):
    snapshot = cached_repository(cache, folder)
    assert hf.resolve("org/name") == hf.resolve("org/name", "main") == hf.resolve("org/name", "0" * 40) == snapshot
    jax.tree.map(np.testing.assert_array_equal, hf.load(hf.resolve("org/name"))[1], helpers.make("bert")[1])


@pytest.mark.parametrize("name, revision", [("org/other", ""), ("org/name", "v2"), ("no folder/../x", ""), ("", "")])
def test_what_the_hub_cannot_give(folder, cache, name, revision):
    cached_repository(cache, folder)
    with pytest.raises(InputError, match=f"^model {name}.*{revision}: no such folder, nor from the hub: ") as caught:
        hf.resolve(name, revision)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("safe, patterns", [(True, 1), (False, 2)])
def test_torch_files_are_fetched_only_where_there_is_nothing_else(folder, monkeypatch, safe, patterns):
    hub = pytest.importorskip("huggingface_hub")
    asked = []
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **options: asked.append(options) or str(folder))
    if not safe:
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert hf.resolve("org/name", "abc") == folder
    assert [options["revision"] for options in asked] == ["abc"] * patterns
    assert ["pytorch_model.bin" in options["allow_patterns"] for options in asked] == [False, True][:patterns]


def test_a_local_folder_is_itself(folder):
    assert hf.resolve(str(folder)) == folder
