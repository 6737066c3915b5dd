# What upstream.toml and patches/ say, for Nix: the releases that are supported, each with the paths of its patches.
{ lib }:
let
  inherit (builtins.fromTOML (builtins.readFile ../upstream.toml)) release;

  series =
    dir:
    let
      lines = map lib.trim (lib.splitString "\n" (builtins.readFile (dir + "/series")));
      isName = line: line != "" && !lib.hasPrefix "#" line;
    in
    map (name: dir + "/${name}") (lib.filter isName lines);
in
rec {
  releases = lib.mapAttrs (_: pinned: pinned // { patches = series (../. + "/${pinned.patches}"); }) (
    lib.filterAttrs (_: pinned: pinned.state == "supported") release
  );

  # The newest.
  default = lib.last (lib.sort lib.versionOlder (lib.attrNames releases));
}
