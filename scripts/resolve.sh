#!/usr/bin/env bash
# Checks that the crate can be used beside what applications have: each crate below that links the
# same C library, or that the crate shares, resolves with all features beside it. Then checks that
# the lowest versions of the dependencies that Cargo.toml allows resolve and build.
set -euo pipefail
cd "$(dirname "$0")/.."

here=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

features=$(cargo metadata --no-deps --format-version 1 |
    grep -oE '"features":\{[^}]*\}' | tail -n 1 | grep -oE '"[a-z-]+":\[' | tr -d ':[' | paste -sd,)

beside() {
    mkdir -p "$work/neighbor/src"
    : >"$work/neighbor/src/lib.rs"
    rm -f "$work/neighbor/Cargo.lock"
    cat >"$work/neighbor/Cargo.toml" <<END
[package]
name = "neighbor"
version = "0.0.0"
edition = "2024"

[workspace]

[dependencies]
worker-heartbeat = { path = "$here", features = [$features] }
$1
END
    if (cd "$work/neighbor" && cargo generate-lockfile) >"$work/output" 2>&1; then
        printf 'resolves beside %s\n' "$1"
    else
        printf 'FAILS beside %s\n' "$1"
        cat "$work/output"
        failed=1
    fi
}

beside 'rusqlite = "0.31"'
beside 'rusqlite = "0.37"'
beside 'rusqlite = "0.43"'
beside 'sqlx = { version = "0.8", features = ["runtime-tokio", "sqlite"] }'
beside 'diesel = { version = "2.3", features = ["sqlite"] }'
beside 'parking_lot = "0.12"'
beside 'prometheus-client = "0.24"'

# A copy, since the versions are written to Cargo.lock.
mkdir "$work/lowest"
cp -r Cargo.toml README.md src examples tests benches "$work/lowest"
export RUSTC_BOOTSTRAP=1
if (cd "$work/lowest" && cargo generate-lockfile -Zdirect-minimal-versions) >"$work/output" 2>&1; then
    unset RUSTC_BOOTSTRAP
    cargo check --locked --all-features --lib --bins --target-dir target/lowest \
        --manifest-path "$work/lowest/Cargo.toml" || failed=1
else
    echo "FAILS to resolve with the lowest versions"
    cat "$work/output"
    failed=1
fi
exit $failed
