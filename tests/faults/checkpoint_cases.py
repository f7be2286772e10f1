"""Malformed checkpoints, workdirs, profiles, and other flags."""

import json
import pathlib
import shutil
from collections.abc import Callable, Iterator

from tests.faults.damage import PLACES, Case, Place, over, put_fifo, writes


def metadata(folder: pathlib.Path) -> pathlib.Path:
    """The file that describes the model of a checkpoint."""
    return folder / "model" / "metadata"


def describe(**values) -> Callable[[pathlib.Path], object]:
    """The description of a checkpoint with other values; ... removes one."""

    def spoil(folder: pathlib.Path) -> None:
        description = json.loads(metadata(folder).read_text()) | values
        content = {key: value for key, value in description.items() if value is not ...}
        metadata(folder).write_text(json.dumps(content))

    return spoil


def describe_in(part: str, **values) -> Callable[[pathlib.Path], object]:
    """The same, of a part of the description."""

    def spoil(folder: pathlib.Path) -> None:
        own = json.loads(metadata(folder).read_text())[part] | values
        describe(**{part: {key: value for key, value in own.items() if value is not ...}})(folder)

    return spoil


def link_params(folder: pathlib.Path) -> None:
    shutil.move(folder / "params", folder.parent / "elsewhere")
    (folder / "params").symlink_to(folder.parent / "elsewhere")


def cut_arrays(folder: pathlib.Path) -> None:
    for path in (folder / "params").rglob("*"):
        if path.is_file() and path.stat().st_size > 500:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


CHECKPOINTS = {
    "another schema": describe(schema_version=99),
    "a schema that is a list": describe(schema_version=[1]),
    **{f"no {key}": describe(**{key: ...}) for key in ("schema_version", "config", "card", "tokenizer")},
    **{
        f"{key} is {name}": describe(**{key: value})
        for key in ("config", "card", "tokenizer", "lora", "heads", "language")
        for name, value in {"a number": 7, "a list": [7], "a word": "much"}.items()
        if (key, name) not in (("heads", "a word"), ("language", ""))
    },
    "an empty description": lambda folder: metadata(folder).write_text("{}"),
    "a description that is a list": lambda folder: metadata(folder).write_text("[1]"),
    "a description that is null": lambda folder: metadata(folder).write_text("null"),
    "a description cut off": lambda folder: metadata(folder).write_text('{"schema_version": 1, "co'),
    "a nested description": lambda folder: metadata(folder).write_text("[" * 100_000),
    "no description": lambda folder: metadata(folder).unlink(),
    "zeros as description": lambda folder: metadata(folder).write_bytes(bytes(300)),
    "another hidden size": describe_in("config", hidden_size=32),
    "another depth": describe_in("config", num_hidden_layers=2),
    "another family": describe_in("config", model_type="gpt2"),
    "no size": describe_in("config", hidden_size="wide"),
    "huge depth": describe_in("config", num_hidden_layers=10**9),
    "max_length a word": describe_in("card", max_length="long"),
    "max_length 0": describe_in("card", max_length=0),
    "no max_length": describe_in("card", max_length=...),
    "another encoding": describe_in("card", encoding="rot13"),
    "a base that is a list": describe_in("card", base=[1]),
    "a base without name": describe_in("card", base={"revision": "", "fingerprint": ""}),
    "a base that is not there": describe_in("card", base={"name": "../../gone", "revision": "", "fingerprint": "0"}),
    **{
        f"the tokenizer file {name!r:.20}": describe_in("tokenizer", **{name: "YQ=="})
        for name in ("../evil", "/tmp/evil", "a/b", "..", ".", "", "a\\b", "a\0b", "n" * 5000)
    },
    "a tokenizer that is no base64": describe_in("tokenizer", **{"tokenizer.json": "é"}),
    "a tokenizer of numbers": describe_in("tokenizer", **{"tokenizer.json": 7}),
    "a tokenizer that is none": describe_in("tokenizer", **{"tokenizer.json": "YQ=="}),
    "adapters of nothing": describe(lora={}),
    "adapters of rank 0": describe(lora={"rank": 0, "alpha": 1.0, "targets": ["query"], "dropout": 0.0}),
    "adapters of words": describe(lora={"rank": "a", "alpha": "b", "targets": ["query"], "dropout": 0.0}),
    "adapters with more": describe(lora={"rank": 1, "alpha": 1.0, "targets": ["query"], "dropout": 0.0, "x": 1}),
    "heads that are numbers": describe(heads=[1, 2]),
    "empty arrays": lambda folder: [shutil.rmtree(folder / "params"), (folder / "params").mkdir()],
    "cut arrays": cut_arrays,
    "a link out": link_params,
}


def of_checkpoints() -> Iterator[Case]:
    def scored(spoil: Callable) -> Callable[[Place], list[str]]:
        def make(place: Place) -> list[str]:
            folder = shutil.copytree(place.whole.checkpoint, place.folder / "rm")
            spoil(folder)
            return place.whole.score(place.folder, model=folder)

        return make

    for name, spoil in CHECKPOINTS.items():
        yield Case(f"checkpoint: {name}", scored(spoil), "/rm")


RECORDS = {
    "empty": b"", "an array": b"[]", "null": b"null", "truncated": b'{"schema_version": 2, "st', "latin-1": b'"\xe9"',
    "nested": b"[" * 100_000, "another schema": b'{"schema_version": 99, "stages": {}}',
    "no stages": b'{"schema_version": 2}', "stages a number": b'{"schema_version": 2, "stages": 3}',
    "stages a list": b'{"schema_version": 2, "stages": [1]}',
    "a stage that is a number": b'{"schema_version": 2, "stages": {"prepare": 5}}',
    "a stage that is empty": b'{"schema_version": 2, "stages": {"prepare": {}}}',
    "a stage of words": b'{"schema_version": 2, "stages": {"prepare": {"fingerprint": 3, "config": "x"}}}',
    "a schema that is a list": b'{"schema_version": [2], "stages": {}}',
}  # fmt: skip


