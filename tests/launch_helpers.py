"""A cloud to launch on: stand-ins for gcloud, python3, scpo and sleep on PATH, played by files in a folder.

`states`, `line`, `refusals`, `ssh`, `scpo.N` and `pip.N` hold what happens next, a line each; `calls` is what gcloud
was asked, `node` and `queue` are the states now, `wN` the home of worker N and `args.N` what its scpo was started with.
Where there is a file `old` no Python is new enough.

`SCPO_BASH=/path/to/another/bash pytest ...` runs run.sh, and what it sources, by another bash than the one on PATH.
"""

import os
import pathlib
import shutil
import signal
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[1]
BASH = os.environ.get("SCPO_BASH", "bash")
NEXT = """#!/usr/bin/env bash
next() {
  [ -s "$CLOUD/$1" ] && head -n 1 "$CLOUD/$1" && sed -i 1d "$CLOUD/$1"
}
"""
GCLOUD = """
echo "$*" >>"$CLOUD/calls"
worker=0 command='' format='' places=()
for word in "$@"; do
  case $word in
    --worker=*) worker=${word#*=} ;;
    --command=*) command=${word#*=} ;;
    --format=*) format=${word#*=} ;;
    --*) ;;
    *) places+=("$word") ;;
  esac
done
[ "$worker" != all ] || worker=$(seq 0 $((WORKERS - 1)))
answer() {
  if [ -f "$CLOUD/$1" ]; then cat "$CLOUD/$1"; else echo "ERROR: (gcloud) NOT_FOUND: it was not found" >&2; exit 1; fi
}
case "$3 $4" in
  'tpu-vm describe')
    if [ "$format" != 'value(state)' ]; then [ -f "$CLOUD/node" ] && echo "$WORKERS"; exit; fi
    if state=$(next states); then echo "$state" >"$CLOUD/node"; fi
    [ "${state-}" != offline ] || { rm "$CLOUD/node"; echo 'ERROR: no route to host' >&2; exit 1; }
    answer node ;;
  'queued-resources describe')
    if [ -f "$CLOUD/queue" ] && state=$(next line); then echo "$state" >"$CLOUD/queue"; fi
    [ "${state-}" != ACTIVE ] || echo READY >"$CLOUD/node"
    answer queue ;;
  'tpu-vm create')
    if refusal=$(next refusals); then echo "ERROR: $refusal" >&2; exit 1; fi
    echo READY >"$CLOUD/node" ;;
  'queued-resources create') echo ACCEPTED >"$CLOUD/queue" ;;
  *' delete') rm -rf "$CLOUD/node" "$CLOUD/queue" "$CLOUD"/w[0-9]* ;;
  'tpu-vm ssh')
    [ "$(cat "$CLOUD/node")" = READY ] || exit 255
    event=$(next ssh)
    [ "$event" != drop ] || exit 255
    for i in $worker; do
      mkdir -p "$CLOUD/w$i"
      (cd "$CLOUD/w$i" && WORKER=$i HOME=$PWD bash -c "$command" >"$CLOUD/out") && ended=0 || ended=$?
      [ "$event" != cut ] || head -c -7 "$CLOUD/out" # gcloud connects again, and the whole follows
      cat "$CLOUD/out"
      [ $ended = 0 ] || { code=$ended; echo "##### Command execution on worker $i failed" >&2; }
    done
    exit "${code-0}" ;;
  'tpu-vm scp')
    [ "$(cat "$CLOUD/node")" = READY ] || exit 1
    for i in $worker; do
      mkdir -p "$CLOUD/w$i"
      case ${places[5]} in
        *:*) cp -r "${places[4]}" "$CLOUD/w$i/${places[5]#*:}" ;;
        *) cp -r "$CLOUD/w$i/${places[4]#*:}" "${places[5]}" ;;
      esac
    done ;;
esac
"""
PYTHON3 = """
make_venv() {
  mkdir -p "$1/bin" && cp "$CLOUD/bin/venv-python" "$1/bin/python" && cp "$CLOUD/bin/scpo" "$1/bin/scpo"
}
echo "$*" >>"$CLOUD/python3.calls"
case "$(basename "$0") $1 $2" in
  *' -c '*) [ ! -f "$CLOUD/old" ] ;;
  'uv venv '*) make_venv "$5" ;;
  *' -m venv') make_venv "$3" ;;
  *' -m pip') mkdir -p "$7/bin" && cp "$0" "$7/bin/uv" ;;
esac
"""
VENV_PYTHON = """
echo "$*" >>"$CLOUD/python.${WORKER-here}"
case "$*" in
  *needs_torch.py*) cat "$CLOUD/torch" 2>/dev/null || true ;;
  *'pip install'*) if code=$(next "pip.${WORKER-here}"); then echo "pip says $code"; exit "$code"; fi ;;
esac
"""
SCPO = """
name=${WORKER-here}
printf '%s\\n' "$@" >"$CLOUD/args.$name"
event=$(next "scpo.$name") || event=0
[ "$event" != forever ] || trap 'echo saved; exit 75' TERM
echo "worker $name of ${SCPO_COMMIT-} begins: $event" | tee -a "$CLOUD/began"
case $event in
  preempted) echo PREEMPTED >"$CLOUD/node"; exit 75 ;;
  killed) kill -KILL $$ ;;
  'all killed') kill -KILL -- "-$(cat "$HOME/scpo-run/run/pid")" ;;
  forever) for _ in $(seq 400); do /bin/sleep 0.05; done ;;
  *) echo "worker $name ends"; exit "$event" ;;
esac
"""
SLEEP = "exec /bin/sleep 0.02\n"


