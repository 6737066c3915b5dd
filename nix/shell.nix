# A shell with everything that `cargo xtask build`, `stress` and `test` need.
{
  cargo,
  clippy,
  cunit,
  gitMinimal,
  guac-stress,
  guacd-uncapped,
  mkShell,
  openssh,
  patch,
  rustc,
  rustfmt,
  valgrind,
}:

mkShell {
  inputsFrom = [
    guac-stress
    guacd-uncapped
  ];
  packages = [
    cargo
    clippy
    cunit
    gitMinimal
    openssh
    patch
    rustc
    rustfmt
    valgrind
  ];
}
