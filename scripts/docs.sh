#!/usr/bin/env bash
# Builds the documentation with warnings as errors: without features, with each feature alone, with
# `full`, and with all features. A link must hold in each: to an item that a feature adds, it comes from
# src/guide/links.
#
#   scripts/docs.sh
#   scripts/docs.sh --docsrs     also as docs.rs builds it, which marks items with the feature they need
#
# The feature of rustdoc that marks them is not stable. RUSTC_BOOTSTRAP=1 lets a stable compiler build it.
set -euo pipefail
cd "$(dirname "$0")/.."

failed=()

# build NAME [OPTIONS FOR CARGO...]
build() {
    local name=$1
    shift
    printf '== documentation: %s\n' "$name"
    cargo doc --quiet --no-deps --lib "$@" || failed+=("$name")
}

# The names in [features], without `default`.
features() {
    sed -n '/^\[features\]/,/^\[/ s/^\([a-z][a-z-]*\) *=.*/\1/p' Cargo.toml | grep -vx default
}

export RUSTDOCFLAGS="-D warnings"
build "no features" --no-default-features
for feature in $(features); do
    build "$feature" --no-default-features --features "$feature"
done
build "all features" --all-features
if [ "${1:-}" = --docsrs ]; then
    export RUSTDOCFLAGS="-D warnings --cfg docsrs"
    build "all features, as on docs.rs" --all-features
fi

if [ ${#failed[@]} -gt 0 ]; then
    printf 'The documentation failed with: %s\n' "$(printf '%s; ' "${failed[@]}" | sed 's/; $//')" >&2
    exit 1
fi
