#!/usr/bin/env bash
# Let an Envoy with Antiphon's configuration leave without a client noticing; for the preStop hook of its container.
# Usage: drain.sh [SECONDS OF NOTICE] [ADMIN PORT] [SECONDS IN ALL] [FILE]. It needs bash alone, which Envoy's image has.
#
# First `/ready` says no and connections are told to move, while everything is served; after the notice nobody can connect
# any more; when the last answer is whole, also to a model call of Antiphon's own, this ends, and at last after the seconds
# in all (by default the pod's grace period is the end). FILE is made when nothing is left but WebSockets: who waits for it
# stops the sidecar, which closes those that are idle, and busy ones after their turn.
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

over() { [[ -n $seconds ]] && ((SECONDS >= seconds)); }

ask 'POST /healthcheck/fail' >/dev/null
sleep "$notice"
ask 'POST /drain_listeners?inboundonly' >/dev/null
quiet=0
# Quiet for a second: a client may have asked again on its connection, and the last bytes are on their way.
until ((quiet == 5)) || over; do
  requests=$(sum '^http\.antiphon\.downstream_rq_active$')
  # A WebSocket counts as a request for as long as it is open.
  if [[ -n $file && ! -e $file ]] && ((requests <= $(sum '^http\.antiphon\.downstream_cx_upgrades_active$'))); then
    : >"$file"
  fi
  if ((requests + $(sum '^http\.model_door\.downstream_rq_active$') > 0)); then quiet=0; else quiet=$((quiet + 1)); fi
  sleep 0.2
done
[[ -z $file ]] || : >"$file"
