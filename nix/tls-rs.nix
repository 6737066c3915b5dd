# The static library in libguac.so, in the directories that configure's --with-tls-rs expects.
{
  lib,
  rustPlatform,
}:

let
  workspace = import ./workspace.nix { inherit lib; };
in
rustPlatform.buildRustPackage {
  pname = "tls-rs";
  inherit (workspace) src version;

  strictDeps = true;

  cargoLock.lockFile = ../Cargo.lock;

  buildPhase = ''
    runHook preBuild
    cargo rustc \
      --offline \
      --locked \
      --package=tls-rs \
      --profile=staticlib \
      --crate-type=staticlib \
      --features=staticlib \
      -- -Cllvm-args=-align-all-functions=6
    runHook postBuild
  '';

  # `cargo xtask test` runs the tests: they need C compilers, sanitizers and emulators.
  doCheck = false;

  installPhase = ''
    runHook preInstall
    install -D -m 644 -t $out/lib target/staticlib/libtls_rs.a
    # Without compiler_builtins, as where libc's symbols have no versions its fmod would be taken for libc's.
    archive=$out/lib/libtls_rs.a
    ''${AR:-ar} dD $archive $(''${AR:-ar} t $archive | grep -v '^tls_rs-')
    mkdir -p $out/include
    cp -r tls-rs/include/guacamole $out/include
    runHook postInstall
  '';

  meta = {
    description = "Thread-local storage without libc's cap on keys, for libguac";
    license = lib.licenses.asl20;
    platforms = lib.platforms.linux;
  };
}
