#!/bin/sh
# Counts the instructions that beat(), is_recent(), update_task() and other calls take:
#   benches/instructions.sh                      prints the table
#   benches/instructions.sh --write docs/BENCHMARKS.md    also puts it between the markers in that file
set -eu
if ! command -v valgrind >/dev/null; then
    echo "valgrind is not installed; on Debian: apt-get install valgrind" >&2
    exit 1
fi
cd "$(dirname "$0")/.."
exec cargo bench --quiet --bench instructions -- "$@"
