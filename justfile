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
