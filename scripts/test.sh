#!/usr/bin/env bash
# Runs every test: unit tests, tests of the rules, real processes, real servers, a real browser, every
# example, the documentation's code, and the models of the lock-free parts.
set -euo pipefail
cd "$(dirname "$0")/.."

# Installs what tests need, where that can be done. If not, those tests say what is missing.
install() { # Debian packages, then Homebrew's
    if command -v apt-get >/dev/null; then
        local sudo
        sudo=$([ "$(id -u)" = 0 ] || command -v sudo || true)
        $sudo apt-get update -qq || true
        # shellcheck disable=SC2086 # several names
        $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $1 || true
    elif command -v brew >/dev/null; then
        # shellcheck disable=SC2086
        brew install $2 || true
    fi
}

# A PostgreSQL server of the tests' own.
if [ -z "${TEST_DATABASE_URL:-}" ] && ! command -v initdb >/dev/null \
    && ! ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; then
    install postgresql postgresql
fi
# promtool, which comes with Prometheus. The server itself is not needed.
if ! command -v promtool >/dev/null; then
    install prometheus prometheus
    if command -v systemctl >/dev/null; then
        systemctl disable --quiet --now prometheus 2>/dev/null || true
    fi
fi
# A browser, and what drives it.
command -v chromedriver >/dev/null || install "chromium chromium-driver" "--cask chromium chromedriver"

cargo test --all-features

# The models run the same code on loom's atomics, in a build of its own.
RUSTFLAGS="--cfg loom" cargo test --release --lib --target-dir target/loom models
