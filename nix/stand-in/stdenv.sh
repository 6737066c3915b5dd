# Builds a package as stdenv does: those phases, in order, that this flake's packages use, with the host's tools.
export PATH=/rust/bin:/usr/bin:/bin HOME=$TMPDIR SOURCE_DATE_EPOCH=315532800 LC_ALL=C.UTF-8
for input in $inputs; do
    PATH=$input/bin:$PATH
done
umask 022

has() { [[ " $inputs " == *-$1\ * ]]; }
runHook() { eval "${!1-}"; }
patchShebangs() { :; } # The sandbox has /usr/bin/env.
wrapProgram() { # FILE --prefix VARIABLE SEPARATOR VALUE
    local file=$1 hidden
    hidden=$(dirname "$1")/.$(basename "$1")-wrapped
    mv "$file" "$hidden"
    printf '#!/bin/bash\nexport %s=%s${%s:+%s$%s}\nexec -a "$0" %s "$@"\n' \
        "$3" "$5" "$3" "$4" "$3" "$hidden" > "$file"
    chmod 755 "$file"
}

if [[ -n ${buildCommand-} ]]; then
    eval "$buildCommand"
    exit 0
fi

cp -r "$src" "$TMPDIR/source"
cd "$TMPDIR/source"
chmod -R u+w .
for patch in ${patches-}; do
    patch ${patchFlags--p1} -i "$patch"
done
runHook postPatch

if [[ -n ${cargoVendorDir-} ]]; then
    export CARGO_HOME=$TMPDIR/cargo
    mkdir "$CARGO_HOME"
    printf '[source.crates-io]\nreplace-with = "vendored"\n[source.vendored]\ndirectory = "%s"\n' "$cargoVendorDir" \
        > "$CARGO_HOME/config.toml"
fi

jobs=${enableParallelBuilding:+-j$NIX_BUILD_CORES}
if has autoreconfHook; then
    autoreconf -fi
    ./configure --prefix="$out" $configureFlags \
        CFLAGS="-g $hardeningCFlags $NIX_CFLAGS_COMPILE" LDFLAGS="$hardeningLDFlags"
fi
eval "${buildPhase-make $jobs}"
if [[ -n ${doCheck-} ]]; then
    make $jobs check VERBOSE=1
fi
eval "${installPhase-make install}"
runHook postInstall
# As stdenv does.
if [[ -d $out/sbin ]]; then
    mkdir -p "$out/bin"
    mv "$out"/sbin/* "$out"/sbin/.[!.]* "$out/bin"
    rmdir "$out/sbin"
    ln -s bin "$out/sbin"
fi
find "$out" -type f \( -name '*.so*' -o -path '*/bin/*' \) -exec strip -S {} + 2> /dev/null || true
# Newer versions of Nix take a shell that replaces itself with another program for a failure.
exit 0
