#!/usr/bin/env bash
# Runs every test: unit tests, tests of the rules, real processes, every example, the documentation's
# code, and the models of the lock-free parts.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo test --all-features

# The models run the same code on loom's atomics, in a build of its own.
RUSTFLAGS="--cfg loom" cargo test --release --lib --target-dir target/loom models
