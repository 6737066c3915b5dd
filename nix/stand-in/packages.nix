# The packages of nixpkgs that this flake uses.
{ lib, system }:
self:
let
  callPackage =
    file: args:
    let
      f = if builtins.isFunction file then file else import file;
    in
    lib.makeOverridable f (builtins.intersectAttrs (builtins.functionArgs f) self // args);

  # Makes a package of the attributes of a derivation, which may be a function of the final ones.
  mkDerivation =
    attrs:
    let
      function = if builtins.isFunction attrs then attrs else (_: attrs);
      args = function (args // { inherit finalPackage; });
      drv = derivation (
        removeAttrs args [
          "cargoLock"
          "checkInputs"
          "env"
          "meta"
          "passthru"
        ]
        // args.env or { }
        // {
          inherit system;
          name = args.name or "${args.pname}-${args.version}";
          builder = "/bin/bash";
          args = [
            "-e"
            ./stdenv.sh
          ];
          # As stdenv's compiler wrapper has it by default.
          hardeningCFlags = "-O2 -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=3 -fstack-protector-strong -Wno-error=cpp";
          hardeningLDFlags = "-Wl,-z,relro,-z,now";
          inputs = args.nativeBuildInputs or [ ] ++ args.buildInputs or [ ] ++ args.checkInputs or [ ];
        }
      );
      finalPackage =
        drv
        // args.passthru or { }
        // {
          meta = args.meta or { };
          overrideAttrs = overlay: mkDerivation (final: let prev = function final; in prev // overlay final prev);
        };
    in
    finalPackage;

  # A tool or a library of the host. If it is missing, its derivation fails and names it.
  host =
    name: test:
    mkDerivation {
      inherit name;
      buildCommand = ''
        ${test} || { echo "${name} is missing on this machine: cargo xtask doctor"; exit 1; }
        mkdir -p $out/lib
        touch $out/lib/of-the-host-${name}
      '';
    };
  tool = name: program: host name "command -v ${program}";
  library = name: modules: host name (builtins.concatStringsSep " || " (map (module: "pkg-config --exists ${module}") modules));

  # A file that a fetcher would download. It has to be in the store already.
  fixed =
    { name, how, ... }@args:
    derivation {
      inherit name system;
      inherit (args) outputHash outputHashMode;
      outputHashAlgo = "sha256";
      builder = "/bin/sh";
      args = [
        "-c"
        "echo '${name} is not in the store: ${how}' >&2; exit 1"
      ];
    };

  # A directory of the crates that a Cargo.lock pins, as `cargo vendor` would lay it out.
  vendor =
    lockFile:
    let
      lock = builtins.fromTOML (builtins.readFile lockFile);
      crates = lib.filter (package: package ? checksum) lock.package;
    in
    mkDerivation {
      name = "cargo-vendor-dir";
      buildCommand = ''
        mkdir $out
      ''
      + toString (
        map (
          { name, version, checksum, ... }:
          let
            crate = fixed {
              name = "${name}-${version}.crate";
              how = "run cargo fetch --locked";
              outputHash = checksum;
              outputHashMode = "flat";
            };
          in
          ''
            tar -xzf ${crate} -C $out
            echo '{"files":{},"package":"${checksum}"}' > $out/${name}-${version}/.cargo-checksum.json
          ''
        ) crates
      );
    };
in
{
  inherit callPackage lib;
  stdenv = {
    inherit mkDerivation;
    hostPlatform = { inherit system; };
  };

  fetchgit =
    { url, hash, ... }:
    fixed {
      name = "source";
      how = "run cargo xtask fetch --from ${url}";
      outputHash = hash;
      outputHashMode = "recursive";
    };

  rustPlatform.buildRustPackage =
    args:
    mkDerivation (
      {
        buildPhase = "cargo build --offline --locked --release $cargoBuildFlags";
        installPhase = ''
          find target/release -maxdepth 1 -type f -executable ! -name '*.so' -exec install -D -t $out/bin {} +
          find target/release -maxdepth 1 -type f -name '*.so' -exec install -D -t $out/lib {} +
        '';
        cargoVendorDir = vendor args.cargoLock.lockFile;
      }
      // args
    );

  runCommand = name: env: buildCommand: mkDerivation (env // { inherit name buildCommand; });
  mkShell =
    { inputsFrom, packages }:
    mkDerivation {
      name = "shell";
      buildCommand = "touch $out";
      inherit inputsFrom packages;
    };

  # Hooks: stdenv.sh does their work if their names are among the inputs.
  autoPatchelfHook = tool "autoPatchelfHook" "true";
  autoreconfHook = tool "autoreconfHook" "autoreconf";
  makeBinaryWrapper = tool "makeBinaryWrapper" "true";

  makeFontsConf = _: builtins.toFile "fonts.conf" "<fontconfig><dir>/usr/share/fonts</dir></fontconfig>";
  dejavu_fonts = tool "dejavu_fonts" "true";

  cargo = tool "cargo" "cargo";
  clippy = tool "clippy" "cargo-clippy";
  gitMinimal = tool "git" "git";
  openssh = tool "openssh" "ssh";
  patch = tool "patch" "patch";
  perl = tool "perl" "perl";
  pkg-config = tool "pkg-config" "pkg-config";
  rustc = tool "rustc" "rustc";
  rustfmt = tool "rustfmt" "rustfmt";
  valgrind = tool "valgrind" "valgrind";

  cairo = library "cairo" [ "cairo" ];
  cunit = library "cunit" [ "cunit" ];
  # Only guacenc needs it. Without it upstream's configure leaves guacenc out.
  ffmpeg-headless = tool "ffmpeg" "true";
  freerdp = library "freerdp" [
    "freerdp2"
    "freerdp3"
  ];
  libjpeg_turbo = library "libjpeg" [ "libjpeg" ];
  libossp_uuid = library "uuid" [ "uuid" ];
  libpng = library "libpng" [ "libpng" ];
  libpulseaudio = library "libpulse" [ "libpulse" ];
  libssh2 = library "libssh2" [ "libssh2" ];
  libtelnet = library "libtelnet" [ "libtelnet" ];
  libvncserver = library "libvncclient" [ "libvncclient" ];
  libvorbis = library "vorbis" [ "vorbisenc" ];
  libwebp = library "libwebp" [ "libwebp" ];
  libwebsockets = library "libwebsockets" [ "libwebsockets" ];
  openssl = library "openssl" [ "openssl" ];
  pango = library "pango" [ "pangocairo" ];
  zlib = library "zlib" [ "zlib" ];
}
