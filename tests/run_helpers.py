"""Tiny runs for the tests of the command line: a preference file, a config and `scpo` in this process."""

import contextlib
import html.parser
import json
import os
import pathlib
import re

import jax

from scpo_jax import main

GROUPS = ("../../x", "Côte d'Ivoire", "日本")  # names that must not become paths
MAJORITY = "World"
STAGES = ["prepare", "global", "score", "select", "train", "evaluate", "report"]
CONFIG = """
from scpo_jax.configs import base


def get_config():
    config = base.get_config()
    config.data.source = "jsonl"
    config.data.path = {data!r}
    config.data.groups = {groups!r}
    config.data.test_size = 0.3
    config.model.max_length = 64
    config.model.scratch.vocab_size = 200
    config.model.scratch.hidden_size = 16
    config.model.scratch.num_hidden_layers = 1
    config.model.scratch.num_attention_heads = 2
    config.model.scratch.intermediate_size = 32
    config.global_rm.train = True
    config.global_rm.groups = ("World",)
    config.global_rm.max_steps = 6
    config.global_rm.learning_rate = 1e-3
    config.scpo.methods = ("scpo", "full")
    config.train.max_steps = 6
    config.train.learning_rate = 1e-2
    config.checkpoint.every_steps = 2
    return config
"""


def with_devices(n: int) -> dict[str, str]:
    """The environment of a process that has `n` CPU devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={n}".strip()
    return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


@contextlib.contextmanager
def compiling(optimized: bool):
    """Programs are compiled as users have them, or soon; none from before is taken, nor left for after."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", not optimized)
    if before == optimized:
        jax.clear_caches()
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)
        if before == optimized:
            jax.clear_caches()


def pairs(groups=(*GROUPS, MAJORITY), users=8, per_user=2) -> list[dict]:
    """Preference pairs: the majority likes good answers, the others warm ones."""
    rows = []
    for g, group in enumerate(groups):
        for i in range(users * per_user):
            good, warm = f"good answer {i} of {g}", f"warm reply {i} of {g}"
            rows.append(
                {
                    "prompt": f"question {i % 7}",
                    "chosen": good if (group == MAJORITY) != (i % 5 == 0) else warm,
                    "rejected": warm if (group == MAJORITY) != (i % 5 == 0) else good,
                    "group": group,
                    "user_id": f"user {g} {i // per_user}",
                    "pair_id": f"pair {g} {i}",
                }
            )
    return rows


def write_rows(path: pathlib.Path, rows: list[dict]) -> pathlib.Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read_rows(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


class World:
    """A folder with preference pairs, a config that reads them, and the workdir of its run."""

    def __init__(self, folder: pathlib.Path, rows: list[dict] | None = None, groups=GROUPS):
        self.folder, self.workdir, self.config = folder, folder / "work", folder / "config.py"
        self.data = write_rows(folder / "pairs.jsonl", pairs() if rows is None else rows)
        self.config.write_text(CONFIG.format(data=str(self.data), groups=groups), encoding="utf-8")

    def run(self, *flags: str, workdir=None) -> int:
        return scpo("run", f"--config={self.config}", f"--workdir={workdir or self.workdir}", *flags)

    def record(self) -> dict:
        return json.loads((self.workdir / "run.json").read_text())


def scpo(*arguments) -> int:
    """The exit code of `scpo ARGUMENTS`."""
    return main.main(["scpo", *map(str, arguments)])


def refusal(capsys, *arguments) -> str:
    """The one line with which `scpo` refuses a user's mistake; nothing else is printed."""
    capsys.readouterr()
    assert scpo(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("scpo: error: ") and captured.err.count("\n") == 1, captured.err
    return captured.err


def snapshot(folder: pathlib.Path) -> dict:
    """Every path under a folder with its time and content."""
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes()) if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def unrounded_report(workdir: pathlib.Path) -> dict:
    """`evaluation.json` without what follows from the scores themselves, which depend on batches by rounding."""
    report = json.loads((workdir / "reports" / "evaluation.json").read_text())
    return {key: report[key] for key in report if key not in ("margins", "noise", "macro_noise", "calibration")}


VOID = {"meta", "img", "br", "link", "input"}


class Reader(html.parser.HTMLParser):
    """Elements, text and nesting of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.elements, self.open, self.text = [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data if "style" not in self.open else ""

    def all(self, *tags):
        return [attributes for tag, attributes in self.elements if tag in tags]


def check_page(found: Reader) -> None:
    """A page needs nothing else, machines can read it aloud, and no caption scrolls away with its table."""
    assert not found.all("caption")
    assert not found.all("script", "link", "iframe", "object")
    addresses = [own[key] for _, own in found.elements for key in ("src", "href") if key in own]
    assert addresses and all(address.startswith(("data:image/svg+xml;base64,", "#")) for address in addresses)
    targets = {own["id"] for _, own in found.elements if "id" in own}
    assert {address[1:] for address in addresses if address.startswith("#")} <= targets
    assert found.all("html") == [{"lang": "en"}] and all(len(own["alt"]) > 40 for own in found.all("img"))
    levels = [int(tag[1]) for tag, _ in found.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    assert all("scope" in own for own in found.all("th"))
    assert all(own.get("aria-label") for own in found.all("div") if own.get("class") == "scroll")
    policy = [own["content"] for own in found.all("meta") if own.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
