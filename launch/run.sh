#!/usr/bin/env bash
# Installs what this machine needs into .venv and runs a config here, on CPU or GPU.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/run.sh --local [--dry-run] CONFIG WORKDIR [--config.KEY=VALUE ...]

  --local     run on this machine: with the cuda extra where nvidia-smi finds a GPU, on the CPU otherwise
  --dry-run   print the commands instead of running them

The virtual environment is .venv in the checkout (or $SCPO_VENV); it is made once. Launching on TPU pods comes later.
TEXT
}

fail() {
  echo "launch/run.sh: error: $1" >&2
  exit 2
}

local_run=
dry_run=
while [ $# -gt 0 ]; do
  case $1 in
    --local) local_run=1 ;;
    --dry-run) dry_run=1 ;;
    -h | --help) usage; exit 0 ;;
    -*) fail "unknown flag $1; see launch/run.sh --help" ;;
    *) break ;;
  esac
  shift
done
[ -n "$local_run" ] || fail "only --local is available; see launch/run.sh --help"
[ $# -ge 2 ] || fail "CONFIG and WORKDIR are missing; see launch/run.sh --help"
config=$1
workdir=$2
shift 2
[ -f "$config" ] || fail "there is no config file $config"

root=$(cd "$(dirname "$0")/.." && pwd)
venv=${SCPO_VENV:-$root/.venv}
extra=
if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; then
  extra='[cuda]'
fi

run() {
  echo "+ $*"
  if [ -z "$dry_run" ]; then
    "$@"
  fi
}

[ -x "$venv/bin/python" ] || run python3 -m venv "$venv"
run "$venv/bin/pip" install --quiet --editable "$root$extra"
run "$venv/bin/scpo" run "--config=$config" "--workdir=$workdir" "$@"
