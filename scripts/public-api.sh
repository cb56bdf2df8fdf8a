#!/usr/bin/env bash
# Compares the public API, with all features, with docs/public-api.txt, so that no change of it goes
# unseen.
#
#   scripts/public-api.sh            fails and shows the difference if they differ
#   scripts/public-api.sh --write    writes the file
#
# The list comes from rustdoc's JSON, whose form changes with the compiler: see scripts/public-api.
set -euo pipefail
cd "$(dirname "$0")/.."

compiler=1.95
found=$(rustc --version | cut -d ' ' -f 2)
if [[ $found != "$compiler".* ]]; then
    echo "The public API was not compared: that needs rustc $compiler, and this is $found." >&2
    exit 1
fi

list=$(mktemp)
trap 'rm -f "$list"' EXIT
# The form is not stable yet; the compiler is.
RUSTC_BOOTSTRAP=1 cargo rustdoc --quiet --lib --all-features --target-dir target/public-api -- \
    -Z unstable-options --output-format json
cargo run --quiet --locked --manifest-path scripts/public-api/Cargo.toml \
    --target-dir target/public-api -- target/public-api/doc/worker_heartbeat.json >"$list"

if [ "${1:-}" = --write ]; then
    cp "$list" docs/public-api.txt
    echo "docs/public-api.txt has $(wc -l <docs/public-api.txt) items."
elif diff -u docs/public-api.txt "$list"; then
    echo "The public API is as docs/public-api.txt has it."
else
    echo "The public API has changed. If that is intended: bash scripts/public-api.sh --write" >&2
    exit 1
fi
