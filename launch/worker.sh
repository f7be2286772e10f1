#!/usr/bin/env bash
# Runs on every worker of a slice, for slice.sh: installs a commit, starts the run there, and tells how it goes.
#
# ~/scpo-run holds COMMIT/ (the checkouts), current (the installed one), venv/ and run/ (of the latest run: id, pid, log,
# exit once it has ended, stopped if that was wanted).
set -euo pipefail

base=$HOME/scpo-run
venv=$base/venv
state=$base/run
MOST=1000000     # bytes of the log in an answer
SECONDS_TO_END=60 # from SIGTERM to SIGKILL
SECONDS_TO_INSTALL=1800

# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"

is_running() {
  [ -f "$state/pid" ] && [ ! -f "$state/exit" ] &&
    grep -qs worker.sh "/proc/$(cat "$state/pid")/cmdline" # since a reboot it may be the number of something else
}

# Refuses to disturb another run than ID.
check_id() {
  if is_running && [ "$(cat "$state/id")" != "$1" ]; then
    fail "another run is going on here: launch/run.sh stop ends it"
  fi
}

# install COMMIT ID CONFIG [--config.KEY=VALUE ...]
install() {
  local commit=$1 id=$2 code=0
  shift 2
  check_id "$id"
  if is_running; then
    return
  fi
  cd "$base/$commit"
  install_scpo "$venv" "$base/$commit" '[tpu]' "$@" >"$base/install.log" 2>&1 || code=$?
  if [ "$code" -ne 0 ]; then
    tail -n 20 "$base/install.log" >&2
    fail "$(hostname) could not install the commit, see above" "$code"
  fi
  ln -sfn "$commit" "$base/current"
}

# start COMMIT ID CONFIG WORKDIR [FLAG ...]
start() {
  local commit=$1 id=$2 config=$3 workdir=$4
  shift 4
  check_id "$id"
  if is_running; then
    return
  fi
  [ "$(readlink "$base/current")" = "$commit" ] || fail "another launch has just installed another commit here" 1
  case $workdir in
    gs://* | /*) ;;
    *) workdir=$base/$workdir ;;
  esac
  mkdir -p "$state"
  rm -f "$state/exit" "$state/stopped" "$state/pid"
  if [ "$(cat "$state/id" 2>/dev/null || true)" != "$id" ]; then
    rm -f "$state/log"
  fi
  echo "$id" >"$state/id"
  cd "$base/current"
  SCPO_COMMIT=$(basename "$(pwd -P)") setsid nohup bash launch/worker.sh work \
    "$venv/bin/scpo" run "--config=$config" "--workdir=$workdir" "$@" >>"$state/log" 2>&1 </dev/null 9>&- &
  echo $! >"$state/pid"
}

# work COMMAND ...: runs it, and leaves its exit code behind.
work() {
  local code interrupted=1
  echo "+ $(quoted "$@")"
  trap 'interrupted=1; kill -TERM "$!" 2>/dev/null || true' TERM # the command says with which code it ends
  "$@" &
  while [ -n "$interrupted" ]; do
    interrupted='' code=0
    wait $! || code=$?
  done
  echo "$code" >"$state/exit.new"
  mv "$state/exit.new" "$state/exit"
}

# How the run ID stands here: none, running, stopped, its exit code, or lost: gone without one.
state_of() {
  if [ "$(cat "$state/id" 2>/dev/null || true)" != "$1" ]; then
    echo none
  elif is_running; then
    echo running
  elif [ -f "$state/stopped" ]; then
    echo stopped
  elif [ -f "$state/exit" ]; then
    cat "$state/exit"
  else
    echo lost
  fi
}

# fate ID: a line "scpo-fate WORDS", how the run ended here.
fate() {
  local told words
  told=$(state_of "$1")
  case $told in
    none) words="did not start it" ;;
    running) words="is still running" ;;
    stopped) words="was stopped" ;;
    lost) words="was lost: killed with all around it, or started anew" ;;
    134) words="aborted itself (134)" ;; # jax does so where another worker is lost
    129 | 13? | 14? | 15?) words="was lost: killed by SIG$(kill -l "$told")" ;;
    *) words="ended with $told" ;;
  esac
  echo "scpo-fate $words"
}

# poll ID OFFSET: a line "scpo-poll STATE FROM TO", then the log from byte FROM to byte TO. OFFSET is a number or last.
poll() {
  local told size=0 from=$2 to
  told=$(state_of "$1")
  if [ "$told" != none ]; then
    size=$(wc -c <"$state/log")
  fi
  if [ "$from" = last ]; then
    from=$((size > 8192 ? size - 8192 : 0))
  elif [ "$from" -gt "$size" ]; then
    from=0
  fi
  to=$size
  if [ $((to - from)) -gt "$MOST" ]; then
    to=$((from + MOST)) told=running
  fi
  echo "scpo-poll $told $from $to"
  if [ "$to" -gt "$from" ]; then
    tail -c +$((from + 1)) "$state/log" | head -c $((to - from)) || true
  fi
}

# stop [again]: ends the run, if there is one; "again" if it is only to be started once more.
stop() {
  local waited=0
  is_running || return 0
  if [ "${1-}" != again ]; then
    touch "$state/stopped"
  fi
  kill -TERM -- "-$(cat "$state/pid")" 2>/dev/null || true
  while is_running && [ "$waited" -lt "$SECONDS_TO_END" ]; do
    sleep 1
    waited=$((waited + 1))
  done
  kill -KILL -- "-$(cat "$state/pid")" 2>/dev/null || true
}

# Lets one process at a time install or start: if the connection drops, gcloud runs again what may still be going on.
take_turn() {
  exec 9>"$base/lock"
  flock -w "$SECONDS_TO_INSTALL" 9 || fail "$(hostname) has been installing for $SECONDS_TO_INSTALL s" 1
}

main() {
  local action=$1
  shift
  case $action in
    install | start) take_turn ;;
  esac
  case $action in
    install) install "$@" ;;
    start) start "$@" ;;
    work) work "$@" ;;
    poll) poll "$@" ;;
    fate) fate "$@" ;;
    stop) stop "$@" ;;
    *) fail "unknown action $action" ;;
  esac
}

main "$@"
exit