def make_checkout(folder: pathlib.Path) -> pathlib.Path:
    """A git checkout with the launcher and two configs."""
    for name in ("launch", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / ".gitignore").write_text("runs/\n.venv*/\n")
    shutil.copy(folder / "configs" / "demo.py", folder / "configs" / "a b.py")
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    commit_all(folder)
    return folder


def commit_all(folder: pathlib.Path) -> None:
    """Commits all that is in a git checkout."""
    who = ("-c", "user.name=somebody", "-c", "user.email=somebody@example.com")
    for arguments in (("add", "."), (*who, "commit", "-q", "-m", "All")):
        subprocess.run(["git", "-C", str(folder), *arguments], check=True)


class Cloud:
    """A cloud in `folder`, and launch/run.sh of a checkout that sees it."""

    def __init__(self, folder: pathlib.Path, checkout: pathlib.Path, workers: int = 1, scpo=SCPO, sleep=SLEEP):
        self.folder, self.checkout, self._workers = folder, checkout, workers
        (folder / "bin").mkdir()
        scripts = {"gcloud": GCLOUD, "python3": PYTHON3, "venv-python": VENV_PYTHON, "scpo": scpo, "sleep": sleep}
        for name, text in scripts.items():
            path = folder / "bin" / name
            path.write_text(NEXT + text)
            path.chmod(0o755)

    def plays(self, **events) -> None:
        """What happens next; `scpo_1` stands for the file `scpo.1`."""
        for name, lines in events.items():
            (self.folder / name.replace("_", ".")).write_text("".join(f"{line}\n" for line in lines))

    def popen(self, *arguments: str) -> subprocess.Popen:
        environment = {
            "PATH": f"{self.folder}/bin:/usr/bin:/bin", "CLOUD": str(self.folder), "WORKERS": str(self._workers),
            "SCPO_VENV": str(self.folder / "venv"), "HOME": str(self.folder), "LC_ALL": "C.UTF-8",
        }  # fmt: skip
        command = [BASH, str(self.checkout / "launch" / "run.sh"), *arguments]
        how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # of tests in the background; bash cannot take that back
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return subprocess.Popen(command, env=environment, cwd=self.checkout, **how)

    def launch(self, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess:
        with self.popen(*arguments) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def run(self, *more: str, type: str = "v5litepod-8", workdir: str = "gs://bucket/run", **how):
        return self.launch("--tpu=pod", "--zone=z", f"--type={type}", *more, "configs/demo.py", workdir, **how)

    def calls(self, *words: str) -> list[str]:
        """What gcloud was asked, of the calls that hold all these words."""
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if all(word in line.split() for word in words)]

    def read(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []
