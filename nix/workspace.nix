# The cargo workspace alone: cargo reads the manifest of every member, whichever it builds.
{ lib }:
let
  inherit (builtins.fromTOML (builtins.readFile ../Cargo.toml)) workspace;
in
{
  inherit (workspace.package) version;

  src = lib.fileset.toSource {
    root = ../.;
    fileset = lib.fileset.unions (
      [
        ../Cargo.lock
        ../Cargo.toml
      ]
      ++ map (member: ../. + "/${member}") workspace.members
    );
  };
}
