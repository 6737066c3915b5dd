#!/bin/sh
# What the container runs. Arguments go to guacd, and win, as they come last. The log level is that of LOG_LEVEL, or of
# GUACD_LOG_LEVEL, the name that it had before.
exec /opt/guacamole/sbin/guacd -f -b 0.0.0.0 -L "${LOG_LEVEL:-${GUACD_LOG_LEVEL:-info}}" "$@"
