# guacd of a release of upstream.toml. The variants are `patched`, `keys` (the patches of that group alone), and `stock`
# (upstream's source, unchanged). It follows nixpkgs' own guacamole-server.
{
  lib,
  stdenv,
  fetchgit,
  autoPatchelfHook,
  autoreconfHook,
  cairo,
  cunit,
  dejavu_fonts,
  ffmpeg-headless,
  freerdp,
  guac-stress,
  libjpeg_turbo,
  libossp_uuid,
  libpng,
  libpulseaudio,
  libssh2,
  libtelnet,
  libvncserver,
  libvorbis,
  libwebp,
  libwebsockets,
  makeBinaryWrapper,
  makeFontsConf,
  openssl,
  pango,
  perl,
  pkg-config,
  runCommand,
  tls-rs,
  zlib,

  release ? (import ./upstream.nix { inherit lib; }).default,
  variant ? "patched",
}:

let
  pinned = (import ./upstream.nix { inherit lib; }).releases.${release};

  belongs =
    {
      keys = patch: patch.group == "keys";
      patched = _: true;
      stock = _: false;
    }
    .${variant};

  patches = map (patch: patch.path) (lib.filter belongs pinned.patches);
  patched = patches != [ ];
in
stdenv.mkDerivation (finalAttrs: {
  pname = if variant == "patched" then "guacd-uncapped" else "guacd-${variant}";
  version = release;

  src = fetchgit {
    url = pinned.git;
    rev = pinned.commit;
    hash = pinned.nar;
  };

  inherit patches;
  patchFlags = [
    "-p1"
    "--fuzz=0"
  ];

  postPatch = ''
    patchShebangs src util
  '';

  strictDeps = true;

  nativeBuildInputs = [
    autoPatchelfHook
    autoreconfHook
    makeBinaryWrapper
    perl
    pkg-config
  ];

  buildInputs = [
    cairo
    ffmpeg-headless
    freerdp
    libjpeg_turbo
    libossp_uuid
    libpng
    libpulseaudio
    libssh2
    libtelnet
    libvncserver
    libvorbis
    libwebp
    libwebsockets
    openssl
    pango
    zlib
  ];

  env.NIX_CFLAGS_COMPILE = toString [
    "-Wno-error=deprecated-declarations"
    "-Wno-error=format-overflow"
    "-Wno-error=format-truncation"
  ];

  configureFlags = [
    "--with-freerdp-plugin-dir=${placeholder "out"}/lib"
  ]
  ++ lib.optional patched "--with-tls-rs=${tls-rs}"
  ++ lib.optionals (variant != "patched") (pinned.configure-unpatched or [ ]);

  enableParallelBuilding = true;

  # One test in 75 of stock 1.6.0 reads uninitialized memory, and fails at random.
  doCheck = patched;
  checkInputs = [ cunit ];

  # guacd finds its protocols through the library path. nixpkgs makes the same links, for libraries that FreeRDP loads by name.
  postInstall = ''
    ln -s ${freerdp}/lib/* $out/lib/
    wrapProgram $out/sbin/guacd --prefix LD_LIBRARY_PATH ":" $out/lib
  '';

  passthru = {
    inherit tls-rs;

    # Sessions that are held together and then prove themselves, with musl's limit of 128 keys. Stock ends at 58 with it.
    tests.stress = runCommand "${finalAttrs.pname}-stress-${finalAttrs.version}" {
      nativeBuildInputs = [ guac-stress ];
      FONTCONFIG_FILE = makeFontsConf { fontDirectories = [ dejavu_fonts ]; };
    } ''
      guac-stress --prefix guacd=${finalAttrs.finalPackage} --release ${finalAttrs.version} --logs . \
        --count ${if patched then "80" else "40"} --key-limit 128 --hold 2s --json $out
    '';
  };

  meta = {
    description =
      "Clientless remote desktop gateway"
      + lib.optionalString (variant == "patched") ", with as many sessions as the machine can carry";
    homepage = "https://guacamole.apache.org/";
    license = lib.licenses.asl20;
    mainProgram = "guacd";
    platforms = lib.platforms.linux;
  };
})
