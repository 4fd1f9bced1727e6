# The front door. `just --list` shows what there is; `.ci/run` runs all of it and what takes longer.

# Format, lints, and (when cargo-deny is installed) advisories, licences and dependencies.
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- -D warnings
    if command -v cargo-deny >/dev/null; then cargo deny --locked --workspace check; else echo "not run: cargo-deny is not installed"; fi

# All tests. Those that need mosquitto say so when it is not installed.
test *ARGS:
    cargo test --workspace --locked {{ARGS}}

# A whole fleet in one process tree: onboard, revoke, lock out, rotate, unplug. `just demo --devices 2000`
demo *ARGS:
    cargo run --release --locked --bin fleetkey-sim -- demo {{ARGS}}

# How far a rekey is from what it could cost at best. `just bound 2000 --tls`
bound DEVICES="10000" *ARGS:
    cargo run --release --locked --bin fleetkey-sim -- bound --devices {{DEVICES}} {{ARGS}}

# A fleet through a scenario: one of simulator/scenarios by its name, or a file. `just run stolen-truck --virtual --devices 2000`
run SCENARIO *ARGS:
    cargo run --release --locked --bin fleetkey-sim -- run {{SCENARIO}} {{ARGS}}

# What a fleet costs the coordinator by itself, and its targets. `just coordinator --devices 1000000` for one of a million.
coordinator *ARGS:
    cargo run --release --locked --bin fleetkey-sim -- coordinator {{ARGS}}

# Wrap, open, confirm, commit, process, join; and one message to every cell.
bench *ARGS:
    cargo bench --workspace --locked --benches {{ARGS}}

# What one removal costs here and elsewhere, with plots in target/peers.html. `just peers --devices 100,1000` for a quick one.
peers *ARGS="--html target/peers.html --json target/peers.json":
    cargo run --release --locked --bin fleetkey-sim -- peers {{ARGS}}

# Whole fleets in virtual time under every fault: the worlds that CI runs. `just chaos --seed 17` for one.
chaos *ARGS="--seeds 200":
    cargo run --release --locked --bin fleetkey-sim -- chaos {{ARGS}}

# A long hunt: other seeds each time, and all failures are told.
hunt SEEDS="2000" *ARGS:
    cargo run --release --locked --bin fleetkey-sim -- chaos --seed "$(date +%s)" --seeds {{SEEDS}} --keep-going {{ARGS}}

# Line coverage of the cores (needs cargo-tarpaulin).
coverage:
    cargo tarpaulin --engine llvm --locked --skip-clean --timeout 1200 --target-dir target/coverage --out Stdout -p fleetkey-agent-core -p fleetkey-coordinator-core -p fleetkey-tests -p fleetkey-chaos --include-files 'agent/core/src/*' --include-files 'coordinator/core/src/*'

# Real processes under SIGKILL, every rule checked from outside. `just kills 300 50 7` for more rounds of another seed.
kills ROUNDS="100" AGENTS="50" SEED="1": binaries
    FLEETKEY_KILLS_ROUNDS={{ROUNDS}} FLEETKEY_KILLS_AGENTS={{AGENTS}} FLEETKEY_KILLS_SEED={{SEED}} cargo test --release --locked -p fleetkey-kills --test kills -- --nocapture

# Full disks, processes that stand still, a broker that is away, clocks that are wrong. `just faults 60 180` for longer.
faults STOP_SECONDS="20" AWAY_SECONDS="20": binaries
    FLEETKEY_KILLS_STOP_SECONDS={{STOP_SECONDS}} FLEETKEY_KILLS_AWAY_SECONDS={{AWAY_SECONDS}} cargo test --release --locked -p fleetkey-kills --test faults -- --nocapture --include-ignored

# The intruder at a real RabbitMQ (Debian's rabbitmq-server), with the gate to ask.
rabbitmq:
    cargo test --locked -p fleetkey-gate --test rabbitmq -- --ignored --nocapture

# Devices that all enrol at once over EST, and revocations among many sessions, from the command to the closed connection.
crowds DEVICES="10000" SESSIONS="2000" REVOKED="200": binaries
    FLEETKEY_CROWD_DEVICES={{DEVICES}} FLEETKEY_CROWD_SESSIONS={{SESSIONS}} FLEETKEY_CROWD_REVOKED={{REVOKED}} cargo test --release --locked -p fleetkey-kills --test crowds -- --nocapture --test-threads 1

# One rmqtt node behind our gate: the intruder, live revocations, limits. Built apart from everything else, for its weight.
rmqtt:
    cd broker-plugin/rmqtt && cargo fmt --check && cargo clippy --all-targets --locked -- -D warnings && cargo test --locked
    if command -v cargo-deny >/dev/null; then cd broker-plugin/rmqtt && cargo deny --locked --all-features check; else echo "not run: cargo-deny is not installed"; fi

# Three of them as one broker (needs protoc), the intruder between them, one killed; then the demo on them, one killed in the
# middle of the revocation. `just rmqtt-cluster 200` for fewer devices.
rmqtt-cluster DEVICES="1000":
    cd broker-plugin/rmqtt && cargo clippy --all-targets --features cluster --locked -- -D warnings
    cd broker-plugin/rmqtt && cargo test --locked --features cluster -- --nocapture
    broker-plugin/rmqtt/demo.sh {{DEVICES}}

# The CA's key in a token: SoftHSM (Debian's softhsm2).
pkcs11:
    cargo test --locked -p fleetkey-coordinator --features pkcs11 --test pkcs11 -- --nocapture

# What `kills`, `faults` and `crowds` run.
[private]
binaries:
    cargo build --release --locked --bins -p fleetkey-coordinator -p fleetkey-agent -p fleetkey-broker

# One place where bytes come in, fed by libFuzzer (needs cargo-fuzz and a C++ compiler). `just fuzz coordinator 300`
fuzz TARGET SECONDS="60" *ARGS:
    mkdir -p fuzz/corpus/{{TARGET}}
    RUSTC_BOOTSTRAP=1 cargo fuzz run --sanitizer none {{TARGET}} fuzz/corpus/{{TARGET}} tests/fuzzed/corpus/{{TARGET}} -- -max_total_time={{SECONDS}} -timeout=20 -rss_limit_mb=2048 -max_len=8192 -print_final_stats=1 {{ARGS}}

# Every one of them, one after the other; goes on after a finding, and fails at the end.
fuzz-all SECONDS="60":
    failed=; for target in $(cargo fuzz list); do just fuzz "$target" {{SECONDS}} || failed="$failed $target"; done; test -z "$failed" || { echo "found something:$failed"; exit 1; }

# Keeps what a fuzzer has reached and the committed corpus had not, and no more of it than that takes.
fuzz-keep TARGET:
    RUSTC_BOOTSTRAP=1 cargo fuzz run --sanitizer none {{TARGET}} tests/fuzzed/corpus/{{TARGET}} fuzz/corpus/{{TARGET}} -- -merge=1 -max_len=2048

# Known bugs planted one at a time, and which rule of the simulation finds each. `just mutants 06 11` for some of them.
mutants *NAMES:
    simulator/chaos/mutants/run.sh {{NAMES}}

# Whether every planted bug still applies to the tree.
mutants-check:
    simulator/chaos/mutants/run.sh --check
