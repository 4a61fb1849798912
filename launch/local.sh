#!/usr/bin/env bash
# Runs an experiment as N processes on this machine, which search together over the loopback.
#
#   launch/local.sh N MODULE [FLAGS...]
#   launch/local.sh 2 experiments.multitask --num_workers=1 --workdir=runs/two
#
# What the first process says is shown, and what each says is kept in a file. When one fails, all
# end, and so does this, with its exit code; Ctrl-C and SIGTERM end all too. The same command goes
# on from the log.
#
# Environment: PYTHON, by default that of .venv; LOGS, the folder of the files, by default a new one
# under runs/logs; JAX_PLATFORMS, by default cpu, since each process would take all accelerators.
# Nothing newer than bash 3.2 is used, which is macOS's.
set -euo pipefail

if [[ $# -lt 2 || ! $1 =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: $0 N MODULE [FLAGS...], with N processes, at least 1" >&2
  exit 2
fi
number=$1 module=$2
shift 2

venv=$(dirname "$0")/../.venv/bin/python
[[ -x $venv ]] || venv=python3
python=${PYTHON:-$venv}
logs=${LOGS:-runs/logs/$(date +%Y%m%d-%H%M%S)-$$}
mkdir -p "$logs"
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
port=$("$python" -c 'import socket
with socket.socket() as free:
    free.bind(("localhost", 0))
    print(free.getsockname()[1])')

pids=() # of what still runs, by number
stop() { # ends that: politely, and after ten seconds for good
  [[ ${#pids[@]} -gt 0 ]] || return 0
  kill "${pids[@]}" 2>/dev/null || true
  for _ in {1..50}; do
    kill -0 "${pids[@]}" 2>/dev/null || return 0
    sleep 0.2
  done
  kill -KILL "${pids[@]}" 2>/dev/null || true
}
finish() { # with an exit code
  trap '' HUP INT TERM
  stop
  wait "$shown" || true # so that nothing is shown after the end
  rm -f "$pipe"
  exit "$1"
}

pipe=$logs/.shown
rm -f "$pipe"
mkfifo "$pipe"
tee "$logs/0.log" <"$pipe" &
shown=$!
trap 'finish 129' HUP
trap 'finish 130' INT
trap 'finish 143' TERM
echo "$number processes of $module; what they say is in $logs" >&2
for ((i = 0; i < number; i++)); do
  output=$logs/$i.log
  [[ $i -gt 0 ]] || output=$pipe
  "$python" -u -m "$module" "$@" --distributed "--coordinator_address=localhost:$port" \
    "--num_processes=$number" "--process_id=$i" >"$output" 2>&1 &
  pids[i]=$!
done

while [[ ${#pids[@]} -gt 0 ]]; do
  sleep 0.2
  for i in "${!pids[@]}"; do
    kill -0 "${pids[i]}" 2>/dev/null && continue
    code=0
    wait "${pids[i]}" || code=$?
    unset "pids[i]"
    if [[ $code -ne 0 ]]; then
      echo "process $i ended with exit code $code, so all end; see $logs/$i.log, whose end is" >&2
      tail -n 5 "$logs/$i.log" >&2
      finish "$code"
    fi
  done
done
finish 0
