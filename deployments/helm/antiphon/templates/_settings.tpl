{{/* The settings file: what is given, with what the chart decides over it. */}}

{{- define "antiphon.settings" -}}
{{- include "antiphon.check" . -}}
{{- $gateway := eq .Values.shape "gateway" -}}
{{/* Beside its Envoy a sidecar is told to leave when nobody new can come: the notice is Envoy's. */}}
{{- $chart := dict
  "listen" "0.0.0.0:8080"
  "data" "/var/lib/antiphon"
  "door" (ternary "http" "envoy" (eq .Values.shape "http"))
  "metrics" (dict "listen" "0.0.0.0:9090")
  "timeouts" (dict "drain" .Values.drain.seconds "notice" (ternary 0 .Values.drain.notice (eq .Values.shape "sidecar")))
  "log" (dict "format" "json") -}}
{{- if eq .Values.state.kind "memory" -}}
{{- $_ := set $chart "state" (dict "url" "memory:") -}}
{{- else if eq .Values.state.kind "postgresql" -}}
{{- $_ := set $chart "state" (dict "migrate" (ternary "auto" "check" (eq .Values.state.migrate "auto"))) -}}
{{- end -}}
{{- if eq .Values.shape "sidecar" -}}
{{- $_ := set $chart "sidecar" (dict "grpc" "unix:/run/antiphon/sidecar-0.grpc.sock" "http" "unix:/run/antiphon/sidecar-0.http.sock" "model_door" "unix:/run/antiphon/model-door.sock") -}}
{{- else if $gateway -}}
{{- $sidecar := dict "grpc" "0.0.0.0:9000" "http" "0.0.0.0:9001" "model_door" (printf "%s-model-door.%s.svc:8090" (include "antiphon.fullname" .) .Release.Namespace) -}}
{{- if .Values.sidecarTls.secretName -}}
{{- $_ := set $sidecar "tls" (dict "cert" "/etc/antiphon-tls/tls.crt" "key" "/etc/antiphon-tls/tls.key" "ca" "/etc/antiphon-tls/ca.crt") -}}
{{- end -}}
{{- $_ := set $chart "sidecar" $sidecar -}}
{{- end -}}
{{- if ne .Values.shape "http" -}}
{{- $_ := set $chart "envoy" (dict "admin" "127.0.0.1:9901") -}}
{{- end -}}
{{- $given := deepCopy .Values.settings -}}
{{- if not (dig "upstream" "url" "" $given) -}}{{- $_ := unset $given "upstream" -}}{{- end -}}
{{- mergeOverwrite $given $chart | toYaml -}}
{{- end -}}

{{/* The settings without those that change while a pod serves (files/live.txt, made of src/antiphon/config/live.py). What is marked
`envoy` there may shape Envoy's configuration, which is read at its start; of the models that is where they go. */}}
{{- define "antiphon.lastingSettings" -}}
{{- $settings := include "antiphon.settings" . | fromYaml -}}
{{- $alone := eq .Values.shape "http" -}}
{{- if dig "reload" "watch" true $settings -}}
{{- range .Files.Lines "files/live.txt" -}}
{{- $words := splitList " " . -}}
{{- $path := splitList "." (first $words) -}}
{{- if and . (or $alone (eq (len $words) 1)) -}}
{{- if eq (len $path) 1 -}}
{{- $_ := unset $settings (first $path) -}}
{{- else if kindIs "map" (get $settings (first $path)) -}}
{{- $section := unset (get $settings (first $path)) (last $path) -}}
{{- if not $section -}}{{- $_ := unset $settings (first $path) -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if kindIs "slice" $settings.models -}}
{{- $ways := list -}}
{{- range $settings.models -}}{{- $ways = append $ways (pick . "upstream" "mode" | toJson) -}}{{- end -}}
{{- $_ := set $settings "models" (uniq $ways) -}}
{{- end -}}
{{- end -}}
{{- $settings | toYaml -}}
{{- end -}}

{{/* Variables of what is stored: the database, the bucket and the keys that all replicas share. */}}
{{- define "antiphon.stateEnv" -}}
{{- range $variable, $secret := dict "ANTIPHON_OWNER__KEY" .Values.secrets.ownerKey "ANTIPHON_SEALING__KEYS" .Values.secrets.sealingKeys "ANTIPHON_STATE__URL" .Values.secrets.stateUrl "ANTIPHON_STATE__DIRECT_URL" .Values.secrets.stateDirectUrl "ANTIPHON_BLOBS__KEY_ID" .Values.secrets.blobsKeyId "ANTIPHON_BLOBS__SECRET" .Values.secrets.blobsSecret }}
{{- include "antiphon.variable" (list $variable $secret) }}
{{- end }}
{{- end -}}

{{/* Variables of every container that reads the settings. */}}
{{- define "antiphon.env" -}}
- {name: ANTIPHON_CONFIG, value: /etc/antiphon/settings.yaml}
{{- include "antiphon.variable" (list "ANTIPHON_UPSTREAM__API_KEY" .Values.secrets.upstreamKey) }}
{{- include "antiphon.variable" (list "ANTIPHON_SIDECAR__SECRET" .Values.secrets.sidecarSecret) }}
{{- if .Values.secrets.upstreamKeys }}
{{- $keys := dict }}
{{- range $name, $secret := .Values.secrets.upstreamKeys }}
{{- $variable := include "antiphon.keyVariable" $name }}
{{- include "antiphon.variable" (list $variable $secret) }}
{{- $_ := set $keys $name (dict "api_key" (printf "$(%s)" $variable)) }}
{{- end }}
# Kubernetes puts the keys in.
- {name: ANTIPHON_UPSTREAMS, value: {{ $keys | toJson | quote }}}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Envoy's: the keys of the upstreams, which it adds, and the secret that it shows. */}}
{{- define "antiphon.envoyEnv" -}}
{{- include "antiphon.variable" (list "ANTIPHON_UPSTREAM_KEY" .Values.secrets.upstreamKey) }}
{{- include "antiphon.variable" (list "ANTIPHON_SIDECAR_SECRET" .Values.secrets.sidecarSecret) }}
{{- range $name, $secret := .Values.secrets.upstreamKeys }}
{{- include "antiphon.variable" (list (include "antiphon.keyVariable" $name) $secret) }}
{{- end }}
{{- end -}}

{{- define "antiphon.keyVariable" -}}
ANTIPHON_UPSTREAM_KEY_{{ . | upper | replace "-" "_" }}
{{- end -}}

{{- define "antiphon.variable" -}}
{{- $secret := index . 1 -}}
{{- if $secret.name }}
- {name: {{ index . 0 }}, valueFrom: {secretKeyRef: {name: {{ $secret.name }}, key: {{ $secret.key }}}}}
{{- end -}}
{{- end -}}
