#!/usr/bin/env bash
# Let an Envoy with Antiphon's configuration leave without a client noticing; for the preStop hook of its container.
# Usage: drain.sh [SECONDS OF NOTICE] [ADMIN PORT]. It needs bash alone, which Envoy's image has.
#
# First `/ready` says no and connections are told to move, while everything is served; after the notice nobody can connect
# any more; when the last answer is whole, this ends. How long that may take is the pod's grace period.
set -euo pipefail
notice=${1:-5} port=${2:-9901}

ask() {
  exec 3<>"/dev/tcp/127.0.0.1/$port"
  printf '%s HTTP/1.1\r\nhost: envoy\r\nconnection: close\r\n\r\n' "$1" >&3
  cat <&3
  exec 3<&-
}

ask 'POST /healthcheck/fail' >/dev/null
sleep "$notice"
ask 'POST /drain_listeners?inboundonly' >/dev/null
until ask 'GET /stats?filter=^http\.antiphon\.downstream_rq_active$' | grep -q 'downstream_rq_active: 0'; do
  sleep 0.2
done
