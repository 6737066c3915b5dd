#!/bin/sh
# Builds the libraries that guacd's SSH side needs, for musl.
#
#     libraries.sh TARBALLS PREFIX
#
# TARBALLS is a directory with the tarballs of Debian's source packages. Builds in the current directory. Files that are
# installed name PREFIX, except that pkg-config files are to be read with --define-prefix.
set -eu
tarballs=$1 prefix=$2
mkdir -p "$prefix/include"

# musl-gcc knows no headers but musl's. The kernel's go with any libc.
multiarch=$(gcc -print-multiarch)
ln -sfn /usr/include/linux /usr/include/asm-generic "$prefix/include/"
ln -sfn "/usr/include/$multiarch/asm" "$prefix/include/asm"

# -O0: what is measured is how many sessions there are, not how fast they are.
export CC=musl-gcc CFLAGS="-O0 -fPIC -w -I$prefix/include" CPPFLAGS="-I$prefix/include"
export LDFLAGS="-L$prefix/lib -Wl,-rpath-link,$prefix/lib"
export PKG_CONFIG_LIBDIR=$prefix/lib/pkgconfig PKG_CONFIG_PATH=
export CMAKE_PREFIX_PATH=$prefix

unpack() { # NAME: into the directory NAME
    mkdir "$1"
    # freetype and glib2.0 have further tarballs, which are not needed.
    for tarball in "$tarballs/$1"_*.orig.tar.*; do
        tar -xf "$tarball" -C "$1" --strip-components=1
    done
    cd "$1"
}

