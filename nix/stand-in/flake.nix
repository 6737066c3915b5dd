# A stand-in for nixpkgs, where neither it nor a binary cache can be had: the host's own compilers and libraries in the
# clothes of stdenv, callPackage and fetchers, so far as this flake wears them. What it shows is that the flake evaluates,
# builds in the sandbox, passes its tests and gives the same bytes twice. `cargo xtask nix --stand-in` arranges the rest:
# it mounts the host's /usr into the sandbox, and the Rust toolchain as /rust, and seeds the sources.
{
  outputs =
    _:
    let
      lib = import ./lib.nix;
    in
    {
      inherit lib;
      legacyPackages = lib.genAttrs [ "aarch64-linux" "x86_64-linux" ] (
        system: lib.makeExtensible (import ./packages.nix { inherit lib system; })
      );
    };
}
