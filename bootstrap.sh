#!/bin/sh
# `./bootstrap.sh ARGUMENTS` is `cargo xtask ARGUMENTS` for a machine that has nothing but Rust: cargo cannot even compile
# xtask without a C compiler to link it. If there is none, and --install is among the arguments, it is installed.
set -eu
cd "$(dirname "$0")"

if ! command -v cargo >/dev/null; then
    echo "error: cargo is missing: install Rust from https://rustup.rs, and open a new shell" >&2
    exit 3
fi

if ! command -v cc >/dev/null; then
    case " $* " in
        *" --install "*) ;;
        *)
            echo "error: a C compiler is missing, which cargo links with: add --install, or install one" \
                "(on Debian: apt-get install gcc libc6-dev)" >&2
            exit 3
            ;;
    esac
    if [ "$(id -u)" -eq 0 ]; then sudo=; else sudo=sudo; fi
    $sudo apt-get -qq update
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends gcc libc6-dev
fi

exec cargo xtask "$@"
