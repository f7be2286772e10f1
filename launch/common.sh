# shellcheck shell=bash
# Sourced by run.sh and worker.sh: how commands are shown and run, and an environment with what a config needs.

dry_run=''
TORCH_INDEX=https://download.pytorch.org/whl/cpu # builds for Linux that bring no CUDA along

# fail MESSAGE [EXIT CODE]
fail() {
  echo "launch/$(basename "$0"): error: $1" >&2
  exit "${2:-2}"
}

# The arguments as a shell reads them.
quoted() {
  local word line='' escape="s/'/'\\\\''/g"
  for word in "$@"; do
    case $word in
      '' | *[!A-Za-z0-9_@%+=:,./-]*)
        word=$(printf '%s\n' "$word" | LC_ALL=C sed "$escape")
        word="'$word'"
        ;;
    esac
    line="$line${line:+ }$word"
  done
  printf '%s\n' "$line"
}

run() {
  echo "+ $(quoted "$@")"
  if [ -z "$dry_run" ]; then
    "$@"
  fi
}

# The name of a Python that is new enough; fails where there is none.
new_python() {
  local python
  for python in python3 python3.14 python3.13 python3.12 python3.11; do
    if "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      echo "$python"
      return
    fi
  done
  return 1
}

# install_scpo VENV ROOT EXTRA CONFIG [--config.KEY=VALUE ...]: returns 2 for a user's mistake, 1 if it cannot be done.
install_scpo() {
  local venv=$1 root=$2 extra=$3 config=$4 clear='' python answer
  shift 4
  if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then # there is none, or one that was never finished
    [ ! -f "$venv/pyvenv.cfg" ] || clear=--clear # its Python may be gone; of another folder nothing is removed
    if python=$(new_python); then
      run "$python" -m venv ${clear:+"$clear"} "$venv" || return 1
    else # uv brings a Python along; it has a folder for itself, as many systems forbid pip to install anywhere else
      run python3 -m pip install --quiet --upgrade --target "$venv-uv" uv || return 1
      run "$venv-uv/bin/uv" venv --quiet ${clear:+"$clear"} --seed --python=3.12 "$venv" || return 1
    fi
  fi
  run "$venv/bin/python" -m pip install --quiet --editable "$root$extra" || return 1
  set -- "$venv/bin/python" "$root/launch/needs_torch.py" "--config=$config" "$@"
  echo "+ $(quoted "$@")"
  if [ -n "$dry_run" ]; then
    echo "# and if that says torch:"
    answer=torch
  else
    answer=$("$@") || return
  fi
  [ "$answer" = torch ] || return 0
  set -- "$venv/bin/python" -m pip install --quiet 'torch>=2.4'
  if [ "$(uname)" = Linux ]; then
    set -- "$@" "--index-url=$TORCH_INDEX"
  fi
  run "$@" || return 1
}
