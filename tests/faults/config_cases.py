"""Config files and flags that cannot be."""

from collections.abc import Callable, Iterator

from tests.faults.damage import PLACES, Case, Place, over

BASED = "from scpo_jax.configs import base\ndef get_config():\n c = base.get_config()\n {}\n return c\n"
CONFIGS = {
    "not Python": b"def get_config(:\n",
    "NUL bytes": b"\0\0",
    "not UTF-8": b"x = '\xff'\n",
    "empty": b"",
    "raises": b"raise RuntimeError('no')\n",
    "exits": b"import sys\nsys.exit(0)\n",
    "exits later": b"def get_config():\n raise SystemExit(3)\n",
    "recurses": b"def get_config():\n return get_config()\n",
    "asserts": b"def get_config():\n assert False\n",
    "is no function": b"get_config = 3\n",
    "wants arguments": b"def get_config(size):\n return size\n",
    "returns None": b"def get_config():\n return None\n",
    "returns an object": b"def get_config():\n return {'seed': 1}\n",
    "parentheses": b"x = " + b"(" * 5000 + b")" * 5000,
    "an unknown key": BASED.format("c.scpo.tao = 1").encode(),
    "a key that is gone": BASED.format("del c.scpo.tau").encode(),
    "a wrong type": BASED.format("c.seed = 'a'").encode(),
    "a type that was unlocked": BASED.format("c.scpo.unlock(); c.scpo.ignore_type; c.scpo.__dict__").encode(),
    "text for a number": BASED.format("with c.ignore_type(): c.scpo.tau = 'high'").encode(),
    "a list for a number": BASED.format("with c.ignore_type(): c.train.batch_size = [8]").encode(),
    "None for a number": BASED.format("with c.ignore_type(): c.train.max_steps = None").encode(),
    "a number for text": BASED.format("with c.ignore_type(): c.data.path = 7").encode(),
    "a number for groups": BASED.format("with c.ignore_type(): c.data.groups = 7").encode(),
    "a float for a whole number": BASED.format("with c.ignore_type(): c.train.max_steps = 2.5").encode(),
    "a number for a section": BASED.format("with c.ignore_type(): c.scpo = 7").encode(),
    "a set in groups": BASED.format("c.data.groups = ({1},)").encode(),
    "an object in groups": BASED.format("c.data.groups = (object(),)").encode(),
    "numbers in groups": BASED.format("c.data.groups = (1, 2)").encode(),
    "bytes in methods": BASED.format("c.scpo.methods = (b'scpo',)").encode(),
    "lists in methods": BASED.format("c.scpo.methods = (['scpo'],)").encode(),
    "numbers in quantiles": BASED.format("c.data.length_quantiles = ('a', 'b')").encode(),
    "a huge seed": BASED.format("c.seed = 10 ** 5000").encode(),
}  # fmt: skip

