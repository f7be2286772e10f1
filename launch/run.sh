#!/usr/bin/env bash
# Runs a config on a TPU slice, which it makes if there is none, or on this machine. For bash 3.2 and newer.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage:
  launch/run.sh --tpu=NAME --zone=Z --type=v5litepod-8 [--spot] [--queued] [--runtime=V] [--preflight] [--dry-run]
                CONFIG WORKDIR [--config.KEY=VALUE ...]
  launch/run.sh --local [--dry-run] CONFIG WORKDIR [--config.KEY=VALUE ...]
  launch/run.sh stop|delete NAME [--zone=Z] [--dry-run]
  launch/run.sh fetch NAME [FOLDER] [--zone=Z] [--dry-run]

  --tpu        the slice; made if there is none, taken as it is if there is one
  --type       v4-N, v5litepod-N, v5p-N or v6e-N
  --spot       cheaper, and may be taken away: it is made again, and the run goes on
  --queued     as a queued resource: waits in line for its turn
  --runtime    software of the TPU VM; the usual one of the type if not given
  --preflight  compile for the slice first, here, and do not launch what does not fit
  --local      on this machine: with the cuda extra where nvidia-smi finds a GPU, on the CPU otherwise
  --dry-run    print the commands instead of running them

What is launched is the commit: it is installed on all workers, which then run `scpo run`. The log of worker 0 is shown
as it comes; a run that was interrupted goes on. Ctrl-C ends only the showing: the same command shows it again.

  stop         end the run; the slice stays, and costs
  delete       the slice, with all that is on it
  fetch        logs of all workers and the workdir, into FOLDER (default runs/NAME)

WORKDIR is gs://..., or on a slice of one host that is not --spot a folder there, for `fetch`. gcloud has to be logged
in. Here logs are kept in runs/launch/NAME, the virtual environment in .venv ($SCPO_VENV), that of --preflight beside it.
Exit codes: 0 done; 1 failed, or does not fit; 2 wrong use; 75 (--local) interrupted: run it again; 130 stopped.
TEXT
}

root=$(cd "$(dirname "$0")/.." && pwd -P)
# shellcheck source=launch/common.sh
. "$root/launch/common.sh"
# shellcheck source=launch/slice.sh
. "$root/launch/slice.sh"
# shellcheck source=launch/job.sh
. "$root/launch/job.sh"

action=launch
case ${1-} in
  stop | delete | fetch)
    action=$1
    shift
    ;;
esac
local_run='' name='' zone='' type='' spot='' queued='' runtime='' preflight=''
words=() flags=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help)
      usage
      exit 0
      ;;
    --local) local_run=1 ;;
    --dry-run) dry_run=1 ;;
    --spot) spot=1 ;;
    --queued) queued=1 ;;
    --preflight) preflight=1 ;;
    --tpu=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --runtime=*) runtime=${1#*=} ;;
    -*)
      [ ${#words[@]} -eq 2 ] && [ "$action" = launch ] || fail "unknown flag $1; see launch/run.sh --help"
      flags+=("$1")
      ;;
    *) words+=("$1") ;;
  esac
  shift
done
venv=${SCPO_VENV:-$root/.venv}

if [ "$action" != launch ]; then
  [ ${#words[@]} -ge 1 ] || fail "$action needs the NAME of a slice; see launch/run.sh --help"
  [ ${#words[@]} -eq 1 ] || [ "$action" = fetch ] || fail "$action takes one NAME; see launch/run.sh --help"
  name=${words[0]}
  folder=${words[1]-$root/runs/$name}
  open_slice
  "${action}_slice"
  exit
fi

[ ${#words[@]} -ge 2 ] || fail "CONFIG and WORKDIR are missing; see launch/run.sh --help"
[ ${#words[@]} -eq 2 ] || fail "'${words[2]}' is no flag: flags are --name=value"
config=${words[0]} workdir=${words[1]}
[ -f "$config" ] || fail "there is no config file $config"
config_flags=()
for flag in ${flags[@]+"${flags[@]}"}; do
  case $flag in
    --config.* | --noconfig.*) config_flags+=("$flag") ;;
  esac
done

if [ -n "$local_run" ]; then
  [ -z "$name$zone$type$spot$queued$runtime$preflight" ] || fail "--local takes no flag of a slice"
  extra=
  if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; then
    extra='[cuda]'
  fi
  install_scpo "$venv" "$root" "$extra" "$config" ${config_flags[@]+"${config_flags[@]}"}
  set -- "$venv/bin/scpo" run "--config=$config" "--workdir=$workdir" ${flags[@]+"${flags[@]}"}
  echo "+ $(quoted "$@")"
  [ -n "$dry_run" ] || exec "$@" # signals are for it, and so is the exit code
  exit
fi

[ -n "$name" ] || fail "where? --tpu=NAME names a slice, --local is this machine; see launch/run.sh --help"
check_slice
check_commit
[ -z "$preflight" ] || check_fits
open_slice
launch_on_slice
