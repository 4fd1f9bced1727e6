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

# Wrap, open, confirm, commit, process, join; and one message to every cell.
bench *ARGS:
    cargo bench --workspace --locked --benches {{ARGS}}

# Whole fleets in virtual time under every fault: the worlds that CI runs. `just chaos --seed 17` for one.
chaos *ARGS="--seeds 200":
    cargo run --release --locked --bin fleetkey-sim -- chaos {{ARGS}}

# A long hunt: other seeds each time, and all failures are told.
hunt SEEDS="2000" *ARGS:
    cargo run --release --locked --bin fleetkey-sim -- chaos --seed "$(date +%s)" --seeds {{SEEDS}} --keep-going {{ARGS}}

# Line coverage of the cores (needs cargo-tarpaulin).
coverage:
    cargo tarpaulin --engine llvm --locked --skip-clean --out Stdout -p fleetkey-agent-core -p fleetkey-coordinator-core -p fleetkey-tests -p fleetkey-chaos --include-files 'agent/core/src/*' --include-files 'coordinator/core/src/*'

# Real processes under SIGKILL, every rule checked from outside. `just kills 300 50 7` for more rounds of another seed.
kills ROUNDS="100" AGENTS="50" SEED="1": binaries
    FLEETKEY_KILLS_ROUNDS={{ROUNDS}} FLEETKEY_KILLS_AGENTS={{AGENTS}} FLEETKEY_KILLS_SEED={{SEED}} cargo test --release --locked -p fleetkey-kills --test kills -- --nocapture

# Full disks, processes that stand still, a broker that is away, clocks that are wrong. `just faults 60 180` for longer.
faults STOP_SECONDS="20" AWAY_SECONDS="20": binaries
    FLEETKEY_KILLS_STOP_SECONDS={{STOP_SECONDS}} FLEETKEY_KILLS_AWAY_SECONDS={{AWAY_SECONDS}} cargo test --release --locked -p fleetkey-kills --test faults -- --nocapture --include-ignored

# The intruder at a real RabbitMQ (Debian's rabbitmq-server), with the gate to ask.
rabbitmq:
    cargo test --locked -p fleetkey-gate --test rabbitmq -- --ignored --nocapture

# The CA's key in a token: SoftHSM (Debian's softhsm2).
pkcs11:
    cargo test --locked -p fleetkey-coordinator --features pkcs11 --test pkcs11 -- --nocapture

# What `kills` and `faults` run.
[private]
binaries:
    cargo build --release --locked --bins -p fleetkey-coordinator -p fleetkey-agent -p fleetkey-broker

# Known bugs planted one at a time, and which rule of the simulation finds each. `just mutants 06 11` for some of them.
mutants *NAMES:
    simulator/chaos/mutants/run.sh {{NAMES}}

# Whether every planted bug still applies to the tree.
mutants-check:
    simulator/chaos/mutants/run.sh --check
