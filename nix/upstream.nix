# What upstream.toml and patches/ say, for Nix: the releases that are supported, each with its
# patches: the path and the group of each.
{ lib }:
let
  inherit (builtins.fromTOML (builtins.readFile ../upstream.toml)) release;

  series =
    dir:
    let
      lines = map lib.trim (lib.splitString "\n" (builtins.readFile (dir + "/series")));
      read =
        state: line:
        if lib.hasPrefix "# group: " line then
          state // { group = lib.removePrefix "# group: " line; }
        else if line == "" || lib.hasPrefix "#" line then
          state
        else
          state
          // {
            patches = state.patches ++ [
              {
                inherit (state) group;
                path = dir + "/${line}";
              }
            ];
          };
      start = {
        group = null;
        patches = [ ];
      };
    in
    (lib.foldl' read start lines).patches;
in
rec {
  releases = lib.mapAttrs (_: pinned: pinned // { patches = series (../. + "/${pinned.patches}"); }) (
    lib.filterAttrs (_: pinned: pinned.state == "supported") release
  );

  # The newest.
  default = lib.last (lib.sort lib.versionOlder (lib.attrNames releases));
}
