#!/bin/sh
# An RDP server, xrdp, on a port of the loopback interface. Each connection gets its own desktop: a terminal whose program
# copies each line that is typed to the clipboard. With a COMMAND, it copies what the command makes of the line.
#
#   stress/examples/rdp-desktop.sh PORT [COMMAND]
#
# Log in as the user who started it, with the password "secret" or the one in XRDP_PASSWORD. It needs root, as xrdp does, and
# xrdp, xorgxrdp, xterm and openssl. It changes no file of the system and starts no service: xrdp sees its own /etc/xrdp, /run,
# /tmp and home directory in a namespace, in which all its processes end when this one ends.
set -eu

if [ -z "${RDP_DESKTOP:-}" ]; then
    [ $# -gt 0 ] || { echo "usage: $0 PORT [COMMAND]" >&2; exit 2; }
    dir=$(mktemp -d)
    trap 'rm -rf "$dir"' EXIT
    trap 'exit 1' HUP INT TERM
    # The home directory is where the system's list of users says.
    user=$(id -un)
    home=$(getent passwd "$user" | cut -d: -f6)
    export dir user home RDP_DESKTOP=inside
    setpriv --pdeathsig KILL unshare --mount --pid --fork --kill-child --mount-proc "$0" "$@" &
    server=$!
    trap 'kill -KILL $server; wait $server || true; exit 1' HUP INT TERM
    wait $server
    exit
fi

port=$1 command=${2:-cat}
mkdir -p "$dir/run/xrdp/sockdir" "$dir/home" "$dir/tmp/.X11-unix" "$dir/etc" "$dir/pam.d"
chmod 1777 "$dir/tmp" "$dir/tmp/.X11-unix"
cp /etc/xrdp/*.ini "$dir/etc"

sed -i -e "s|^port=3389|port=tcp://127.0.0.1:$port|" -e "s|^autorun=.*|autorun=Xorg|" \
    -e "s|^certificate=.*|certificate=/etc/xrdp/certificate|" -e "s|^key_file=.*|key_file=/etc/xrdp/key|" "$dir/etc/xrdp.ini"
# Each connection has its own session. xrdp 0.9, whose sesman listens at a port, says so in another way than later ones.
policy=Separate
if grep -q '^ListenPort=' "$dir/etc/sesman.ini"; then policy=UBC; fi
sed -i -e "s|^ListenPort=3350|ListenPort=${XRDP_SESMAN_PORT:-$((port + 1))}|" -e "s|^Policy=.*|Policy=$policy|" \
    -e "s|^AllowRootLogin=.*|AllowRootLogin=true|" "$dir/etc/sesman.ini"
# An X server would listen at an abstract address as well, which others may use.
sed -i '/^param=-nolisten/i param=-nolisten\nparam=local' "$dir/etc/sesman.ini"
sed -i -e "s|^LogFile=|LogFile=/run/|" -e "s|^EnableSyslog=.*|EnableSyslog=false|" "$dir"/etc/*.ini
openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -keyout "$dir/etc/key" -out "$dir/etc/certificate" 2>/dev/null

cat > "$dir/etc/startwm.sh" <<END
#!/bin/sh
# It covers the whole screen, since keys go to the window under the pointer.
export LC_ALL=C.UTF-8
exec xterm -geometry 300x100+0+0 -xrm 'XTerm*allowWindowOps: true' -xrm 'XTerm*selectToClipboard: true' -e /etc/xrdp/program
END
# OSC 52 sets the clipboard, in base64.
cat > "$dir/etc/program" <<END
#!/bin/sh
stty -echo && while read -r line; do printf '\033]52;c;%s\007' "\$(printf %s "\$line" | $command 2>&1 | base64 -w 0)"; done
END
# Whoever has the password may log in.
cat > "$dir/etc/password" <<END
#!/bin/sh
IFS= read -r password || true
[ "\$password" = '${XRDP_PASSWORD:-secret}' ]
END
chmod 755 "$dir/etc/startwm.sh" "$dir/etc/program" "$dir/etc/password"
cat > "$dir/pam.d/xrdp-sesman" <<END
auth requisite pam_exec.so expose_authtok quiet /etc/xrdp/password
auth required pam_permit.so
account required pam_permit.so
session required pam_permit.so
END

mount --bind "$dir/etc" /etc/xrdp
mount --bind "$dir/pam.d" /etc/pam.d
mount --bind "$dir/run" /run
mount --bind "$dir/home" "$home"
mount --bind "$dir/tmp" /tmp
cd /

xrdp-sesman --nodaemon &
exec xrdp --nodaemon
