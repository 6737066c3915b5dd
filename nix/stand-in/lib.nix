# The functions of nixpkgs' lib that this flake calls. They have nixpkgs' names, and do the same.
let
  inherit (builtins) attrNames listToAttrs match replaceStrings stringLength substring;
in
rec {
  inherit (builtins) filter replaceStrings sort;

  # Attribute sets
  filterAttrs = keep: set: removeAttrs set (filter (name: !keep name set.${name}) (attrNames set));
  genAttrs = names: f: listToAttrs (map (name: nameValuePair name (f name)) names);
  inherit (builtins) attrNames mapAttrs;
  mapAttrs' = f: set: listToAttrs (map (name: f name set.${name}) (attrNames set));
  nameValuePair = name: value: { inherit name value; };

  # Lists
  inherit (builtins) foldl' head;
  last = list: builtins.elemAt list (builtins.length list - 1);
  optional = condition: item: if condition then [ item ] else [ ];

  # Strings
  hasPrefix = prefix: text: substring 0 (stringLength prefix) text == prefix;
  removePrefix = prefix: text: substring (stringLength prefix) (-1) text;
  optionalString = condition: text: if condition then text else "";
  splitString = separator: text: filter builtins.isString (builtins.split (escapeRegex separator) text);
  escapeRegex = replaceStrings [ "." ] [ "\\." ];
  trim = text: toString (builtins.head (match "[ \t]*(.*[^ \t])?[ \t]*" text));

  # Modules
  mkDefault = content: { _type = "override"; priority = 1000; inherit content; };

  # Functions that can be called with other arguments later on, and sets that can be extended
  makeOverridable =
    f: args:
    f args // { override = new: makeOverridable f (args // new); };
  makeExtensible =
    rattrs:
    let
      self = rattrs self // {
        extend = overlay: makeExtensible (final: let prev = rattrs final; in prev // overlay final prev);
      };
    in
    self;

  # Sets of files, each one a list of paths
  fileset = {
    unions = paths: paths;
    toSource =
      { root, fileset }:
      builtins.path {
        path = root;
        name = "source";
        filter =
          path: _:
          builtins.any (
            member:
            path == toString member
            || hasPrefix "${toString member}/" path
            || hasPrefix "${path}/" (toString member)
          ) fileset;
      };
  };

  licenses.asl20.spdxId = "Apache-2.0";
  platforms.linux = [
    "aarch64-linux"
    "x86_64-linux"
  ];
}
