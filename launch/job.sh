# shellcheck shell=bash
# Sourced by run.sh after slice.sh: the run on the workers of a slice. Uses commit and flags, and folder to fetch to.

CRASHES=3 # in a row, after which the launcher gives up; that the slice was taken away is no crash
SECONDS_OF_PROGRESS=3600 # after which what ends a run is the first crash in a row
MISSES=5 # answers in a row that do not come from a ready slice, after which its worker counts as lost
PROGRAM=scpo-run/current/launch/worker.sh

# ssh_to WORKER COMMAND: sets `call` to the command of gcloud; WORKER is a number or all. If the connection fails gcloud
# runs it again by itself, so every COMMAND may be run twice.
ssh_to() {
  call=(gcloud compute tpus tpu-vm ssh "$name" "--zone=$zone" "--worker=$1" --quiet --ssh-flag=-oConnectTimeout=20
    --ssh-flag=-oServerAliveInterval=20 "--command=$2") # by itself ssh may wait for ever for a machine that is gone
}

# copy WORKER FROM TO: files to or from a worker, a number or all.
copy() {
  run gcloud compute tpus tpu-vm scp "$2" "$3" "--zone=$zone" "--worker=$1" --quiet --recurse \
    --scp-flag=-oConnectTimeout=20 --scp-flag=-oServerAliveInterval=20
}

on_all() {
  ssh_to all "$1"
  run "${call[@]}"
}

# Up to three times: the network, or a worker, may come back. Not after the exit code of a user's mistake.
attempt() {
  local tries=1 code
  while :; do
    code=0
    "$@" || code=$?
    if [ "$code" -eq 0 ] || [ "$code" -eq 2 ] || [ "$tries" -eq 3 ]; then
      return "$code"
    fi
    tries=$((tries + 1))
    pause "$SECONDS_TO_LOOK"
  done
}

# Brings the commit to all workers, installs it and starts the run, unless it is running.
start() {
  local own=scpo-run/$commit archive=scpo-$commit.tar.gz arguments unpack
  run git -C "$root" archive --format=tar.gz "--output=$work/$archive" "$commit" || return
  attempt copy all "$work/$archive" "$name:$archive" || return
  unpack="mkdir -p scpo-run && new=\$(mktemp -d scpo-run/new.XXXXXX) && tar -xzf $archive -C \$new && mv -T \$new $own"
  attempt on_all "[ -d $own ] || { $unpack; } || [ -d $own ]" || return
  arguments=$(quoted "$commit" "$id" "$config" ${config_flags[@]+"${config_flags[@]}"})
  attempt on_all "bash $own/launch/worker.sh install $arguments" || return
  arguments=$(quoted "$commit" "$id" "$config" "$workdir" ${flags[@]+"${flags[@]}"})
  attempt on_all "bash $PROGRAM start $arguments"
}

# Shows the log of worker 0 until the run ends; `ended` is then its exit code, "stopped", or "lost".
follow() {
  local offset=last misses=0 told='' from=0 to=0
  ended=
  while [ -z "$ended" ]; do
    ssh_to 0 "bash $PROGRAM poll $id $offset"
    if "${call[@]}" >"$work/answer" 2>"$work/error" && has_arrived; then
      misses=0 offset=$to
      tail -n +2 "$work/answer"
      [ "$told" = running ] || ended=$told
    else
      misses=$((misses + 1))
      ask tpu-vm 'value(state)'
      case $said in
        READY | UNKNOWN) [ "$misses" -lt "$MISSES" ] || ended=lost ;;
        *) ended=lost ;;
      esac
    fi
    [ -n "$ended" ] || pause "$SECONDS_TO_LOOK"
  done
}

# Whether the answer of `worker.sh poll` is whole, and there once: its first line says which bytes of the log follow.
has_arrived() {
  local mark
  read -r mark told from to <"$work/answer" || return 1
  case $from$to in
    '' | *[!0-9]*) return 1 ;;
  esac
  [ "$mark" = scpo-poll ] && [ "$(tail -n +2 "$work/answer" | wc -c)" -eq $((to - from)) ]
}

