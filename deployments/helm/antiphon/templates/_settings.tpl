{{/* The settings file, which merges the chart's settings over the given ones; the variables from Secrets; the names of these Secrets; and the
checksum of their contents, which replaces the pods when one changes. */}}

{{- define "antiphon.settings" -}}
{{- include "antiphon.check" . -}}
{{- $gateway := eq .Values.shape "gateway" -}}
{{/* In shape sidecar Envoy waits for the notice. The sidecar begins its drain afterwards, when no new request can arrive. */}}
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
{{- $_ := set $chart "envoy" (dict "admin" "127.0.0.1:9901" "metrics" "0.0.0.0:9902") -}}
{{- end -}}
{{- if dig "console" "enabled" false .Values.settings -}}
{{- $_ := set $chart "console" (dict "listen" "0.0.0.0:8091") -}}
{{- end -}}
{{/* All pods share one database. If unready pods followed its outage, the Service would have none for requests that need no database. */}}
{{- $defaults := eq .Values.state.kind "postgresql" | ternary (dict "state" (dict "unready_after" 0)) dict -}}
{{- $given := deepCopy .Values.settings -}}
{{- if not (dig "upstream" "url" "" $given) -}}{{- $_ := unset $given "upstream" -}}{{- end -}}
{{- mergeOverwrite $defaults $given $chart | toYaml -}}
{{- end -}}

{{/* The ConfigMap's content and its name, which is different for each content. So the pods of a failed upgrade and the old pods each keep
their settings. */}}
{{- define "antiphon.config" -}}
settings.yaml: | {{- include "antiphon.settings" . | nindent 2 }}
{{- if ne .Values.shape "http" }}
drain.sh: | {{- .Files.Get "files/drain.sh" | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "antiphon.configName" -}}
{{ include "antiphon.fullname" . }}-{{ include "antiphon.config" . | sha256sum | trunc 10 }}
{{- end -}}

{{/* Variables for the storage: the database, the bucket and the keys that all replicas share. */}}
{{- define "antiphon.stateEnv" -}}
{{- range $variable, $secret := dict "ANTIPHON_OWNER__KEY" .Values.secrets.ownerKey "ANTIPHON_SEALING__KEYS" .Values.secrets.sealingKeys "ANTIPHON_ADMIN__TOKEN" .Values.secrets.adminToken "ANTIPHON_STATE__URL" .Values.secrets.stateUrl "ANTIPHON_STATE__DIRECT_URL" .Values.secrets.stateDirectUrl "ANTIPHON_BLOBS__KEY_ID" .Values.secrets.blobsKeyId "ANTIPHON_BLOBS__SECRET" .Values.secrets.blobsSecret }}
{{- include "antiphon.variable" (list $variable $secret) }}
{{- end }}
{{- with .Values.state.database }}
{{- if .secretName }}
{{/* User and password are variables that the driver reads. In a URL their characters would need an encoding. */}}
{{- $secret := .secretName }}
{{- range $variable, $part := dict "PGUSER" "user" "PGPASSWORD" "password" }}
{{- include "antiphon.variable" (list $variable (dict "name" $secret "key" (get $.Values.state.database.keys $part))) }}
{{- end }}
{{- range $variable, $part := dict "PGHOST" "host" "PGPORT" "port" "PGDATABASE" "dbname" }}
{{- with get $.Values.state.database $part | toString }}
- {name: {{ $variable }}, value: {{ . | quote }}}
{{- else }}
{{- include "antiphon.variable" (list $variable (dict "name" $secret "key" (get $.Values.state.database.keys $part))) }}
{{- end }}
{{- end }}
- {name: ANTIPHON_STATE__URL, value: {{ printf "postgresql://$(PGHOST):$(PGPORT)/$(PGDATABASE)%s" (ternary (printf "?%s" .parameters) "" (ne .parameters "")) | quote }}}
{{- end }}
{{- end }}
{{- end -}}

