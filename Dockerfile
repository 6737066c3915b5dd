# guacd in a container, with the interface of the official image guacamole/guacd: the same port, prefix, user ID, environment
# and arguments. upstream.toml and patches/ say what is built, and `cargo xtask build` knows how. Build the image with
# `docker build .` (BuildKit), or with `cargo xtask image`, which can also check it.

# For a build that always has the same base, give a digest: debian@sha256:...
ARG BASE=debian:trixie-slim
# A release of upstream.toml. The default is the newest supported one.
ARG RELEASE
# The time of every installed file. The default is the time of the release's commit.
ARG SOURCE_DATE_EPOCH

FROM ${BASE} AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates cargo gcc git libc6-dev
ARG RELEASE
ARG SOURCE_DATE_EPOCH
WORKDIR /build
COPY . .
# The source may be in source/, as a tarball, a tree or a git clone; else it comes from the network. It has to match its pin in
# either case. `--install` knows the packages that the build needs.
RUN --mount=type=cache,target=/root/.cargo/registry \
    --mount=type=cache,target=/build/target,sharing=locked \
    set -eu; \
    for source in source/*; do \
        if [ -e "$source" ]; then \
            cargo xtask fetch ${RELEASE:+--release "$RELEASE"} --from "$source" || echo "warning: $source is not used"; \
        fi; \
    done; \
    cargo xtask build ${RELEASE:+--release "$RELEASE"} --prefix /opt/guacamole --install; \
    cargo build --locked --profile probe --package guac-probe; \
    cp target/probe/guac-probe packaging/entrypoint.sh /opt/guacamole/; \
    # Only compilers and debuggers need these.
    rm -rf /opt/guacamole/include /opt/guacamole/lib/*.a /opt/guacamole/lib/*.la; \
    find /opt/guacamole -type f \( -path '*/sbin/*' -o -path '*/bin/*' -o -name '*.so*' \) -exec strip --strip-unneeded {} +; \
    epoch=$(sed -n 's/^ *"epoch": \([0-9]*\),$/\1/p' /opt/guacamole/share/guacd-uncapped/manifest.json); \
    find /opt/guacamole -exec touch --no-dereference --date="@${SOURCE_DATE_EPOCH:-$epoch}" {} +

FROM ${BASE}
ARG SOURCE_DATE_EPOCH
# Terminals in other scripts need more fonts, as fonts-noto-cjk. The official image has that one; it takes 90 MB.
ARG FONTS="fonts-dejavu-core fonts-liberation"
# The libraries are those of the bill of materials, in its versions. Ghostscript makes PDFs of what is printed over RDP, users'
# own health checks use netcat, and guacd's plugins for FreeRDP have to be where FreeRDP looks for plugins.
RUN --mount=type=bind,from=build,source=/opt/guacamole,target=/mnt \
    set -eu; \
    libraries=$(sed -n 's|^ *"purl": "pkg:deb/[^/]*/\([^@]*\)@\([^?]*\)?.*|\1=\2|p' /mnt/share/guacd-uncapped/sbom.cdx.json \
        | sed 's/%2B/+/g; s/%3A/:/g'); \
    apt-get update; \
    apt-get install -y --no-install-recommends $libraries $FONTS ca-certificates ghostscript netcat-openbsd; \
    rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/* /var/cache/ldconfig/* /var/log/*; \
    groupadd --gid 1000 guacd; \
    useradd --uid 1000 --gid 1000 --create-home --shell /usr/sbin/nologin guacd; \
    for freerdp in /usr/lib/*/libfreerdp3.so.3; do \
        mkdir -p "${freerdp%/*}/freerdp3"; \
        ln -s /opt/guacamole/lib/libguac-common-svc-client.so /opt/guacamole/lib/libguacai-client.so "${freerdp%/*}/freerdp3/"; \
    done
COPY --from=build /opt/guacamole /opt/guacamole

LABEL org.opencontainers.image.title="guacd-uncapped" \
    org.opencontainers.image.description="Apache Guacamole's guacd, with as many sessions as the machine allows" \
    org.opencontainers.image.licenses="Apache-2.0"
ENV LC_ALL=C.UTF-8 \
    LD_LIBRARY_PATH=/opt/guacamole/lib
USER 1000:1000
EXPOSE 4822
STOPSIGNAL SIGTERM
# It speaks guacd's protocol: a guacd that hangs still has an open port.
HEALTHCHECK --interval=1m --timeout=5s --start-period=10s --retries=3 CMD ["/opt/guacamole/guac-probe"]
ENTRYPOINT ["/opt/guacamole/entrypoint.sh"]
