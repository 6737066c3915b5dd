{
  description = "Apache Guacamole's guacd without libc's limit on its sessions";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;

      upstream = import ./nix/upstream.nix { inherit lib; };

      eachSystem =
        outputs:
        lib.genAttrs [ "aarch64-linux" "x86_64-linux" ] (
          system: outputs (nixpkgs.legacyPackages.${system}.extend self.overlays.default)
        );

      # guacd-1_6_0 and so on.
      releases =
        pkgs:
        lib.mapAttrs' (release: _: {
          name = "guacd-${lib.replaceStrings [ "." ] [ "_" ] release}";
          value = pkgs.guacd-uncapped.override { inherit release; };
        }) upstream.releases;
    in
    {
      overlays.default = import ./nix/overlay.nix;

      nixosModules.default = import ./nix/module.nix self;

      packages = eachSystem (
        pkgs:
        releases pkgs
        // {
          inherit (pkgs) guac-stress tls-rs;
          default = pkgs.guacd-uncapped;
          keys = pkgs.guacd-uncapped.override { variant = "keys"; };
          stock = pkgs.guacd-uncapped.override { variant = "stock"; };
        }
      );

      # Building a patched guacd runs upstream's own tests.
      checks = eachSystem (
        pkgs:
        releases pkgs
        // lib.mapAttrs' (name: guacd: {
          name = "${name}-stress";
          value = guacd.tests.stress;
        }) (releases pkgs)
      );

      devShells = eachSystem (pkgs: {
        default = pkgs.callPackage ./nix/shell.nix { };
      });
    };
}
