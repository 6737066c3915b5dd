#!/bin/sh
# A VNC server for one connection, with its own desktop: a terminal whose program copies each line that is typed to the
# clipboard. It serves the connection that inetd or socat passes as standard input:
#
#   socat TCP-LISTEN:5901,bind=127.0.0.1,fork,reuseaddr EXEC:stress/examples/vnc-desktop.sh,nofork
#
# It needs Xvnc (TigerVNC's) and xterm. All of it ends with the connection.
set -eu

# Each process takes its display number from its process ID, so no two choose the same.
display=$(($$ % 50000 + 100))

# OSC 52 sets the clipboard, in base64.
# shellcheck disable=SC2016
program='stty -echo && while read -r line; do printf "\033]52;c;%s\007" "$(printf %s "$line" | base64)"; done'
{
    until [ -S "/tmp/.X11-unix/X$display" ]; do sleep 0.05; done
    # It covers the whole screen, since keys go to the window under the pointer.
    exec xterm -display ":$display" -geometry 200x80+0+0 -xrm 'XTerm*allowWindowOps: true' -e sh -c "$program"
} </dev/null >/dev/null 2>&1 &

Xvnc ":$display" -inetd -SecurityTypes None -geometry 640x480 -depth 24 -nolisten tcp 2>/dev/null || true
wait
