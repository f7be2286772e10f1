# shellcheck shell=bash
# Sourced by run.sh: what is launched, and the slice where, through gcloud. The script has set root, action, name, zone,
# type, spot, queued, runtime, config, config_flags and workdir.

SECONDS_TO_LOOK=15
SECONDS_IN_LINE=60
was_ready='' # the slice has been ready: if it is missing now, somebody deleted it

say() {
  echo "launch: $*" >&2
}

pause() {
  [ -n "$dry_run" ] || sleep "$1"
}

# The chips of a type of slice by their axes, and the software of its machines.
check_slice() {
  local shape=
  case $type in
    v5litepod-1 | v6e-1) shape=1x1 ;;
    v5litepod-4 | v6e-4) shape=2x2 ;;
    v5litepod-8 | v6e-8) shape=2x4 ;;
    v5litepod-16 | v6e-16) shape=4x4 ;;
    v5litepod-32 | v6e-32) shape=4x8 ;;
    v5litepod-64 | v6e-64) shape=8x8 ;;
    v5litepod-128 | v6e-128) shape=8x16 ;;
    v5litepod-256 | v6e-256) shape=16x16 ;;
    v4-8 | v5p-8) shape=2x2x1 ;;
    v4-16 | v5p-16) shape=2x2x2 ;;
    v4-32 | v5p-32) shape=2x2x4 ;;
    v4-64 | v5p-64) shape=2x4x4 ;;
    v4-128 | v5p-128) shape=4x4x4 ;;
    v4-256 | v5p-256) shape=4x4x8 ;;
    v4-512 | v5p-512) shape=4x8x8 ;;
    v4-1024 | v5p-1024) shape=8x8x8 ;;
    v4-2048 | v5p-2048) shape=8x8x16 ;;
    v4-4096 | v5p-4096) shape=8x16x16 ;;
    v5p-8192) shape=16x16x16 ;;
    v5p-12288) shape=16x16x24 ;;
    '') fail "--type is missing; see launch/run.sh --help" ;;
    *) fail "--type=$type: known are v5litepod-N and v6e-N with N of 1, 4, 8, 16, 32, 64, 128 or 256 chips, and v4-N and \
v5p-N with N of 8, 16, 32, 64, 128, ... cores" ;;
  esac
  case $type in
    v4-*) topology=v4:$shape runtime=${runtime:-tpu-ubuntu2204-base} ;;
    v5litepod-*) topology=v5e:$shape runtime=${runtime:-v2-alpha-tpuv5-lite} ;;
    v5p-*) topology=v5p:$shape runtime=${runtime:-v2-alpha-tpuv5} ;;
    v6e-*) topology=v6e:$shape runtime=${runtime:-v2-alpha-tpuv6e} ;;
  esac
  [ -n "$zone" ] || fail "--zone is missing; see launch/run.sh --help"
  case $workdir in
    gs://*) return ;;
  esac
  [ -z "$spot" ] || fail "$workdir is lost with a slice that is taken away: with --spot WORKDIR is gs://..."
  case $shape in
    1x1 | 2x2 | 2x4 | 2x2x1) ;;
    *) fail "$workdir is not one place for the several hosts of $type: WORKDIR is gs://..." ;;
  esac
}

# What is launched is a commit: refuses what is not in it. Makes config a path from the checkout's root.
check_commit() {
  local path
  commit=$(git -C "$root" rev-parse --verify --quiet HEAD) || fail "$root is no git checkout: a commit is launched"
  [ -z "$(git -C "$root" status --porcelain --untracked-files=no)" ] ||
    fail "the checkout has changes that are not committed (git status), and the commit is launched: commit them"
  path=$(cd "$(dirname "$config")" && pwd -P)/$(basename "$config")
  git -C "$root" ls-files --error-unmatch -- "$path" >/dev/null 2>&1 ||
    fail "$config is not in the commit that is launched: commit it"
  config=${path#"$root"/}
}

# Compiles for the slice; ends the launcher if something does not fit.
check_fits() {
  local venv=$venv-tpu code=0
  [ "$(uname)" = Linux ] || fail "--preflight needs Linux: there is no TPU compiler for $(uname)"
  install_scpo "$venv" "$root" '[tpu]' "$root/$config" ${config_flags[@]+"${config_flags[@]}"} || exit
  run "$venv/bin/scpo" preflight "--config=$root/$config" "--topology=$topology" \
    ${config_flags[@]+"${config_flags[@]}"} || code=$?
  [ "$code" -ne 1 ] || fail "it does not fit on $type: not launched" 1
  [ "$code" -eq 0 ] || exit "$code"
}

# Where this machine keeps what it knows of the slice, and finds it again; a temporary folder.
open_slice() {
  case $name in
    '' | *[!a-z0-9-]* | [!a-z]*) fail "'$name' is no name of a slice: small letters, digits and hyphens" ;;
  esac
  [ -n "$dry_run" ] || command -v gcloud >/dev/null 2>&1 || fail "there is no gcloud here: install the Google Cloud CLI and log in"
  record=$root/runs/launch/$name
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  if [ "$action" != launch ]; then
    zone=${zone:-$(cat "$record/zone" 2>/dev/null || true)} workdir=$(cat "$record/workdir" 2>/dev/null || true)
    [ -n "$zone" ] || fail "$name was not launched from here: name its --zone"
    ask queued-resources 'value(state.state)'
    case $said in
      MISSING | UNKNOWN) ;;
      *) queued=1 ;;
    esac
  elif [ -z "$dry_run" ]; then
    mkdir -p "$record"
    echo "$zone" >"$record/zone"
    echo "$workdir" >"$record/workdir"
  fi
}

