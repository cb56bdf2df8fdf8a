#!/usr/bin/env bash
# Type-checks the library and the program for other platforms, with the default and with all features.
#
# Checks each target below that rustup has installed (`rustup target add TARGET`), and names those
# that it has not. No C compiler for the target is needed: a stand-in compiles the C code of
# dependencies to nothing, since type-checking links nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
installed=$(rustup target list --installed 2>/dev/null || true)

# By this name the builds take it for what their target needs, with the options of MSVC as well.
cat >"$work/clang-cl" <<'END'
#!/bin/sh
for argument; do
    case $previous in -o) : >"$argument" ;; esac
    case $argument in
    -out:*) : >"${argument#-out:}" ;;
    -Fo*) : >"${argument#-Fo}" ;;
    -o?*) : >"${argument#-o}" ;;
    esac
    previous=$argument
done
END
cp "$work/clang-cl" "$work/cc"
chmod +x "$work/clang-cl" "$work/cc"
printf '#!/bin/sh\n' >"$work/ar"
chmod +x "$work/ar"

for target in x86_64-pc-windows-gnu x86_64-pc-windows-msvc aarch64-apple-darwin; do
    if ! grep -qx "$target" <<<"$installed"; then
        echo "NOT CHECKED: $target is not installed."
        continue
    fi
    name=${target//-/_}
    case $target in
    *-msvc) export "CC_$name=$work/clang-cl" "AR_$name=$work/clang-cl" ;;
    *) export "CC_$name=$work/cc" "AR_$name=$work/ar" ;;
    esac
    echo "$target"
    cargo check --target "$target" --target-dir target/platforms
    cargo check --target "$target" --target-dir target/platforms --all-features
done