# Sets `workers` to their number, 0 if the slice is not there, or cannot be asked.
count_workers() {
  workers=1
  [ -z "$dry_run" ] || return 0
  ask tpu-vm 'value(state)'
  [ "$said" != READY ] || ask tpu-vm 'value(networkEndpoints.len())'
  case $said in
    *[!0-9]*) workers=0 ;;
    *) workers=$said ;;
  esac
}

# Says how the run ended on each worker: that of worker 0 may have ended because another one was lost.
tell_fates() {
  local i=0 fates='' fate
  while [ "$i" -lt "$workers" ]; do
    ssh_to "$i" "bash $PROGRAM fate $id"
    fate=$("${call[@]}" 2>"$work/error" | grep '^scpo-fate ' | tail -n 1) || true
    fate=${fate#scpo-fate }
    fates="$fates${fates:+, }worker $i ${fate:-does not answer}"
    i=$((i + 1))
  done
  say "$fates"
}

# Copies the logs of all workers to this machine.
collect() {
  local i=0 missing=''
  count_workers
  [ "$workers" -gt 0 ] || return 0
  run mkdir -p "$record"
  while [ "$i" -lt "$workers" ]; do
    copy "$i" "$name:scpo-run/run/log" "$record/worker-$i.log" 2>"$work/error" || missing="$missing $i"
    i=$((i + 1))
  done
  say "the logs of the workers are in $record${missing:+; there is no answer from worker$missing}"
}

# Runs the config to its end, however often the slice is taken away.
launch_on_slice() {
  local crashes=0 code began
  id=$(quoted "$commit" "$config" "$workdir" ${flags[@]+"${flags[@]}"} | cksum | tr -cd 0-9)
  trap 'say "what runs on $name goes on; the same command shows it again, launch/run.sh stop $name ends it"; exit 130' INT
  while :; do
    make_ready
    code=0 began=$SECONDS
    start || code=$?
    [ "$code" -ne 2 ] || fail "$name refused, see above" 2
    ended="it did not start"
    if [ -n "$dry_run" ]; then
      ssh_to 0 "bash $PROGRAM poll $id last"
      run "${call[@]}"
      ended=0
    elif [ "$code" -eq 0 ]; then
      follow
    fi
    collect
    case $ended in
      0) break ;;
      2) fail "the command was refused, see its log above" 2 ;;
      stopped) fail "the run was stopped" 130 ;;
    esac
    ask tpu-vm 'value(state)'
    if [ "$said" != READY ]; then
      say "$name was taken away"
      crashes=0
      continue
    fi
    [ "$code" -ne 0 ] || tell_fates
    [ $((SECONDS - began)) -lt "$SECONDS_OF_PROGRESS" ] || crashes=0
    crashes=$((crashes + 1))
    [ "$ended" != 75 ] || crashes=0
    [ "$crashes" -lt "$CRASHES" ] || fail "the run failed $crashes times in a row, at last: $ended; logs are in $record" 1
    say "the run ended: $ended; starting it again"
    on_all "[ ! -f $PROGRAM ] || bash $PROGRAM stop again" || pause "$SECONDS_TO_LOOK"
  done
  say "done; launch/run.sh fetch $name brings the results, launch/run.sh delete $name the bill to an end"
}

stop_slice() {
  on_all "[ ! -f $PROGRAM ] || bash $PROGRAM stop" # it may not be there yet
  say "the slice is still there, and costs: launch/run.sh delete $name"
}

fetch_slice() {
  [ -n "$workdir" ] || fail "$name was not launched from here: its workdir is not known"
  collect
  run mkdir -p "$folder"
  case $workdir in
    gs://*)
      run gcloud storage rsync --recursive '--exclude=^checkpoints/training/.*' "$workdir" "$folder"
      return
      ;;
    /*) ;;
    *) workdir=scpo-run/$workdir ;;
  esac
  copy 0 "$name:$workdir" "$folder"
}
