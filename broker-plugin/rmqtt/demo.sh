#!/usr/bin/env bash
# The demo on a cluster of three nodes, one of which is killed (SIGKILL) in the middle of the revocation.
#
#   broker-plugin/rmqtt/demo.sh [DEVICES] [NODE]     1000 devices, and node 3 is killed; with node 0 nobody is
#
# FLEETKEY_SIM and FLEETKEY_NODE name binaries that are there already; otherwise they are built.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

devices="${1:-1000}" killed="${2:-3}"
nodes=(1 2 3)

if [ -z "${FLEETKEY_SIM:-}" ]; then
    cargo build --release --locked --bin fleetkey-sim
    FLEETKEY_SIM="${CARGO_TARGET_DIR:-$PWD/target}/release/fleetkey-sim"
fi
if [ -z "${FLEETKEY_NODE:-}" ]; then
    (cd broker-plugin/rmqtt && cargo build --locked --features cluster)
    FLEETKEY_NODE="${CARGO_TARGET_DIR:-$PWD/broker-plugin/rmqtt/target}/debug/fleetkey-broker-rmqtt"
fi

# A port on which nobody listens.
free_port() {
    local port
    while :; do
        port=$((20000 + RANDOM % 12000))
        if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
            echo "$port"
            return
        fi
    done
}

work="$(mktemp -d)"
pids=()
end() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    rm -rf "$work"
}
trap end EXIT

policy="127.0.0.1:$(free_port)"
list="" brokers=()
for node in "${nodes[@]}"; do
    port[node]="$(free_port)"
    brokers+=(--broker "mqtts://127.0.0.1:${port[node]}")
    list+="    { node = $node, raft = \"127.0.0.1:$(free_port)\", messages = \"127.0.0.1:$(free_port)\" },"$'\n'
done
for node in "${nodes[@]}"; do
    cat >"$work/node-$node.toml" <<END
[tls]
roots = "fleet-roots.pem"
certificate = "broker.crt"
key = "broker.key"

[listen]
tls = ["127.0.0.1:${port[node]}"]

[policy]
url = "http://$policy/v1/policy"
token = "broker.token"
max_backoff_seconds = 1

[cluster]
node = $node
nodes = [
$list]
END
done

command=()
if [ "$killed" != 0 ]; then command=(--with-revocation "kill -KILL \$(cat '$work/node-$killed.pid')"); fi
"$FLEETKEY_SIM" demo --devices "$devices" "${brokers[@]}" --papers "$work" --policy "$policy" "${command[@]}" &
sim=$!
pids+=("$sim")
until [ -s "$work/broker.token" ]; do
    kill -0 "$sim" 2>/dev/null || { wait "$sim"; exit 1; }
    sleep 0.1
done
for node in "${nodes[@]}"; do
    (ulimit -n "$(ulimit -Hn)" && exec "$FLEETKEY_NODE" --config "$work/node-$node.toml") 2>"$work/node-$node.log" &
    echo "$!" >"$work/node-$node.pid"
    pids+=("$!")
done
status=0
wait "$sim" || status=$?
if [ "$status" != 0 ]; then
    for node in "${nodes[@]}"; do
        echo "== node $node"
        tail -n 20 "$work/node-$node.log"
    done
fi
exit "$status"
