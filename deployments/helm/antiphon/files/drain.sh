#!/usr/bin/env bash
# Let an Envoy with Antiphon's configuration leave without a client noticing; for the preStop hook of its container.
# Usage: drain.sh [SECONDS OF NOTICE] [ADMIN PORT] [SECONDS IN ALL] [FILE]. It needs bash alone, which Envoy's image has.
#
# First `/ready` says no and connections are told to move, while everything is served; after the notice nobody can connect
# any more; when the last answer is whole, also to a model call of Antiphon's own, this ends, and at last after the seconds
# in all (by default the pod's grace period is the end). WebSockets are ended by Antiphon, idle ones first, busy ones after
# their turn: one in the same pod stops when FILE is made, which is when nothing else is left; those in pods of their own
# are asked over TCP, with the secret in ANTIPHON_SIDECAR_SECRET (not where they have TLS, which bash does not speak).
set -euo pipefail
notice=${1:-5} port=${2:-9901} seconds=${3:-} file=${4:-}

ask() {
  exec 3<>"/dev/tcp/127.0.0.1/$port"
  printf '%s HTTP/1.1\r\nhost: envoy\r\nconnection: close\r\n\r\n' "$1" >&3
  cat <&3
  exec 3<&-
}

# The sum of what these statistics (a regular expression) say.
sum() {
  local name value total=0
  while IFS=' ' read -r name value; do
    [[ $name == *: ]] && total=$((total + ${value%$'\r'}))
  done < <(ask "GET /stats?filter=$1" | grep '^http\.')
  echo "$total"
}

# Tell every Antiphon that this Envoy leaves: each ends the WebSockets that came from this pod's address.
tell() {
  local line
  while read -r line; do
    [[ $line =~ ^sidecar_http::\[?([0-9a-fA-F.:]+)\]?:([0-9]+)::cx_active:: ]] || continue
    host=${BASH_REMATCH[1]} to=${BASH_REMATCH[2]} timeout 2 bash -c '
      exec 3<>"/dev/tcp/$host/$to"
      printf "POST /gateway/leaves HTTP/1.1\r\nhost: antiphon\r\nx-antiphon-secret: %s\r\ncontent-length: 0\r\nconnection: close\r\n\r\n" \
        "${ANTIPHON_SIDECAR_SECRET:-}" >&3
      cat <&3' >/dev/null 2>&1 &
  done < <(ask 'GET /clusters')
  wait
}

over() { [[ -n $seconds ]] && ((SECONDS >= seconds)); }

ask 'POST /healthcheck/fail' >/dev/null
sleep "$notice"
ask 'POST /drain_listeners?inboundonly' >/dev/null
quiet=0 told=-1
# Quiet for a second: a client may have asked again on its connection, and the last bytes are on their way.
until ((quiet == 5)) || over; do
  requests=$(sum '^http\.antiphon\.downstream_rq_active$')
  # A WebSocket counts as a request for as long as it is open.
  sockets=$(sum '^http\.antiphon\.downstream_cx_upgrades_active$')
  if [[ -n $file && ! -e $file ]] && ((requests <= sockets)); then
    : >"$file"
  fi
  if ((sockets > 0 && SECONDS > told)); then
    told=$SECONDS
    tell
  fi
  if ((requests + $(sum '^http\.model_door\.downstream_rq_active$') > 0)); then quiet=0; else quiet=$((quiet + 1)); fi
  sleep 0.2
done
[[ -z $file ]] || : >"$file"
