#!/bin/sh
# `./bootstrap.sh ARGUMENTS` is `cargo xtask ARGUMENTS` on a machine without a C compiler, which cargo needs to link xtask. With
# --install among the arguments the compiler is installed first.
set -eu
cd "$(dirname "$0")"

fail() {
    echo "error: $*" >&2
    exit 3
}

command -v cargo >/dev/null || fail "cargo is missing: install Rust from https://rustup.rs, and open a new shell"

# Cargo's own message is less clear.
minor=$(cargo --version | sed -n 's/^cargo 1\.\([0-9]*\).*/\1/p')
[ "${minor:-85}" -ge 85 ] || fail "Rust 1.85 or newer is needed, and this is 1.$minor: rustup update, or https://rustup.rs"

if ! command -v cc >/dev/null; then
    case " $* " in
        *" --install "*) ;;
        *) fail "a C compiler is missing, which cargo links with: add --install, or install one" \
            "(on Debian: apt-get install gcc libc6-dev)" ;;
    esac
    # toolkit/src/host/distributions.toml has the same, but nothing can read it yet.
    if command -v apt-get >/dev/null; then
        install="env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends gcc libc6-dev"
    elif command -v pacman >/dev/null; then
        install="pacman -S --needed --noconfirm gcc"
    elif command -v dnf >/dev/null; then
        install="dnf install -y gcc"
    elif command -v apk >/dev/null; then
        install="apk add gcc musl-dev"
    elif command -v zypper >/dev/null; then
        install="zypper --non-interactive install --no-recommends gcc"
    else
        fail "--install does not know this distribution: install a C compiler, and try again"
    fi
    if [ "$(id -u)" -eq 0 ]; then
        sudo=
    else
        command -v sudo >/dev/null || fail "--install needs root or sudo: run as root, or install a C compiler by hand"
        sudo=sudo
    fi
    case $install in *apt-get*) $sudo apt-get -qq update ;; esac
    # shellcheck disable=SC2086 # It is a command and its arguments.
    $sudo $install
fi

exec cargo xtask "$@"