FLAGS = {
    "an unknown key": "--config.scpo.tao=1",
    "an unknown section": "--config.nothing.at.all=1",
    "a section": "--config.scpo=1",
    "no key": "--config.=1",
    "dots": "--config...=1",
    "no value": "--config.seed",
    "a word for a number": "--config.seed=one",
    "an exponent for a whole number": "--config.train.max_steps=1e3",
    "nan": "--config.scpo.tau=nan",
    "inf": "--config.scpo.beta=inf",
    "a huge float": "--config.train.learning_rate=1e999",
    "a word for a truth": "--config.global_rm.train=perhaps",
    "an unclosed tuple": "--config.data.groups=('a',",
    "code in a tuple": "--config.data.groups=(__import__('os').getcwd(),)",
    "a set in a tuple": "--config.data.groups=({1},)",
    "bytes in a tuple": "--config.data.groups=(b'a',)",
    "a complex number in a tuple": "--config.data.groups=(1j,)",
    "an ellipsis in a tuple": "--config.scpo.methods=(...,)",
    "an unhashable in a tuple": "--config.data.groups=({[]: 1},)",
    "signs in a tuple": "--config.data.groups=(" + "-" * 50_000 + "1,)",
    "numbers for methods": "--config.scpo.methods=(1,)",
    "lists for controls": "--config.controls=(['pooled'],)",
    "numbers for allow": "--config.allow=(1,)",
    "per_group of numbers": "--config.per_group=(1, 2, 3)",
    "per_group with a list": "--config.per_group=(('World', ['tau'], 0.5),)",
    "per_group with a huge number": "--config.per_group=(('World', 'beta', 1" + "0" * 400 + "),)",
    "per_group with tau above 1": "--config.per_group=(('World', 'tau', 5),)",
    "per_group with a truth": "--config.per_group=(('World', 'tau', True),)",
    "per_group with half a surrogate": "--config.per_group=(('\\ud800', 'tau', 0.5),)",
    "quantiles that fall": "--config.data.length_quantiles=(9,3)",
    "unbalanced quotes in groups": '--config.data.groups="Chile',
    "a name too long for a file": "--config.data.path=" + "a" * 5000,
    "a model's name too long for a file": "--config.model.name_or_path=" + "a" * 5000,
    "a workdir's name too long for a file": "--workdir=" + "a" * 5000,
    "an empty stage": "--stages=,",
    "a stage that is none": "--stages=bake",
    "a stage twice of none": "--stages=prepare,prepar",
    "coordinator of nonsense": "--processes=2",
}  # fmt: skip

# What a number of the config must not be: key -> values
NUMBERS = {
    key: values
    for keys, values in (
        (("model.scratch.hidden_size", "model.scratch.num_hidden_layers", "model.scratch.num_attention_heads",
          "model.scratch.intermediate_size", "model.scratch.vocab_size", "model.max_length"), (-1, 0, 10**12)),
        (("train.batch_size", "train.max_steps", "global_rm.batch_size", "global_rm.max_steps", "checkpoint.keep",
          "distributed.heartbeat_seconds", "data.simulated.users_per_group"), (-1, 0, 10**15)),
        (("scpo.tau", "scpo.tau_test", "scpo.trim", "data.test_size", "data.max_dropped", "train.validation_size",
          "data.simulated.extreme_share"), (-0.1, 1.1)),
        (("train.learning_rate", "global_rm.learning_rate", "train.weight_decay", "data.min_share_gap"), (-1.0,)),
        (("model.scratch.dropout", "train.lora.dropout"), (-0.5, 1.5)),
        (("data.max_pairs_per_cell", "data.min_users"), (-1,)),
        (("mesh.data", "mesh.model", "mesh.group"), (0, -2, 10**6)),
        (("train.groups_per_program", "train.max_skipped"), (0, -7)),
        (("seed", "data.split_seed"), (10**400,)),
    )
    for key in keys
}  # fmt: skip


def of_configs() -> Iterator[Case]:
    def with_file(content: bytes) -> Callable[[Place], list[str]]:
        def make(place: Place) -> list[str]:
            path = over(place.folder, "mine.py", content)
            own = ["--config.data.source=jsonl", f"--config.data.path={place.whole.pairs}"]
            return ["run", f"--config={path}", f"--workdir={place.folder / 'work'}", "--stages=prepare", *own]

        return make

    def in_place(spoil: Callable) -> Callable[[Place], list[str]]:
        def make(place: Place) -> list[str]:
            spoil(place.folder / "mine.py")
            return ["run", f"--config={place.folder / 'mine.py'}", f"--workdir={place.folder / 'work'}"]

        return make

    for name, content in CONFIGS.items():
        yield Case(f"config: {name}", with_file(content), "config")
    for name, spoil in PLACES.items():
        yield Case(f"config: {name}", in_place(spoil), "mine.py")
    for name, flag in FLAGS.items():
        key = flag.split("=")[0].lstrip("-")
        named = "aaa" if key == "workdir" else key.rstrip(".")
        yield Case(f"flag: {name}", lambda place, flag=flag: place.whole.run(place.folder, flag), named)
    for key, values in NUMBERS.items():
        for value in values:
            flag = f"--config.{key}={value}"
            yield Case(
                f"flag: {flag:.60}", lambda place, flag=flag: place.whole.run(place.folder, flag), f"config.{key}"
            )
