# guacd in a container, with the interface of the official image guacamole/guacd: port, prefix, user id, environment, and
# arguments. What is built is for upstream.toml and patches/ to say, and how for `cargo xtask build`; this file only gives
# them a machine. Build it with `docker build .` (BuildKit), or with `cargo xtask image`, which checks before and after.

# A digest in place of the tag, as in debian@sha256:..., has it built on the same base for ever.
ARG BASE=debian:trixie-slim
ARG RELEASE=1.6.0
# The time of the release's tag, and of every file that is installed.
ARG SOURCE_DATE_EPOCH=1750361542

FROM ${BASE} AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates cargo gcc git libc6-dev
ARG RELEASE
ARG SOURCE_DATE_EPOCH
WORKDIR /build
COPY . .
# The source may lie in source/, as a tarball, a tree or a git clone; else the network has it. Either way it has to match its
# pin. FreeRDP's development package, and whatever else it takes, is for `--install` to know.
RUN --mount=type=cache,target=/root/.cargo/registry \
    --mount=type=cache,target=/build/target,sharing=locked \
    set -eu; \
    for source in source/guacamole-server-"$RELEASE"*; do \
        if [ -e "$source" ]; then cargo xtask fetch --release "$RELEASE" --from "$source"; fi; \
    done; \
    cargo xtask build --release "$RELEASE" --prefix /opt/guacamole --install; \
    cargo build --locked --profile probe --package guac-probe; \
    cp target/probe/guac-probe packaging/entrypoint.sh /opt/guacamole/; \
    # What only compilers and debuggers need.
    rm -rf /opt/guacamole/include /opt/guacamole/lib/*.a /opt/guacamole/lib/*.la; \
    find /opt/guacamole -type f \( -path '*/sbin/*' -o -path '*/bin/*' -o -name '*.so*' \) -exec strip --strip-unneeded {} +; \
    find /opt/guacamole -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +

FROM ${BASE}
ARG SOURCE_DATE_EPOCH
# For terminals in scripts that these lack, as fonts-noto-cjk, which the official image has, and which weighs 90 MB.
ARG FONTS="fonts-dejavu-core fonts-liberation"
# The libraries are those that the bill of materials lists, in the versions that it lists. Ghostscript makes PDFs of what is
# printed over RDP, netcat is what health checks of users' own are used to, and guacd's plugins for FreeRDP have to be where
# FreeRDP looks for plugins.
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

ARG RELEASE
LABEL org.opencontainers.image.title="guacd-uncapped" \
    org.opencontainers.image.description="Apache Guacamole's guacd, with as many sessions as the machine allows" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${RELEASE}"
ENV LC_ALL=C.UTF-8 \
    LD_LIBRARY_PATH=/opt/guacamole/lib
USER 1000:1000
EXPOSE 4822
STOPSIGNAL SIGTERM
# It speaks the protocol: a guacd that hangs still has an open port.
HEALTHCHECK --interval=1m --timeout=5s --start-period=10s --retries=3 CMD ["/opt/guacamole/guac-probe"]
ENTRYPOINT ["/opt/guacamole/entrypoint.sh"]