def of_records() -> Iterator[Case]:
    """`run.json` of the workdir that a run goes on in, and of one that answers as a model."""

    def by_run(spoil: Callable) -> Callable[[Place], list[str]]:
        def make(place: Place) -> list[str]:
            (place.folder / "work").mkdir()
            spoil(place.folder / "work" / "run.json")
            return place.whole.run(place.folder)

        return make

    def by_score(spoil: Callable) -> Callable[[Place], list[str]]:
        def make(place: Place) -> list[str]:
            (place.folder / "work").mkdir()
            spoil(place.folder / "work" / "run.json")
            return place.whole.score(place.folder, model=place.folder / "work")

        return make

    for name, content in RECORDS.items():
        yield Case(f"run.json: {name}", by_run(writes(content)), "run.json")
        yield Case(f"score, run.json: {name}", by_score(writes(content)), "work")
    for name in ("a folder", "a FIFO", "unreadable"):
        yield Case(f"run.json: {name}", by_run(PLACES[name]), "run.json")


PROFILES = {
    "no strength": "A=1,B=", "no group": "=1", "no sign": "A", "a word": "Chile=much", "nan": "Chile=nan",
    "inf": "Chile=inf", "too large": "Chile=101", "twice": "Chile=1,Chile=2", "unknown": "Chilee=1", "empty": " ",
    "commas": ",,,", "JSON cut off": '{"Chile": 1', "JSON twice": '{"Chile": 1, "Chile": 2}',
    "JSON NaN": '{"Chile": NaN}',
    "JSON text": '{"Chile": "1"}', "JSON truth": '{"Chile": true}', "JSON null": '{"Chile": null}',
    "JSON list": '{"Chile": [1]}', "JSON huge": '{"Chile": 1' + "0" * 400 + "}", "JSON 1e999": '{"Chile": 1e999}',
    "JSON nested": '{"a":' * 50_000, "half a surrogate": '{"\\ud800": 1}', "a file that is not there": "@gone.json",
    "a folder": "@{folder}", "a FIFO": "@{folder}/fifo", "no UTF-8": "@{folder}/latin", "too long": "@" + "a" * 5000,
    "a file of a list": "@{folder}/list.json", "a device": "@/dev/zero",
}  # fmt: skip


def of_profiles() -> Iterator[Case]:
    def make(place: Place, text: str) -> list[str]:
        put_fifo(place.folder / "fifo")
        over(place.folder, "latin", b"\xe9")
        over(place.folder, "list.json", b"[1]")
        text = text.replace("{folder}", str(place.folder))
        return [*place.whole.score(place.folder, model=place.whole.workdir), f"--profile={text}"]

    for name, text in PROFILES.items():
        yield Case(f"profile: {name}", lambda place, text=text: make(place, text), "--profile")


OTHERS = {
    "score: a model that is not there": (["score", "--model={folder}/gone"], "gone"),
    "score: a model that is a file": (["score", "--model={whole}/pairs.jsonl"], "pairs.jsonl"),
    "score: a model of a long name": (["score", f"--model={'a' * 5000}"], "aaa"),
    "score: max_length 0": (["score", "--model={whole}/model", "--max_length=0"], "--max_length"),
    "score: max_length a word": (["score", "--model={whole}/model", "--max_length=long"], "max_length"),
    "score: unknown columns": (["score", "--model={whole}/model", "--columns=refs"], "--columns"),
    "score: tau nan": (["score", "--model={whole}/model", "--columns=ref", "--tau=nan"], "--tau"),
    "score: beta 0": (["score", "--model={whole}/model", "--columns=ref", "--beta=0"], "--beta"),
    "score: another method": (["score", "--model={whole}/work", "--method=../../x"], "method"),
    "export: no checkpoint": (["export", "--checkpoint={whole}", "--output={folder}/out"], "--checkpoint"),
    "export: a FIFO in the output's place": (
        ["export", "--checkpoint={whole}/checkpoint", "--output={folder}/fifo"], "--output"
    ),
    "propose: budget 0": (
        ["propose", "--model={whole}/model", "--pairs={whole}/pairs.jsonl", "--budget=0", "--output={folder}/o"],
        "--budget",
    ),
    "steer: no workdir": (
        ["steer", "--workdir={whole}", "--pairs={whole}/pairs.jsonl", "--output={folder}/o"], "--workdir"
    ),
    "benchmark: seeds of words": (
        ["benchmark", "--config={whole}/config.py", "--workdir={folder}/w", "--seeds=a"], "--seeds"
    ),
    "benchmark: fractions of nan": (
        ["benchmark", "--config={whole}/config.py", "--workdir={folder}/w", "--fractions=nan"], "--fractions"
    ),
    "a file of flags that is not there": (["run", "--flagfile={folder}/gone"], "gone"),
    "a file of flags that is a folder": (["run", "--flagfile={folder}"], "flagfile"),
}  # fmt: skip


def of_others() -> Iterator[Case]:
    def make(place: Place, arguments: list[str]) -> list[str]:
        put_fifo(place.folder / "fifo")
        own = [
            part.replace("{folder}", str(place.folder)).replace("{whole}", str(place.whole.folder))
            for part in arguments
        ]
        files = [f"--input={place.whole.texts}", f"--output={place.folder / 'out.jsonl'}"]
        return own + files if own[0] == "score" else own

    for name, (arguments, named) in OTHERS.items():
        yield Case(name, lambda place, arguments=arguments: make(place, arguments), named)