configure() { # NAME ARGUMENT...
    unpack "$1"
    shift
    # Without libtool's .la files: they name directories, which are moved.
    ./configure --prefix="$prefix" --disable-static --enable-shared "$@"
    make -j2
    make install
    rm -f "$prefix"/lib/*.la
    cd ..
}

cmake_() { # NAME ARGUMENT...
    unpack "$1"
    shift
    cmake -G Ninja -B build -DCMAKE_INSTALL_PREFIX="$prefix" -DCMAKE_INSTALL_LIBDIR="$prefix/lib" \
        -DBUILD_SHARED_LIBS=ON -DCMAKE_BUILD_TYPE=None -DCMAKE_FIND_ROOT_PATH="$prefix" "$@"
    ninja -j2 -C build install
    cd ..
}

meson_() { # NAME ARGUMENT...
    unpack "$1"
    shift
    meson setup build --prefix="$prefix" --libdir=lib --buildtype=plain --wrap-mode=nofallback "$@"
    ninja -j2 -C build install
    cd ..
}

encryption() {
    unpack openssl
    ./Configure linux-generic64 --prefix="$prefix" --libdir=lib --openssldir=/etc/ssl shared no-tests no-asm no-engine \
        no-async no-legacy no-idea no-camellia no-seed no-aria no-bf no-cast no-rc2 no-rc4 no-sm2 no-sm3 no-sm4 no-gost \
        no-cms no-ct no-cmp no-srp no-ts no-dtls no-whirlpool no-siphash no-ocsp no-comp no-capieng no-ec2m
    make -j2 build_libs
    make install_dev
    cd ..
    configure libssh2 --with-crypto=openssl --without-libz --disable-examples-build
}

graphics() {
    unpack zlib
    ./configure --prefix="$prefix" --shared
    make -j2 install
    cd ..
    configure libpng1.6
    cmake_ libjpeg-turbo -DWITH_SIMD=OFF -DENABLE_STATIC=OFF -DWITH_TURBOJPEG=OFF
    # Debian's tarball is the repository's, with the library in a directory.
    unpack expat
    cd expat
    # XML_DTD has to be 1, and not only defined: fontconfig's configuration needs entities.
    cmake -G Ninja -B build -DCMAKE_INSTALL_PREFIX="$prefix" -DCMAKE_INSTALL_LIBDIR="$prefix/lib" \
        -DEXPAT_BUILD_TOOLS=OFF -DEXPAT_BUILD_EXAMPLES=OFF -DEXPAT_BUILD_TESTS=OFF -DEXPAT_BUILD_DOCS=OFF \
        -DEXPAT_BUILD_PKGCONFIG=ON -DCMAKE_C_FLAGS="$CFLAGS -UXML_DTD -DXML_DTD=1"
    ninja -j2 -C build install
    cd ../..
    configure libffi --disable-docs
    cmake_ pcre2 -DPCRE2_BUILD_TESTS=OFF -DPCRE2_BUILD_PCRE2GREP=OFF
    meson_ pixman -Dtests=disabled -Dgtk=disabled -Dlibpng=disabled -Dopenmp=disabled
    cmake_ freetype -DFT_DISABLE_BZIP2=ON -DFT_DISABLE_BROTLI=ON -DFT_DISABLE_HARFBUZZ=ON
    meson_ fontconfig -Dtests=disabled -Dtools=disabled -Ddoc=disabled -Dnls=disabled -Dcache-build=disabled \
        --sysconfdir=/etc -Dc_args="$CFLAGS"
    configure util-linux --disable-all-programs --enable-libuuid --disable-nls --disable-asciidoc
    meson_ glib2.0 -Dselinux=disabled -Dlibmount=disabled -Dtests=false -Dxattr=false -Dnls=disabled -Dman=false
    configure fribidi --disable-docs
    unpack cairo
    ./configure --prefix="$prefix" --disable-static --disable-xlib --disable-xcb --enable-ft --enable-fc --disable-gtk-doc \
        --disable-script --disable-interpreter --disable-trace
    # Without its tests, which take longer than the library.
    make -j2 -C src install
    rm -f "$prefix"/lib/*.la
    cd ..
    harfbuzz
    meson_ pango1.0 -Dintrospection=disabled -Dlibthai=disabled -Dxft=disabled -Dgtk_doc=false -Dinstall-tests=false
}

# harfbuzz is C++. It needs the headers of libstdc++, which were made for glibc, and nothing of the library.
harfbuzz() {
    unpack harfbuzz
    headers=$(echo | g++ -E -x c++ -v - 2>&1 | sed -n 's/^ \(.*\/c++\/.*\)$/-isystem \1/p')
    g++ -specs="$(musl_specs)" -nostdinc $headers -isystem "$(musl_headers)" -D'__GLIBC_PREREQ(a,b)=0' \
        -D__locale_t=locale_t -DHAVE_FREETYPE=1 -DHAVE_GLIB=1 -DHAVE_PTHREAD=1 -O0 -fPIC -w -fno-exceptions -fno-rtti \
        -fno-threadsafe-statics $(pkg-config --cflags freetype2 glib-2.0) -c src/harfbuzz.cc -o harfbuzz.o
    musl-gcc -shared -Wl,-soname,libharfbuzz.so.0 -o "$prefix/lib/libharfbuzz.so.0" harfbuzz.o $LDFLAGS \
        $(pkg-config --libs freetype2 glib-2.0)
    ln -sf libharfbuzz.so.0 "$prefix/lib/libharfbuzz.so"
    mkdir -p "$prefix/include/harfbuzz"
    cp src/hb*.h "$prefix/include/harfbuzz"
    version=$(sed -n 's/^#define HB_VERSION_STRING "\(.*\)"$/\1/p' src/hb-version.h)
    printf '%s\n' "prefix=$prefix" 'Name: harfbuzz' 'Description: harfbuzz' "Version: $version" \
        'Libs: -L${prefix}/lib -lharfbuzz' 'Cflags: -I${prefix}/include/harfbuzz' > "$PKG_CONFIG_LIBDIR/harfbuzz.pc"
    cd ..
}

musl_specs() { sed -n 's/.*-specs "\([^"]*\)".*/\1/p' "$(command -v musl-gcc)"; }
musl_headers() { sed -n 's/.*-isystem \([^ ]*\) -isystem include%s$/\1/p' "$(musl_specs)" | head -n 1; }

# Side by side, as most of a configure script takes one processor. (In the background, as -e counts for nothing before ||.)
encryption > encryption.log 2>&1 &
first=$!
graphics > graphics.log 2>&1 &
wait $! || { tail -n 40 graphics.log; kill $first; exit 1; }
wait $first || { tail -n 40 encryption.log; exit 1; }
