#!/usr/bin/env bash
# Runs every test: unit tests, tests of the rules, real processes, every example, the documentation's
# code, and the models of the lock-free parts.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo test --all-features
