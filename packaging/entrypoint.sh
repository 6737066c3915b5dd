#!/bin/sh
# The container's command. Arguments go to guacd, and win, since they come last. LOG_LEVEL sets the log level, and so does its
# older name, GUACD_LOG_LEVEL.
exec /opt/guacamole/sbin/guacd -f -b 0.0.0.0 -L "${LOG_LEVEL:-${GUACD_LOG_LEVEL:-info}}" "$@"
