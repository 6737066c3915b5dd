{
  lib,
  rustPlatform,
}:

let
  workspace = import ./workspace.nix { inherit lib; };
in
rustPlatform.buildRustPackage {
  pname = "guac-stress";
  inherit (workspace) src version;

  strictDeps = true;

  cargoLock.lockFile = ../Cargo.lock;

  cargoBuildFlags = [
    "--package=guac-stress"
    "--package=key-limit"
    "--package=pretend-cores"
  ];

  # `cargo xtask test` runs the tests: they need a guacd and an sshd.
  doCheck = false;

  # It looks for its libraries in its own directory.
  postInstall = ''
    ln -s ../lib/libkey_limit.so ../lib/libpretend_cores.so $out/bin
  '';

  meta = {
    description = "Load generator for any guacd: real Guacamole protocol, real SSH behind it, proof by echo";
    license = lib.licenses.asl20;
    mainProgram = "guac-stress";
    platforms = lib.platforms.linux;
  };
}
