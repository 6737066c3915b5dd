#!/bin/sh
# A VNC server for one connection, with a desktop of its own: a terminal, and in it a program that puts each line which is
# typed onto the clipboard. It serves what inetd hands it as standard input, or socat:
#
#   socat TCP-LISTEN:5901,bind=127.0.0.1,fork,reuseaddr EXEC:stress/examples/vnc-desktop.sh,nofork
#
# It takes Xvnc (TigerVNC's) and xterm. All of it ends with the connection.
set -eu

# A display that no other process can choose, as all would choose their own number.
display=$(($$ % 50000 + 100))

# OSC 52 sets the clipboard, in base64.
# shellcheck disable=SC2016
program='stty -echo && while read -r line; do printf "\033]52;c;%s\007" "$(printf %s "$line" | base64)"; done'
{
    until [ -S "/tmp/.X11-unix/X$display" ]; do sleep 0.05; done
    # It covers the whole screen: who types, types where the pointer is.
    exec xterm -display ":$display" -geometry 200x80+0+0 -xrm 'XTerm*allowWindowOps: true' -e sh -c "$program"
} </dev/null >/dev/null 2>&1 &

Xvnc ":$display" -inetd -SecurityTypes None -geometry 640x480 -depth 24 -nolisten tcp 2>/dev/null || true
wait
