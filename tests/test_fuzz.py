"""Random damage to whole inputs: each is read, or refused with an InputError; nothing else ever surfaces."""

import contextlib
import copy
import json

import hypothesis
import pytest
from hypothesis import strategies as st

from scpo_jax import checkpoint, judge, pipeline, steering, workdir
from scpo_jax.data import global_opinions, jsonl, preferences, prism
from scpo_jax.errors import InputError
from scpo_jax.models import hf, peft
from tests.faults import whole
from tests.faults.checkpoint_cases import metadata
from tests.faults.damage import json_lines
from tests.faults.data_cases import opinion
from tests.faults.table_cases import parquet, table
from tests.faults.whole import Whole

HOSTILE = [
    None, True, 0, -1, 3, 10**12, 10**400, 0.5, -1e308, float("nan"), float("inf"), "", "Chile", "0", "a\0b", "\ud800",
    "../x", "/etc/passwd", [], [[]], {}, {"": {}}, [None] * 3, {"a": [1]}, "x" * 300,
]  # fmt: skip


def settings(examples: int) -> hypothesis.settings:
    return hypothesis.settings(
        max_examples=examples, derandomize=True, deadline=None, database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return Whole(tmp_path_factory.mktemp("whole"))


@st.composite
def damaged(draw, content: bytes) -> bytes:
    """A content with a few pieces cut out, doubled, or replaced by bytes or by tokens of JSON."""
    tokens = [b"", b'"', b"{", b"}", b"[", b"\n", b",", b"\\", b"\0", b"\xff", b"null", b"1e999", b"\\ud800", b"NaN"]
    for _ in range(draw(st.integers(1, 4))):
        first = draw(st.integers(0, len(content)))
        last = draw(st.integers(first, min(len(content), first + 40)))
        piece = draw(st.one_of(st.sampled_from(tokens), st.binary(max_size=3), st.just(content[first:last] * 2)))
        content = content[:first] + piece + content[last:]
    return content


@st.composite
def altered(draw, value):
    """A JSON value with one to three parts replaced by hostile ones, removed, or put elsewhere."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        places = list(places_in(value))
        if not places:
            break
        parent, key = draw(st.sampled_from(places))
        if draw(st.booleans()) and isinstance(parent, dict):
            del parent[key]
        else:
            parent[key] = copy.deepcopy(draw(st.sampled_from(HOSTILE)))
    return value


def places_in(value):
    """(container, key) of every part of a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield value, key
        yield from places_in(part)


def build(source) -> None:
    """The table of what an adapter read."""
    limits = {"groups": (), "min_users": 0, "test_size": 0.2, "split_seed": 0, "max_dropped": 0.9}
    preferences.build(source, **limits)


def survives(read, *arguments) -> None:
    """Reads, or refuses in a line, which `main` makes of an OSError too."""
    with contextlib.suppress(InputError, OSError):
        read(*arguments)


READERS = {
    "pairs.jsonl": (jsonl.read, json_lines(whole.PAIRS[:12])),
    "pairs.csv": (jsonl.read, b"prompt,chosen,rejected,margin\n" + b'q,"good, answer",warm,0.5\n' * 6),
    "pairs.parquet": (jsonl.read, parquet(table(whole.PAIRS[:12]))),
    "questions.csv": (global_opinions.read, opinion()),
}


@pytest.mark.parametrize("name", READERS)
def test_files_of_rows(name, tmp_path):
    read, content = READERS[name]

    @settings(50)
    @hypothesis.given(damaged(content))
    def check(content):
        (tmp_path / name).write_bytes(content)
        survives(lambda: build(read(tmp_path / name)))

    check()


@pytest.mark.parametrize("name", whole.PRISM)
def test_prism(name, tmp_path):
    for file, rows in whole.PRISM.items():
        (tmp_path / file).write_bytes(json_lines(rows))

    @settings(50)
    @hypothesis.given(damaged(json_lines(whole.PRISM[name])))
    def check(content):
        (tmp_path / name).write_bytes(content)
        survives(lambda: build(prism.read(tmp_path)))

    check()


@pytest.mark.parametrize("name", [*whole.PRISM, "pairs"])
def test_values_of_rows(name, tmp_path):
    rows = whole.PRISM[name] if name in whole.PRISM else whole.PAIRS[:8]
    for file, own in whole.PRISM.items():
        (tmp_path / file).write_bytes(json_lines(own))

    @settings(50)
    @hypothesis.given(altered(rows))
    def check(rows):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        survives(lambda: build(jsonl.read(tmp_path / name) if name == "pairs" else prism.read(tmp_path)))

    check()


@pytest.mark.parametrize("name", ["model", "causal"])
def test_configs_of_models(name, inputs, tmp_path):
    folder = getattr(inputs, name)
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    stated = json.loads((folder / "config.json").read_text())

    @settings(20)
    @hypothesis.given(altered(stated))
    def check(stated):
        (tmp_path / "config.json").write_text(json.dumps(stated))
        survives(hf.load, tmp_path)

    check()


def test_weights_of_models(inputs, tmp_path):
    (tmp_path / "config.json").write_bytes((inputs.model / "config.json").read_bytes())
    content = (inputs.model / "model.safetensors").read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")

    @settings(20)
    @hypothesis.given(damaged(content[:end]))
    def check(head):
        (tmp_path / "model.safetensors").write_bytes(head + content[end:])
        survives(hf.load, tmp_path)

    check()


def test_configs_of_adapters(inputs):
    stated = json.loads((inputs.adapters / "adapter_config.json").read_text())

    @settings(50)
    @hypothesis.given(altered(stated))
    def check(stated):
        survives(peft.read_config, stated, inputs.adapters)
        survives(peft.base_folder, stated, inputs.adapters)

    check()


def test_descriptions_of_checkpoints(inputs, tmp_path, monkeypatch):
    folder = tmp_path / "rm"
    checkpoint.save(folder, checkpoint.load(inputs.checkpoint))
    params = checkpoint.load(inputs.checkpoint).params
    stated = json.loads(metadata(folder).read_text())
    monkeypatch.setattr(checkpoint, "_read_params", lambda *_: params)

    @settings(20)
    @hypothesis.given(altered(stated))
    def check(stated):
        metadata(folder).write_text(json.dumps(stated))
        survives(judge.load_model, folder)

    check()


def test_records_of_runs(inputs, tmp_path):
    stated = json.loads((inputs.workdir / "run.json").read_text())

    @settings(50)
    @hypothesis.given(altered(stated))
    def check(stated):
        (tmp_path / "run.json").write_text(json.dumps(stated))
        survives(lambda: [workdir.finished(workdir.Workdir(tmp_path).record(), name) for name in pipeline.STAGES])

    check()


@settings(100)
@hypothesis.given(st.one_of(damaged(b'{"Chile": 0.7, "Mexico": 0.3}'), damaged(b"Chile=0.7,Mexico=0.3")))
def test_profiles(content):
    text = content.decode("utf-8", "surrogateescape").replace("\0", "")
    survives(steering.parse_inline, text, ("Chile", "Mexico"), "--profile")