# ask KIND FORMAT: what gcloud says of the slice, in `said`: MISSING if there is none, UNKNOWN if gcloud failed.
ask() {
  set -- gcloud compute tpus "$1" describe "$name" "--zone=$zone" "--format=$2"
  if [ -n "$dry_run" ]; then
    run "$@"
    said=MISSING
  elif said=$("$@" 2>"$work/error"); then
    said=${said:-UNKNOWN}
  elif grep -qE 'NOT_FOUND|was not found' "$work/error"; then
    said=MISSING
  else
    said=UNKNOWN
  fi
}

# Returns when the slice is ready; makes it, or makes it again. Ends the launcher if it cannot be had.
make_ready() {
  local state='' before unknown=0 failed=0
  while :; do
    before=$state
    ask tpu-vm 'value(state)'
    state=$said
    if [ "$state" = MISSING ] && [ -n "$queued" ]; then
      ask queued-resources 'value(state.state)'
      [ "$said" = MISSING ] || state="in line: $said"
    fi
    [ "$state" = "$before" ] || say "$name is $state"
    [ "$state" = UNKNOWN ] || unknown=0
    case $state in
      READY)
        was_ready=1
        return
        ;;
      MISSING)
        [ -z "$was_ready" ] || fail "$name was deleted by somebody else: not made again" 1
        make
        [ -z "$dry_run" ] || return 0 # it would be asked until it is ready
        ;;
      PREEMPTED | TERMINATED | 'in line: SUSPENDED') remove || pause "$SECONDS_TO_LOOK" ;;
      'in line: FAILED')
        failed=$((failed + 1))
        [ "$failed" -lt 3 ] || fail "the queued resource $name failed three times: see gcloud compute tpus \
queued-resources describe $name --zone=$zone" 1
        remove || pause "$SECONDS_TO_LOOK"
        ;;
      STOPPED) run gcloud compute tpus tpu-vm start "$name" "--zone=$zone" || pause "$SECONDS_IN_LINE" ;;
      UNKNOWN)
        unknown=$((unknown + 1))
        cat "$work/error" >&2
        [ "$unknown" -lt 5 ] || fail "gcloud does not answer for $name; what runs there goes on, and the same command \
shows it again" 1
        pause "$SECONDS_TO_LOOK"
        ;;
      in\ line*) pause "$SECONDS_IN_LINE" ;;
      *) pause "$SECONDS_TO_LOOK" ;;
    esac
  done
}

# Asks for the slice; waits a while if there is no room for it now.
make() {
  if [ -n "$queued" ]; then
    set -- queued-resources create "$name" "--node-id=$name" "--runtime-version=$runtime"
  else
    set -- tpu-vm create "$name" "--version=$runtime"
  fi
  set -- gcloud compute tpus "$@" "--zone=$zone" "--accelerator-type=$type" --quiet
  [ -z "$spot" ] || set -- "$@" --spot
  run "$@" 2>"$work/error" && return
  cat "$work/error" >&2
  if grep -qiE 'quota|reserved capacity' "$work/error" ||
    ! grep -qiE 'capacity|exhausted|unavailable|internal error|already ?exists' "$work/error"; then
    fail "$name cannot be made, gcloud says why" 1
  fi
  say "not now; asking again in $SECONDS_IN_LINE s"
  pause "$SECONDS_IN_LINE"
}

# Removes the slice, whatever is left of it.
remove() {
  was_ready=
  if [ -n "$queued" ]; then
    run gcloud compute tpus queued-resources delete "$name" "--zone=$zone" --force --quiet
  else
    run gcloud compute tpus tpu-vm delete "$name" "--zone=$zone" --quiet
  fi
}

delete_slice() {
  ask tpu-vm 'value(state)'
  if [ -z "$queued$dry_run" ] && [ "$said" = MISSING ]; then
    say "there is no $name"
  else
    remove
  fi
}
