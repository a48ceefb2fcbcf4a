#!/usr/bin/env bash
# Drains an Envoy with Antiphon's configuration, so that no client sees a failure. It is the preStop hook of Envoy's container.
# Usage: drain.sh [SECONDS OF NOTICE] [ADMIN PORT] [SECONDS IN ALL] [FILE]. It needs only bash, which Envoy's image has.
#
# 1. `/ready` fails and responses ask clients to reconnect. Envoy still serves every request.
# 2. After the notice Envoy accepts no new connection.
# 3. The script ends when the last response is complete, also that of Antiphon's own model calls. It ends after SECONDS IN ALL at
#    the latest (by default the pod's grace period ends it).
#
# Antiphon closes WebSockets, idle ones first and busy ones after their turn. An Antiphon in the same pod begins when this script
# creates FILE, when only WebSockets are left. Antiphons in other pods get a request over TCP, with the secret in
# ANTIPHON_SIDECAR_SECRET. With TLS they get none, because bash has no TLS.
set -euo pipefail
notice=${1:-5} port=${2:-9901} seconds=${3:-} file=${4:-}

ask() {
  exec 3<>"/dev/tcp/127.0.0.1/$port"
  printf '%s HTTP/1.1\r\nhost: envoy\r\nconnection: close\r\n\r\n' "$1" >&3
  cat <&3
  exec 3<&-
}

# The sum of the statistics whose names match a regular expression.
sum() {
  local name value total=0
  while IFS=' ' read -r name value; do
    [[ $name == *: ]] && total=$((total + ${value%$'\r'}))
  done < <(ask "GET /stats?filter=$1" | grep '^http\.')
  echo "$total"
}

# Tell every Antiphon that this Envoy drains. Each ends the WebSockets and event streams that came from this pod's address.
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
# Wait for a second without requests: a client may send another on its connection, and the last bytes are still in transit.
until ((quiet == 5)) || over; do
  requests=$(sum '^http\.(antiphon|console)\.downstream_rq_active$')
  # Envoy counts an open WebSocket as an active request. Event streams of the console have no end either.
  sockets=$(sum '^http\.(antiphon\.downstream_cx_upgrades_active|console\.downstream_rq_active)$')
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
