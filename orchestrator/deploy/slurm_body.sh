# The same for every job. Slurm gives one allocation; the first node runs the head and the driver.
#
#   USR1, a while before the time is up:  commit after the step under way, back into the queue
#   TERM, as scancel and preemption say:  commit after the step under way, end
#   started again:                        go on from the newest commit; anew where there is none
set -euo pipefail
START_S=300 # for all nodes to join
STOP_S=60   # for Ray's processes to end

# Ray's token: in a file that only this user reads, on the shared file system; never on a command line.
mkdir -p "$(dirname "$RUN_DIR")"
state=$(dirname "$RUN_DIR")/.slurm-$SLURM_JOB_ID
(umask 077 && mkdir -p "$state" && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$state/token")
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$(cd "$state" && pwd)/token"
# A lost node is noticed within seconds.
export RAY_health_check_initial_delay_ms=1000 RAY_health_check_period_ms=500
export RAY_health_check_timeout_ms=1000 RAY_health_check_failure_threshold=3

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
ip=${SLIPSTREAM_HEAD_IP:-$(hostname -I | awk '{print $1}')} # set it where nodes have several networks
port=$((20000 + SLURM_JOB_ID % 10000)) # jobs may share a node
address=$ip:$port
steps=()
driver=
requeue=

finish() {
    local code=$?
    trap '' USR1 TERM
    kill "${steps[@]}" 2>/dev/null || true
    for ((second = 0; second < STOP_S; second++)); do
        kill -0 "${steps[@]}" 2>/dev/null || break
        sleep 1
    done
    rm -rf "$state"
    if [ -n "$requeue" ] && [ "$code" -eq 130 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
}
trap finish EXIT

stop() {
    signalled=yes
    [ -n "$driver" ] || exit 130
    kill -TERM "$driver" 2>/dev/null || true
}
trap 'requeue=yes; stop' USR1
trap stop TERM

start_ray() { # number of the node, further arguments of `ray start`
    local number=$1
    shift
    srun --overlap --nodes=1 --ntasks=1 --cpus-per-task="$CPUS" --nodelist="${nodes[number]}" \
        ray start --block --num-cpus="$CPUS" --num-gpus="$GPUS" --labels="${LABELS[number]}" \
        --resources="${RESOURCES[number]}" --disable-usage-stats "$@" &
    steps+=($!)
}

fail() {
    echo "slipstream: $1" >&2
    exit 1
}

start_ray 0 --head --node-ip-address="$ip" --port="$port"
deadline=$((SECONDS + START_S))
until ray health-check --address "$address" >/dev/null 2>&1; do
    kill -0 "${steps[0]}" 2>/dev/null || fail "Ray's head on ${nodes[0]} has ended; see above"
    ((SECONDS < deadline)) || fail "Ray's head on ${nodes[0]} did not start within $START_S s"
    sleep 1
done
for ((number = 1; number < ${#nodes[@]}; number++)); do
    start_ray "$number" --address="$address"
done
# Beside this shell, which hears no signal while it waits for a program in front of it.
python - "$address" "${#nodes[@]}" "$START_S" <<'PYTHON' &
import sys
import time

import ray

address, num_nodes, start_s = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
ray.init(address=address, log_to_driver=False)
deadline_s = time.monotonic() + start_s
while sum(node["Alive"] for node in ray.nodes()) < num_nodes:
    if time.monotonic() > deadline_s:
        sys.exit(1)
    time.sleep(0.5)
PYTHON
steps+=($!)
wait "$!" || fail "not every node has joined Ray"
unset 'steps[-1]'

how=()
if compgen -G "$RUN_DIR/checkpoints/step-*" >/dev/null; then
    how=(--resume)
elif [ -e "$RUN_DIR" ]; then
    how=(--overwrite)
fi
slipstream launch "${LAUNCH[@]}" --address "$address" "${how[@]}" &
driver=$!
code=
while [ -z "$code" ]; do
    signalled=
    wait "$driver" && code=0 || code=$?
    [ -z "$signalled" ] || code= # the signal has ended the waiting, not the driver
done
exit "$code"
