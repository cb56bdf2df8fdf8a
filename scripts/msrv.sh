#!/usr/bin/env bash
# Checks that the library and the program build with the minimum Rust version of Cargo.toml.
#
# Uses a toolchain of that version that rustup has installed. Otherwise unpacks Debian's into a
# temporary folder, where apt offers it; nothing is installed. Where there is neither, it says so.
set -euo pipefail
cd "$(dirname "$0")/.."

version=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The name of the rustup toolchain, if it is installed.
with_rustup() {
    command -v rustup >/dev/null || return
    rustup toolchain list | grep -oE "^$version(\.[0-9]+)?-[^ ]+" | head -n 1
}

# The newest version of a package that belongs to the minimum Rust version.
debian() {
    apt-cache madison "$1" 2>/dev/null | awk -F' *[|] *' '{print $2}' | grep "^$version\." | head -n 1
}

# Unpacks Debian's compiler and prints the path of a script that runs it.
with_debian() {
    local package version_of=() library root="$work/root"
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || return
    for package in "rustc-web" "libstd-rust-web-dev" "libstd-rust-web-$version"; do
        [ -n "$(debian "$package")" ] || return
        version_of+=("$package=$(debian "$package")")
    done
    mkdir "$root" "$work/packages"
    (cd "$work/packages" && apt-get download -qq -o APT::Sandbox::User=root "${version_of[@]}" >&2)
    # The library of LLVM that the compiler is linked to.
    library=$(dpkg-deb -f "$work"/packages/libstd-rust-web-1*.deb Depends | grep -oE 'libllvm[0-9.]+' | head -n 1)
    if [ -n "$library" ] && ! dpkg -s "$library" >/dev/null 2>&1; then
        (cd "$work/packages" && apt-get download -qq -o APT::Sandbox::User=root "$library" >&2)
    fi
    for package in "$work"/packages/*.deb; do
        dpkg-deb -x "$package" "$root"
    done
    cat >"$work/rustc" <<END
#!/bin/sh
LD_LIBRARY_PATH=\$(echo "$root"/usr/lib/*-linux-gnu) exec "$root/usr/bin/rustc" "\$@"
END
    chmod +x "$work/rustc"
    echo "$work/rustc"
}

toolchain=$(with_rustup || true)
if [ -n "$toolchain" ]; then
    rustc=$(rustup which --toolchain "$toolchain" rustc)
else
    rustc=$(with_debian || true)
fi
if [ -z "$rustc" ] || ! "$rustc" --version; then
    echo "NOT CHECKED: there is no Rust $version here, and apt does not offer it."
    exit 0
fi
export RUSTC=$rustc
cargo check --lib --target-dir target/msrv
cargo check --lib --bins --all-features --target-dir target/msrv
