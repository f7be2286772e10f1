"""Malformed model folders and adapters, and what templates may not do."""

import json
import pathlib
import shutil
import struct
from collections.abc import Callable, Iterator

import numpy as np
import safetensors.numpy

from tests.faults.damage import PLACES, Case, Place, put_fifo


def set_config(**values) -> Callable[[pathlib.Path], object]:
    def spoil(folder: pathlib.Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return spoil


def set_file(name: str, content: bytes) -> Callable[[pathlib.Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def change_file(name: str, change: Callable[[bytes], bytes]) -> Callable[[pathlib.Path], object]:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def replace_file(name: str, put: Callable[[pathlib.Path], object]) -> Callable[[pathlib.Path], object]:
    def spoil(folder: pathlib.Path) -> None:
        (folder / name).unlink()
        put(folder / name)

    return spoil


def set_tensors(change: Callable[[dict], dict]) -> Callable[[pathlib.Path], object]:
    def spoil(folder: pathlib.Path) -> None:
        path = folder / "model.safetensors"
        safetensors.numpy.save_file(change(safetensors.numpy.load_file(path)), path)

    return spoil


def sharded(**weight_map) -> Callable[[pathlib.Path], object]:
    """The weights as one shard, of an index with changes."""

    def spoil(folder: pathlib.Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-1.safetensors")
        index = {"weight_map": {"a": "model-1.safetensors"} | weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return spoil


def link_out(name: str) -> Callable[[pathlib.Path], object]:
    """A file that is a link to the same content outside of the folder."""

    def spoil(folder: pathlib.Path) -> None:
        outside = folder.parent / "outside"
        outside.mkdir()
        shutil.move(folder / name, outside / name)
        (folder / name).symlink_to(outside / name)

    return spoil


def set_tokenizer(**values) -> Callable[[pathlib.Path], object]:
    def spoil(folder: pathlib.Path) -> None:
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return spoil


def more_words(folder: pathlib.Path) -> None:
    """A tokenizer that has a word for which the model has no embedding."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"]["question"] = 5000
    path.write_text(json.dumps(content))


def header(content: bytes, size: int | None = None) -> bytes:
    """A safetensors file of a header alone."""
    return struct.pack("<Q", len(content) if size is None else size) + content


REMOTE = "open({!r}, 'w').write('code ran')\nclass Evil:\n pass\n"


def remote_code(folder: pathlib.Path) -> None:
    """Code beside the model that its config asks to be run; it would leave a file."""
    (folder / "evil.py").write_text(REMOTE.format(str(folder / "ran")))
    own = {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"], "AutoConfig": "evil.Evil"}}
    set_config(model_type="evil", **own)(folder)
    set_tokenizer(tokenizer_class="Evil", **own)(folder)


def remote_tokenizer(folder: pathlib.Path) -> None:
    """Code that the tokenizer alone asks for."""
    (folder / "evil.py").write_text(REMOTE.format(str(folder / "ran")))
    set_tokenizer(tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]})(folder)


def pickled(folder: pathlib.Path) -> None:
    """A torch file that would run code; it would leave a file."""
    import pickle

    class Evil:
        def __reduce__(self):
            return pathlib.Path.touch, (folder / "ran",)

    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Evil()}))


def poisoned(value: float) -> Callable[[dict], dict]:
    """A tensor with one value that is no number."""

    def change(tensors: dict) -> dict:
        name = next(name for name in sorted(tensors) if name.endswith("query.weight"))
        tensor = tensors[name].copy()
        tensor[1, 2] = value
        return tensors | {name: tensor}

    return change


MODELS = {
    **{f"config.json, {name}": (replace_file("config.json", put), "config.json") for name, put in PLACES.items()},
    **{
        f"config.json, {name}": (set_file("config.json", content), "config.json")
        for name, content in {
            "empty": b"", "an array": b"[]", "truncated": b'{"model_type": "be', "latin-1": b'{"a": "\xe9"}',
            "nested": b'{"a": ' + b"[" * 100_000, "zeros": bytes(99), "UTF-16": '{"a": 1}'.encode("utf-16"),
            "huge integer": b'{"vocab_size": ' + b"9" * 5000 + b"}",
        }.items()
    },
    **{
        f"config.json, {name} {json.dumps(value):.20}": (set_config(**{name: value}), name)
        for name, values in {
            "model_type": ("gpt2", None, ["bert"], {}, 7), "hidden_size": (0, -16, 15, "16", 10**30, None, True, 16.0),
            "num_hidden_layers": (0, -1, 10**9, [1]), "num_attention_heads": (0, -2, 3, 10**9),
            "vocab_size": (0, -5, 10**12), "intermediate_size": (0, -1), "type_vocab_size": (-1, 0),
            "max_position_embeddings": (0, -1, 10**12), "hidden_act": ("nothing", 3), "is_decoder": (True,),
            "position_embedding_type": ("relative_key",), "layer_norm_eps": ("tiny", -1.0, 1e999),
            "num_labels": (2, "one", 0),
            "hidden_dropout_prob": (1.5, -1, "0.1"), "initializer_range": (float("nan"),),
        }.items()
        for value in values
    },
    **{
        f"model.safetensors, {name}": (spoil, "model.safetensors")
        for name, spoil in {
            "truncated": change_file("model.safetensors", lambda b: b[:-100]),
            "empty": set_file("model.safetensors", b""),
            "longer": change_file("model.safetensors", lambda b: b + bytes(7)),
            "huge header": set_file("model.safetensors", header(b"{}", 2**63)),
            "long header": set_file("model.safetensors", header(b"{}", 2**30)),
            "no JSON": set_file("model.safetensors", header(b"oops")),
            "a list": set_file("model.safetensors", header(b"[]")),
            "nested header": set_file("model.safetensors", header(b'{"a":' * 50_000)),
            "offsets past the end": set_file("model.safetensors", header(
                b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}')),
            "offsets backwards": set_file("model.safetensors", header(
                b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}') + bytes(8)),
            "a shape that overflows": set_file("model.safetensors", header(
                b'{"a": {"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 8]}}') + bytes(8)),
            "an unknown type": set_file("model.safetensors", header(
                b'{"a": {"dtype": "F3", "shape": [2], "data_offsets": [0, 8]}}') + bytes(8)),
            "a pickle": set_file("model.safetensors", b"\x80\x04\x95" + bytes(64)),
        }.items()
    },
    **{
        f"weights, {name}": (spoil, named)
        for name, (spoil, named) in {
            "a tensor missing": (set_tensors(lambda t: dict(list(t.items())[1:])), "missing"),
            "a tensor too many": (set_tensors(lambda t: t | {"more": np.zeros(2, np.float32)}), "more"),
            "all shapes wrong": (set_tensors(lambda t: {k: v[None] for k, v in t.items()}), "wrong shape"),
            "whole numbers": (set_tensors(lambda t: {k: np.ones(v.shape, np.int8) for k, v in t.items()}), "int8"),
            "truths": (set_tensors(lambda t: {k: v > 0 for k, v in t.items()}), "bool"),
            "complex numbers": (set_tensors(lambda t: {k: v.astype(np.complex64) for k, v in t.items()}), "weights"),
            "NaN": (set_tensors(poisoned(np.nan)), "query.weight"),
            "inf": (set_tensors(poisoned(np.inf)), "query.weight"),
            "-inf": (set_tensors(poisoned(-np.inf)), "query.weight"),
            "past float32": (
                set_tensors(lambda t: {k: v.astype(np.float64) + 1e300 for k, v in t.items()}), "not finite"
            ),
            "none": (lambda folder: (folder / "model.safetensors").unlink(), "no weights"),
            "a FIFO": (replace_file("model.safetensors", put_fifo), "weights"),
            "a pickle": (pickled, "pytorch_model.bin"),
            "a link out": (link_out("model.safetensors"), "model.safetensors"),
        }.items()
    },
    **{
        f"index, {name}": (spoil, "index.json")
        for name, spoil in {
            "absolute": sharded(b="/etc/passwd"), "upwards": sharded(b="../model/model-1.safetensors"),
            "a folder below": sharded(b="sub/model-1.safetensors"), "a backslash": sharded(b="..\\a"),
            "dots": sharded(b=".."), "no name": sharded(b=""), "a number": sharded(b=7), "a list": sharded(b=["a"]),
            "missing shard": sharded(b="model-2.safetensors"), "too long": sharded(b="a" * 5000),
            "a NUL": sharded(b="a\0b"), "half a surrogate": sharded(b="\ud800"),
        }.items()
    },
    **{
        f"{file}, a link out": (link_out(file), file)
        for file in ("config.json", "tokenizer.json", "tokenizer_config.json")
    },
    **{
        f"tokenizer.json, {name}": (set_file("tokenizer.json", content), "tokenizer")
        for name, content in {
            "empty": b"", "truncated": b'{"version": "1.0", "mod', "an array": b"[]", "zeros": bytes(50),
            "another model": b'{"version": "1.0", "model": {"type": "Nothing"}}', "nested": b"[" * 100_000,
            "a bad regex": b'{"version":"1.0","pre_tokenizer":{"type":"Split","pattern":{"Regex":"("},'
                           b'"behavior":"Isolated","invert":false},"model":{"type":"WordLevel","vocab":{},'
                           b'"unk_token":"a"}}',
            "ids past 32 bits": b'{"version":"1.0","model":{"type":"WordLevel","vocab":{"a":99999999999},'
                                b'"unk_token":"a"}}',
        }.items()
    },
    "tokenizer, more words than the model": (more_words, "vocabulary"),
    "labels, a number": (set_config(id2label=5, num_labels=None), "model"),
    "config.json, a small vocabulary": (set_config(vocab_size=10), "word_embeddings"),
    "labels, two": (set_config(id2label={"0": "a", "1": "b"}, num_labels=None), "label"),
    "labels, a list": (set_config(id2label=["a", "b"], num_labels=None), "model"),
    "tokenizer, none": (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer"),
    "tokenizer, a FIFO": (replace_file("tokenizer.json", put_fifo), "tokenizer"),
    "tokenizer_config.json, an array": (set_file("tokenizer_config.json", b"[]"), "tokenizer"),
    "tokenizer_config.json, truncated": (set_file("tokenizer_config.json", b'{"a'), "tokenizer"),
    "remote code": (remote_code, "evil"),
    **{
        f"scpo.json, {name}": (set_file("scpo.json", content), "scpo.json")
        for name, content in {
            "truncated": b'{"max_len', "an array": b"[]", "nested": b"[" * 100_000,
            "max_length a word": b'{"max_length": "long"}', "max_length 0": b'{"max_length": 0}',
            "another encoding": b'{"encoding": "rot13"}', "a group that is a number": b'{"group": 3}',
        }.items()
    },
}  # fmt: skip


def of_models() -> Iterator[Case]:
    def scored(spoil: Callable) -> Callable[[Place], list[str]]:
        def make(place: Place) -> list[str]:
            model = shutil.copytree(place.whole.model, place.folder / "model")
            spoil(model)
            return place.whole.score(place.folder, model=model)

        return make

    for name, (spoil, named) in MODELS.items():
        yield Case(f"model: {name}", scored(spoil), named)
    for name, (spoil, named) in TEMPLATES.items():
        yield Case(f"causal model: {name}", causal(spoil), named)
    for name, (spoil, named) in ADAPTERS.items():
        yield Case(f"adapters: {name}", adapters(spoil), named)


def template(text: str) -> Callable[[pathlib.Path], object]:
    return lambda folder: (folder / "chat_template.jinja").write_text(text)


TEMPLATES = {
    "a template that does not end": (
        template("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"), "chat template"
    ),
    "a template that counts far": (template("{% for a in range(10 ** 12) %}{% endfor %}"), "chat template"),
    "a template that reads attributes": (template("{{ messages.__class__.__mro__ }}"), "chat template"),
    "a template that reads globals": (
        template("{{ cycler.__init__.__globals__.os.popen('id').read() }}"), "chat template"
    ),
    "a template that appends": (template("{{ messages.append(1) }}"), "chat template"),
    "a template that includes": (template("{% include '/etc/passwd' %}"), "chat template"),
    "a template that is none": (template("{% for %}"), "chat template"),
    "a template that recurses": (template("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"), "chat template"),
    "a template that raises": (template("{{ raise_exception('never') }}"), "chat template"),
    "a template that divides by 0": (template("{{ 1 // 0 }}"), "chat template"),
    "a link out": (link_out("chat_template.jinja"), "chat_template.jinja"),
    "rope of words": (set_config(rope_theta="far"), "rope_theta"),
    "rope of a huge number": (set_config(rope_theta=10**400), "rope_theta"),
    "rope below 0": (set_config(rope_theta=-1.0), "rope"),
    "an odd head": (set_config(head_dim=7), "head_dim"),
    "huge heads": (set_config(head_dim=2**40), "head_dim"),
    "no key heads": (set_config(num_key_value_heads=0), "heads"),
    "scaling of nothing": (set_config(rope_scaling={"rope_type": "yarn"}), "rope_type"),
    "scaling without factor": (set_config(rope_scaling={"rope_type": "llama3"}), "factor"),
    "scaling of a list": (set_config(rope_scaling=[1]), "rope_scaling"),
    "scaling of lists": (set_config(rope_scaling={"rope_type": ["llama3"]}), "rope_type"),
    "layers of numbers": (set_config(layer_types=[5]), "layer_types"),
}  # fmt: skip


def causal(spoil: Callable) -> Callable[[Place], list[str]]:
    def make(place: Place) -> list[str]:
        model = shutil.copytree(place.whole.causal, place.folder / "model")
        spoil(model)
        return place.whole.score(place.folder, model=model)

    return make


def set_adapter(**values) -> Callable[[pathlib.Path], object]:
    def spoil(folder: pathlib.Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return spoil


def poison_adapter(folder: pathlib.Path) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    name = sorted(tensors)[0]
    tensors[name] = np.full_like(tensors[name], np.nan)
    safetensors.numpy.save_file(tensors, path)


ADAPTERS = {
    "config truncated": (set_file("adapter_config.json", b'{"r'), "adapter_config.json"),
    "config an array": (set_file("adapter_config.json", b"[]"), "adapter_config.json"),
    "r a word": (set_adapter(r="8"), "adapter_config.json"),
    "r below 1": (set_adapter(r=0), "adapter_config.json"),
    "r huge": (set_adapter(r=10**30), "adapter_config.json"),
    "r true": (set_adapter(r=True), "adapter_config.json"),
    "lora_alpha huge": (set_adapter(lora_alpha=10**400), "adapter_config.json"),
    "lora_dropout a word": (set_adapter(lora_dropout="often"), "adapter_config.json"),
    "no targets": (set_adapter(target_modules=None), "adapter_config.json"),
    "targets of numbers": (set_adapter(target_modules=[1]), "adapter_config.json"),
    "unknown targets": (set_adapter(target_modules=["nothing"]), "nothing"),
    "another kind": (set_adapter(peft_type="IA3"), "IA3"),
    "no base": (set_adapter(base_model_name_or_path=None), "base"),
    "a base that is a number": (set_adapter(base_model_name_or_path=7), "base"),
    "a base that is not here": (set_adapter(base_model_name_or_path="../../etc"), "base"),
    "a base of a long name": (set_adapter(base_model_name_or_path="a" * 5000), "aaa"),
    "no weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "adapter_model.safetensors"),
    "weights truncated": (
        change_file("adapter_model.safetensors", lambda b: b[:-30]), "adapter_model.safetensors"
    ),
    "weights of NaN": (poison_adapter, "lora_A"),
    "a link out": (link_out("adapter_model.safetensors"), "adapter_model.safetensors"),
}  # fmt: skip


def adapters(spoil: Callable) -> Callable[[Place], list[str]]:
    def make(place: Place) -> list[str]:
        folder = shutil.copytree(place.whole.adapters, place.folder / "adapters")
        spoil(folder)
        return place.whole.score(place.folder, model=folder)

    return make
