#!/usr/bin/env bash
# Runs every test: unit tests, tests of the rules, real processes, real servers, every example, the
# documentation's code, and the models of the lock-free parts.
set -euo pipefail
cd "$(dirname "$0")/.."

# The tests of the PostgreSQL store start a server of their own. Its programs are installed if they
# are missing and that can be done; if not, those tests say what to install.
if [ -z "${TEST_DATABASE_URL:-}" ] && ! command -v initdb >/dev/null \
    && ! ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; then
    if command -v apt-get >/dev/null; then
        sudo=$([ "$(id -u)" = 0 ] || command -v sudo || true)
        $sudo apt-get update -qq && $sudo apt-get install -y -qq postgresql || true
    elif command -v brew >/dev/null; then
        brew install postgresql || true
    fi
fi

# The tests of the dashboard drive a real browser.
if ! command -v chromedriver >/dev/null; then
    if command -v apt-get >/dev/null; then
        sudo=$([ "$(id -u)" = 0 ] || command -v sudo || true)
        $sudo apt-get update -qq && $sudo apt-get install -y -qq --no-install-recommends chromium chromium-driver || true
    elif command -v brew >/dev/null; then
        brew install --cask chromium chromedriver || true
    fi
fi

cargo test --all-features

# The models run the same code on loom's atomics, in a build of its own.
RUSTFLAGS="--cfg loom" cargo test --release --lib --target-dir target/loom models