{{/* Variables of every container that reads the settings. */}}
{{- define "antiphon.env" -}}
- {name: ANTIPHON_CONFIG, value: /etc/antiphon/settings.yaml}
{{- $secrets := .Values.secrets }}
{{- range $variable, $secret := dict "ANTIPHON_UPSTREAM__API_KEY" $secrets.upstreamKey "ANTIPHON_SIDECAR__SECRET" $secrets.sidecarSecret "ANTIPHON_OWNER__API_KEYS" $secrets.apiKeys "ANTIPHON_OWNER__KEYS" $secrets.ownerKeys "ANTIPHON_EMBEDDINGS__API_KEY" $secrets.embeddingsKey "ANTIPHON_WEB_SEARCH__API_KEY" $secrets.webSearchKey }}
{{- include "antiphon.variable" (list $variable $secret) }}
{{- end }}
{{/* A setting that is a mapping is one variable. Kubernetes expands the others in it. */}}
{{- with $secrets.upstreamKeys }}
{{- $keys := dict }}
{{- range $name, $secret := . }}
{{- $variable := include "antiphon.keyVariable" $name }}
{{- include "antiphon.variable" (list $variable $secret) }}
{{- $_ := set $keys $name (dict "api_key" (printf "$(%s)" $variable)) }}
{{- end }}
- {name: ANTIPHON_UPSTREAMS, value: {{ $keys | toJson | quote }}}
{{- end }}
{{- with $secrets.connectors }}
{{- $connectors := dict }}
{{- range $name, $headers := . }}
{{- $values := dict }}
{{- range $header, $secret := $headers }}
{{- $variable := include "antiphon.headerVariable" (list "CONNECTOR" $name $header) }}
{{- include "antiphon.variable" (list $variable $secret) }}
{{- $_ := set $values $header (printf "$(%s)" $variable) }}
{{- end }}
{{- $_ := set $connectors $name (dict "headers" $values) }}
{{- end }}
- {name: ANTIPHON_MCP__CONNECTORS, value: {{ $connectors | toJson | quote }}}
{{- end }}
{{- with $secrets.tracingHeaders }}
{{- $values := dict }}
{{- range $header, $secret := . }}
{{- $variable := include "antiphon.headerVariable" (list "TRACING" $header) }}
{{- include "antiphon.variable" (list $variable $secret) }}
{{- $_ := set $values $header (printf "$(%s)" $variable) }}
{{- end }}
- {name: ANTIPHON_TRACING__HEADERS, value: {{ $values | toJson | quote }}}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Envoy's variables: the upstreams' keys, and the secret that it sends to Antiphon. */}}
{{- define "antiphon.envoyEnv" -}}
{{- include "antiphon.variable" (list "ANTIPHON_UPSTREAM_KEY" .Values.secrets.upstreamKey) }}
{{- include "antiphon.variable" (list "ANTIPHON_SIDECAR_SECRET" .Values.secrets.sidecarSecret) }}
{{- range $name, $secret := .Values.secrets.upstreamKeys }}
{{- include "antiphon.variable" (list (include "antiphon.keyVariable" $name) $secret) }}
{{- end }}
{{- range $header, $secret := .Values.secrets.tracingHeaders }}
{{- include "antiphon.variable" (list (printf "ANTIPHON_TRACING_HEADER_%s" ($header | upper | replace "-" "_")) $secret) }}
{{- end }}
{{- end -}}

{{- define "antiphon.keyVariable" -}}
ANTIPHON_UPSTREAM_KEY_{{ . | upper | replace "-" "_" }}
{{- end -}}

{{/* A variable that another one expands. Its name does not begin with ANTIPHON_, so Antiphon does not read it as a setting. */}}
{{- define "antiphon.headerVariable" -}}
HEADER_{{ join "_" . | upper | replace "-" "_" }}
{{- end -}}

{{- define "antiphon.variable" -}}
{{- $secret := index . 1 -}}
{{- if $secret.name }}
- {name: {{ index . 0 }}, valueFrom: {secretKeyRef: {name: {{ $secret.name }}, key: {{ $secret.key }}}}}
{{- end -}}
{{- end -}}

{{/* The names of all Secrets that pods read, sorted, one on each line. */}}
{{- define "antiphon.secretNames" -}}
{{- $found := list .Values.state.database.secretName .Values.sidecarTls.secretName -}}
{{- $each := values (omit .Values.secrets "upstreamKeys" "connectors" "tracingHeaders") -}}
{{- $each = concat $each (values .Values.secrets.upstreamKeys) (values .Values.secrets.tracingHeaders) -}}
{{- range .Values.secrets.connectors }}{{ $each = concat $each (values .) }}{{ end -}}
{{- range $each }}{{ $found = append $found .name }}{{ end -}}
{{- $found | compact | uniq | sortAlpha | join "\n" -}}
{{- end -}}

{{/* A checksum of the Secrets' contents: a changed Secret replaces the pods. It is empty if helm cannot ask a cluster. It includes each
Secret's uid, so a reader of the checksum cannot guess the contents. */}}
{{- define "antiphon.secretsChecksum" -}}
{{- $seen := list -}}
{{- if .Values.secretsChecksum -}}
{{- range compact (splitList "\n" (include "antiphon.secretNames" .)) -}}
{{- with lookup "v1" "Secret" $.Release.Namespace . -}}
{{- $seen = append $seen (list .metadata.uid .data | toJson) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- with $seen }}{{ . | toJson | sha256sum }}{{ end -}}
{{- end -}}
