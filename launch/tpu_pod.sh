#!/usr/bin/env bash
# Runs an experiment on all hosts of a Cloud TPU slice, by gcloud, which must be logged in.
#
#   launch/tpu_pod.sh SUBCOMMAND OPTIONS... [MODULE [FLAGS...]]
#
#   create   asks for the slice and waits until it is there    --type --runtime [--spot]
#   install  copies the committed files of this repository to all hosts, and installs them
#   run      starts MODULE on all hosts and returns; it needs no connection to go on  [--bucket]
#   logs     follows what the first host says, until the run ends             [--worker=N]
#   stop     ends the run; the same `run` goes on from the log
#   fetch    copies the results here, to a folder of the same name            [--workdir]
#   delete   gives the slice back; until then it costs money, idle or not
#   all      all of these but stop, one after another                         MODULE [FLAGS...]
#
#   --name=NAME --zone=ZONE   of the slice; all subcommands need both
#   --project=PROJECT         by default gcloud's
#   --type=TYPE               accelerator type, as v5litepod-16 or v6e-16
#   --runtime=VERSION         as v2-alpha-tpuv5-lite or v2-alpha-tpuv6e
#   --spot                    cheaper, and may be taken away at any time: give a --bucket too
#   --bucket=gs://BUCKET/PATH keeps a copy of the workdir, from which another slice goes on
#   --workdir=FOLDER          of the results, by default runs/multitask; give it before MODULE
#   --worker=N                whose log to follow, by default 0
#   --dry-run                 prints all commands and runs none
#
# Not tried on a TPU: no slice could be reached where this was written. Commands and options were
# checked against the help of gcloud 528; the tests run what is sent to the hosts, on a stand-in.
set -euo pipefail

fail() {
  echo "error: $*" >&2
  exit 2
}
[[ $# -gt 0 ]] || fail "name a subcommand: create, install, run, logs, stop, fetch, delete or all"
subcommand=$1
shift

name='' zone='' project='' type='' runtime='' bucket='' workdir=runs/multitask worker=0
spot='' dry_run=''
while [[ $# -gt 0 && $1 == -* ]]; do
  case $1 in
    --name=?*) name=${1#*=} ;;
    --zone=?*) zone=${1#*=} ;;
    --project=?*) project=${1#*=} ;;
    --type=?*) type=${1#*=} ;;
    --runtime=?*) runtime=${1#*=} ;;
    --bucket=gs://?*) bucket=${1#*=} ;;
    --workdir=?*) workdir=${1#*=} ;;
    --worker=?*) worker=${1#*=} ;;
    --spot) spot=--spot ;;
    --dry-run) dry_run=yes ;;
    *) fail "$1: no such option, or without its =VALUE; the head of $0 lists them" ;;
  esac
  shift
done
[[ $name ]] || fail "--name=NAME is missing: what the slice is, or is to be, called"
[[ $zone ]] || fail "--zone=ZONE is missing: where the slice is, as us-east5-b"
where=("--zone=$zone" ${project:+"--project=$project"})

say() { # runs a command, or prints it in a dry run
  if [[ $dry_run ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}
on_hosts() { # which of them, all or a number, and a shell command for them
  say gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" "--worker=$1" "--command=$2"
}

create() {
  [[ $type ]] || fail "--type=TYPE is missing: the accelerator type, as v5litepod-16"
  [[ $runtime ]] || fail "--runtime=VERSION is missing: the TPU software, as v2-alpha-tpuv5-lite"
  say gcloud compute tpus queued-resources create "$name" "--node-id=$name" "${where[@]}" \
    "--accelerator-type=$type" "--runtime-version=$runtime" ${spot:+"$spot"}
  while true; do
    state=$(say gcloud compute tpus queued-resources describe "$name" "${where[@]}" \
      "--format=value(state.state)")
    echo "$state"
    case $state in
      ACTIVE) break ;;
      FAILED | SUSPEND*) fail "$name is $state; see why with describe, and delete it" ;;
    esac
    [[ ! $dry_run ]] || break
    sleep 30
  done
}

install() {
  local archive
  archive=${TMPDIR:-/tmp}/mnms_jax-$name.tar.gz
  say git -C "$(dirname "$0")/.." archive --format=tar.gz "--output=$archive" HEAD
  say gcloud compute tpus tpu-vm scp "$archive" "$name:mnms_jax.tar.gz" "${where[@]}" --worker=all
  # The images' own Python may be older than 3.11, so uv brings one.
  on_hosts all "set -e; mkdir -p mnms_jax; tar -xzf mnms_jax.tar.gz -C mnms_jax; cd mnms_jax; \
curl -LsSf https://astral.sh/uv/install.sh | sh; \
~/.local/bin/uv venv --seed --allow-existing --python 3.12 .venv; \
~/.local/bin/uv pip install --python .venv/bin/python --editable '.[bucket]' 'jax[tpu]'"
}

run() {
  [[ $# -gt 0 ]] || fail "name the MODULE to run, as experiments.multitask, behind the options"
  local command
  printf -v command '%q ' .venv/bin/python -u -m launch.host ${bucket:+"--copy=$bucket"} \
    "$1" "--workdir=$workdir" "${@:2}"
  on_hosts all "cd mnms_jax && { setsid $command >>run.log 2>&1 </dev/null & echo \$! >run.pid; }"
}

logs() {
  on_hosts "$worker" "cd mnms_jax && tail -n +1 -F --pid=\$(cat run.pid) run.log"
}

stop() {
  on_hosts all "kill \$(cat mnms_jax/run.pid)"
}

fetch() {
  say mkdir -p "$(dirname "$workdir")"
  say gcloud compute tpus tpu-vm scp "$name:mnms_jax/$workdir" "$(dirname "$workdir")" \
    "${where[@]}" --worker=0 --recurse
}

delete() {
  say gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
}

case $subcommand in
  create | install | logs | stop | fetch | delete)
    [[ $# -eq 0 ]] || fail "$1: $subcommand takes nothing behind its options"
    "$subcommand"
    ;;
  run) run "$@" ;;
  all)
    [[ $# -gt 0 ]] || fail "name the MODULE to run, as experiments.multitask, behind the options"
    trap 'echo "not done: $name may be there and cost money; resume, or delete it" >&2' EXIT
    create
    install
    run "$@"
    logs
    fetch
    delete
    trap - EXIT
    ;;
  *) fail "$subcommand: no such subcommand; create, install, run, logs, stop, fetch, delete or all" ;;
esac
