#!/bin/sh
# Appends a line to the file $1 for each event. Told twice of one, it writes it once.
set -eu
event=$(cat)
id="event $GRANGE_EVENT_ID:"
exec 9>>"$1"
flock 9
grep -qF "$id" "$1" || echo "$id $event" >&9
