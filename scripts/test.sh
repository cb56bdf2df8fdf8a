#!/usr/bin/env bash
# Runs the tests.
#
#   scripts/test.sh quick   the core: no servers, no browser, no simulation; under a minute once compiled
#   scripts/test.sh         everything: unit tests, real processes, real servers, a real browser, every
#                           example, the documentation's code, and the models of the lock-free parts
#   scripts/test.sh soak    everything, then a thousand simulated days and ten minutes of load on a
#                           service
#
# A failing test does not keep the others from running. The summary at the end names what failed.
set -uo pipefail
cd "$(dirname "$0")/.."

level=${1:-full}
case $level in
    quick | full | soak) ;;
    *)
        echo "unknown: $level; known: quick, full, soak" >&2
        exit 2
        ;;
esac

log=$(mktemp)
trap 'rm -f "$log"' EXIT
failed=()

# Runs a step, and remembers whether it failed and what it printed.
step() {
    printf '\n== %s\n' "$*"
    "$@" 2>&1 | tee -a "$log" || failed+=("$*")
}

# Models run the same code on loom's atomics, in a build of their own.
models() {
    RUSTFLAGS="--cfg loom" cargo test --release --lib --target-dir target/loom models
}

# The Debian packages of the programs that tests need and that are missing.
missing() {
    if [ -z "${TEST_DATABASE_URL:-}" ] && ! command -v initdb >/dev/null \
        && ! ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; then
        echo postgresql
    fi
    command -v promtool >/dev/null || echo prometheus
    command -v pgbouncer >/dev/null || [ -x /usr/sbin/pgbouncer ] || echo pgbouncer
    command -v chromedriver >/dev/null || echo chromium-driver
    command -v curl >/dev/null || echo curl
}

# Whether systemd runs this service; not without systemd.
runs() {
    command -v systemctl >/dev/null && systemctl --quiet is-active "$1" 2>/dev/null
}

# Installs what is missing, if that needs no password. Otherwise the tests that need it fail, and say so.
install() {
    local packages
    packages=$(missing | tr '\n' ' ')
    if [ -z "${packages// /}" ]; then
        echo "Everything that the tests need is installed."
        return
    fi
    echo "Missing: $packages"
    if command -v apt-get >/dev/null; then
        local sudo=""
        if [ "$(id -u)" != 0 ]; then
            if ! sudo -n true 2>/dev/null; then
                echo "They are not installed, since that would need a password. To install them:"
                echo "  sudo apt-get install $packages"
                return
            fi
            sudo=sudo
        fi
        echo "They are installed now, with apt-get; that takes a minute or two."
        local service running=""
        for service in postgresql prometheus pgbouncer; do
            runs "$service" && running+=" $service "
        done
        $sudo apt-get update -qq
        # shellcheck disable=SC2086 # several names
        $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
            ${packages/chromium-driver/chromium chromium-driver}
        # The tests need programs only. A service that this installation has started is stopped.
        for service in postgresql prometheus pgbouncer; do
            if [[ $packages == *$service* && $running != *" $service "* ]] && runs "$service"; then
                echo "Stopping the service $service, which the installation has started."
                $sudo systemctl disable --quiet --now "$service"
            fi
        done
    else
        echo "They are not installed: there is no apt-get. The tests that need them fail, and say so."
    fi
}

if [ "$level" = quick ]; then
    echo "Quick: nothing is installed; compiling takes a minute at first."
    step cargo test --no-fail-fast --lib --test fleet --test registry --test supervision --test worker
    step cargo test --doc
else
    echo "Full: on two cores, compiling takes some minutes at first, and the tests about eight."
    install
    step cargo test --no-fail-fast --all-features
    step bash scripts/postgres-versions.sh --quick
    step models
    if [ "$level" = soak ]; then
        step env SIMULATED_DAYS=1000 cargo test --release --test simulation
        step cargo bench --features http,prometheus --bench soak
    fi
fi

printf '\n== Summary\n'
tests=$(sed -n 's/^test result: .* \([0-9]*\) passed; \([0-9]*\) failed.*/\1 \2/p' "$log")
echo "$tests" | awk '{ passed += $1; failed += $2 } END { printf "%d passed, %d failed\n", passed, failed }'
if [ ${#failed[@]} -gt 0 ]; then
    sed -n 's/^test \(.*\) \.\.\. FAILED$/failed: \1/p' "$log" | sort -u
    sed -n 's/^error: test failed, to rerun pass `\(.*\)`$/in: \1/p; s/^    `\(-.*\)`$/in: \1/p' "$log" | sort -u
    printf 'failed step: %s\n' "${failed[@]}"
    exit 1
fi
