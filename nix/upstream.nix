# What upstream.toml and patches/ say: every release, with the path and the group of each of its patches, and the default
# release.
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

  # Versions are ordered by their numbers, and a suffix comes before the same numbers without one: as in
  # toolkit/src/source/release.rs, and not as in lib.versionOlder.
  older =
    a: b:
    let
      split = version: builtins.match "([0-9.]*)(.*)" version;
      numbers = version: lib.head (split version);
      suffix = version: lib.last (split version);
      order = builtins.compareVersions (numbers a) (numbers b);
    in
    if order != 0 then
      order < 0
    else if suffix a == "" || suffix b == "" then
      suffix a != "" && suffix b == ""
    else
      suffix a < suffix b;
in
rec {
  releases = lib.mapAttrs (
    _: pinned: pinned // { patches = series (../. + "/${pinned.patches}"); }
  ) release;

  # The newest supported one. A preview is never the default.
  default = lib.last (
    lib.sort older (
      lib.filter (name: releases.${name}.state == "supported") (lib.attrNames releases)
    )
  );
}
