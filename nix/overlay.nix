final: _prev: {
  guac-stress = final.callPackage ./guac-stress.nix { };
  guacd-uncapped = final.callPackage ./package.nix { };
  tls-rs = final.callPackage ./tls-rs.nix { };
}
