# A replacement for nixpkgs, for where neither it nor a binary cache is available. It has those parts of stdenv, callPackage and
# the fetchers that this flake uses, and they use the host's own compilers and libraries. It shows that the flake evaluates,
# builds in the sandbox, passes its tests and gives the same bytes twice. `cargo xtask nix --stand-in` does the rest: it
# mounts the host's /usr into the sandbox, and the Rust toolchain as /rust, and puts the sources into the store.
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
