{{/* The shared parts of the pods: rights, placement, volumes and containers. _settings.tpl has the checksum of Secrets. */}}

{{/* The first fields of every pod's spec. Arguments: (list . PLACEMENT), a mapping with nodeSelector, tolerations and affinity. */}}
{{- define "antiphon.anyPod" -}}
{{- $root := index . 0 -}}
{{- $placement := index . 1 -}}
automountServiceAccountToken: false
# Without this, variables of Services would be read as settings.
enableServiceLinks: false
{{- with $root.Values.podSecurityContext }}
securityContext: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with concat $root.Values.imagePullSecrets (dig "imagePullSecrets" list $root.Values.global) }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- range $name := list "nodeSelector" "tolerations" "affinity" }}
{{- with get $placement $name }}
{{ $name }}: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- range $name := list "priorityClassName" "runtimeClassName" "dnsPolicy" }}
{{- with get $root.Values $name }}
{{ $name }}: {{ . }}
{{- end }}
{{- end }}
{{- range $name := list "hostAliases" "dnsConfig" }}
{{- with get $root.Values $name }}
{{ $name }}: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The first fields of a serving pod's spec. Arguments: (list . COMPONENT). */}}
{{- define "antiphon.podBegin" -}}
{{- $root := index . 0 -}}
{{- $placement := pick $root.Values "nodeSelector" "tolerations" "affinity" -}}
{{- if eq (index . 1) "envoy" -}}
{{- range $name, $common := $placement }}{{ $_ := set $placement $name (get $root.Values.envoy $name | default $common) }}{{ end -}}
{{- end -}}
serviceAccountName: {{ include "antiphon.serviceAccount" $root }}
{{ include "antiphon.anyPod" (list $root $placement) }}
terminationGracePeriodSeconds: {{ $root.Values.terminationGracePeriodSeconds }}
{{- if $root.Values.topologySpreadConstraints }}
topologySpreadConstraints: {{- toYaml $root.Values.topologySpreadConstraints | nindent 2 }}
{{- else if $root.Values.topologySpread }}
topologySpreadConstraints:
  {{- $selector := include "antiphon.selector" . }}
  {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- $selector | nindent 8 }}
    # Counts the pods of a rollout only, because the old pods end.
    matchLabelKeys: [pod-template-hash]
  {{- end }}
{{- end }}
{{- end -}}

{{/* The labels and annotations of a serving pod. Arguments: (list . COMPONENT). */}}
{{- define "antiphon.podMetadata" -}}
{{- $root := index . 0 -}}
labels: {{- include "antiphon.podLabels" . | nindent 2 }}
  {{- with $root.Values.podLabels }}{{ toYaml . | nindent 2 }}{{ end }}
{{- $annotations := deepCopy $root.Values.podAnnotations -}}
{{- with include "antiphon.secretsChecksum" $root }}{{ $_ := set $annotations "checksum/secrets" . }}{{ end }}
{{- with $annotations }}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The same for a pod that runs one command, and the first fields of its spec. */}}
{{- define "antiphon.stepMetadata" -}}
{{- $root := index . 0 -}}
labels: {{- include "antiphon.podLabels" . | nindent 2 }}
  {{- with merge dict $root.Values.steps.podLabels $root.Values.podLabels }}{{ toYaml . | nindent 2 }}{{ end }}
{{- with merge dict $root.Values.steps.podAnnotations $root.Values.podAnnotations }}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "antiphon.stepBegin" -}}
restartPolicy: Never
{{ include "antiphon.anyPod" (list . (pick .Values "nodeSelector" "tolerations" "affinity")) }}
{{- end -}}

{{/* The pod's volumes. Arguments: (list . SETTINGS CLAIM), the ConfigMap's name and the volume claim ("" for an emptyDir). */}}
{{- define "antiphon.volumes" -}}
{{- $settings := index . 1 -}}
{{- $claim := index . 2 -}}
{{- with index . 0 -}}
- name: settings
  configMap: {name: {{ $settings }}}
- name: tmp
  emptyDir: {}
- name: data
{{- if $claim }}
  persistentVolumeClaim: {claimName: {{ $claim }}}
{{- else }}
  emptyDir: {}
{{- end }}
{{- if ne .Values.shape "http" }}
- name: run
  emptyDir: {medium: Memory}
{{- end }}
{{- if .Values.sidecarTls.secretName }}
- name: tls
  secret: {secretName: {{ .Values.sidecarTls.secretName }}}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The name of the data folder's volume claim; empty for an emptyDir. */}}
{{- define "antiphon.claim" -}}
{{- if and (eq .Values.state.kind "sqlite") .Values.persistence.enabled -}}
{{- default (printf "%s-data" (include "antiphon.fullname" .)) .Values.persistence.existingClaim -}}
{{- end -}}
{{- end -}}

{{/* The mounts of every container that reads the settings. */}}
{{- define "antiphon.mounts" -}}
- {name: settings, mountPath: /etc/antiphon, readOnly: true}
- {name: data, mountPath: /var/lib/antiphon}
- {name: tmp, mountPath: /tmp}
{{- if ne .Values.shape "http" }}
- {name: run, mountPath: /run/antiphon}
{{- end }}
{{- if .Values.sidecarTls.secretName }}
- {name: tls, mountPath: /etc/antiphon-tls, readOnly: true}
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* A container's security context and resources. Arguments: (list . RESOURCES). */}}
{{- define "antiphon.bounds" -}}
{{- with (index . 0).Values.securityContext -}}
securityContext: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with index . 1 }}
resources: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* A container of Antiphon's image that runs one command. Arguments: (list . NAME COMMAND VARIABLES): `command` or `args` as a
mapping, and more variables as text. */}}
{{- define "antiphon.step" -}}
{{- $root := index . 0 -}}
- name: {{ index . 1 }}
  image: {{ include "antiphon.image" $root }}
  imagePullPolicy: {{ $root.Values.image.pullPolicy }}
  {{- toYaml (index . 2) | nindent 2 }}
  env:
    {{- include "antiphon.env" $root | trim | nindent 4 }}
    {{- with index . 3 }}{{ . | nindent 4 }}{{ end }}
  {{- include "antiphon.bounds" (list $root $root.Values.steps.resources) | nindent 2 }}
  {{- with $root.Values.envFrom }}
  envFrom: {{- toYaml . | nindent 4 }}
  {{- end }}
  volumeMounts: {{- include "antiphon.mounts" $root | nindent 4 }}
{{- end -}}

{{/* The init container that writes Envoy's bootstrap. It uses Antiphon's image, so bootstrap and sidecar have the same version. */}}
{{- define "antiphon.bootstrapStep" -}}
{{- $tag := regexFind "^v?[0-9]+\\.[0-9]+" .Values.envoy.image.tag -}}
{{- $arguments := "" -}}
{{- with default $tag .Values.envoy.version -}}
{{- $arguments = printf " --envoy-version %s" . -}}
{{- end -}}
{{- if eq .Values.shape "gateway" -}}
{{- $host := include "antiphon.extprocHost" . -}}
{{- $arguments = printf "%s --grpc %s:9000 --http %s:9001 --model-door 0.0.0.0:8090" $arguments $host $host -}}
{{- end -}}
{{/* Envoy can compare some values with a literal only. There the script replaces a placeholder by the secret. */}}
{{/* The script copies the drain hook, because the hook must exist as long as the pod. */}}
{{- $script := printf "set -euo pipefail\ncp /etc/antiphon/drain.sh /run/antiphon/\nantiphon envoy-config%s | python3 -c '\nimport json, os, sys\nsecret = json.dumps(os.environ.get(\"ANTIPHON_SIDECAR__SECRET\", \"\"))[1:-1]\nsys.stdout.write(sys.stdin.read().replace(\"${ANTIPHON_SIDECAR_SECRET}\", secret))\n' >/run/antiphon/envoy.yaml\n" $arguments -}}
{{- include "antiphon.step" (list . "envoy-config" (dict "command" (list "bash" "-c" $script)) "") -}}
{{- end -}}

{{- define "antiphon.migrateStep" -}}
{{- include "antiphon.step" (list . "migrate" (dict "args" (list "migrate" "up")) (include "antiphon.stateEnv" . | trim)) -}}
{{- end -}}

{{/* A probe. Arguments: (list . KIND PATH PORT SCHEME). */}}
{{- define "antiphon.probe" -}}
httpGet: {path: {{ index . 2 }}, port: {{ index . 3 }}, scheme: {{ index . 4 }}}
{{ get (index . 0).Values.probes (index . 1) | toYaml }}
{{- end -}}

{{/* Antiphon's container. Its probes are HTTP requests to a port that is open anyway, so they start no process. */}}
{{- define "antiphon.server" -}}
- name: antiphon
  image: {{ include "antiphon.image" . }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  args: [{{ ternary "serve" "extproc" (eq .Values.shape "http") }}]
  env:
    {{- include "antiphon.env" . | trim | nindent 4 }}
    {{- with include "antiphon.stateEnv" . | trim }}{{ . | nindent 4 }}{{ end }}
  {{- with .Values.envFrom }}
  envFrom: {{- toYaml . | nindent 4 }}
  {{- end }}
  ports:
    - {name: metrics, containerPort: 9090}
    {{- if eq .Values.shape "http" }}
    - {name: http, containerPort: 8080}
    {{- include "antiphon.consolePort" . | nindent 4 }}
    {{- else if eq .Values.shape "gateway" }}
    - {name: extproc, containerPort: 9000}
    - {name: http, containerPort: 9001}
    {{- end }}
  {{- include "antiphon.bounds" (list . .Values.resources) | nindent 2 }}
  {{- if eq .Values.shape "sidecar" }}
  # A native sidecar: Kubernetes starts it before Envoy and stops it after Envoy. Probes cannot reach its Unix sockets.
  restartPolicy: Always
  startupProbe: {{- include "antiphon.probe" (list . "startup" "/metrics" "metrics" "HTTP") | nindent 4 }}
  livenessProbe: {{- include "antiphon.probe" (list . "liveness" "/metrics" "metrics" "HTTP") | nindent 4 }}
  lifecycle:
    preStop:
      exec:
        # The hooks of all containers start together. When Envoy has only WebSockets left, or has ended, Antiphon drains: it
        # closes idle WebSockets, and busy ones after their turn.
        command:
          - bash
          - -c
          - until [ -e /run/antiphon/leave ] || ! (exec 3<>/dev/tcp/127.0.0.1/9901) 2>/dev/null; do sleep 0.5; done; kill -TERM 1
  {{- else }}
  {{- $scheme := ternary "HTTPS" "HTTP" (ne .Values.sidecarTls.secretName "") }}
  startupProbe: {{- include "antiphon.probe" (list . "startup" "/health" "http" $scheme) | nindent 4 }}
  readinessProbe: {{- include "antiphon.probe" (list . "readiness" "/ready" "http" $scheme) | nindent 4 }}
  livenessProbe: {{- include "antiphon.probe" (list . "liveness" "/health" "http" $scheme) | nindent 4 }}
  {{- end }}
  volumeMounts: {{- include "antiphon.mounts" . | nindent 4 }}
{{- end -}}

{{- define "antiphon.envoy" -}}
- name: envoy
  image: {{ include "antiphon.imageOf" (list . .Values.envoy.image "") }}
  imagePullPolicy: {{ .Values.envoy.image.pullPolicy }}
  args: [-c, /run/antiphon/envoy.yaml, --disable-hot-restart, --file-flush-interval-msec, "200", --log-level, {{ dig "envoy" "log_level" "warning" .Values.settings }}]
  {{- with include "antiphon.envoyEnv" . | trim }}
  env: {{- . | nindent 4 }}
  {{- end }}
  ports:
    - {name: http, containerPort: 8080}
    - {name: envoy-metrics, containerPort: 9902}
    {{- include "antiphon.consolePort" . | nindent 4 }}
    {{- if eq .Values.shape "gateway" }}
    - {name: model-door, containerPort: 8090}
    {{- end }}
  {{- include "antiphon.bounds" (list . .Values.envoy.resources) | nindent 2 }}
  # Envoy answers the liveness probe itself. The sidecar answers the readiness probe, through Envoy.
  startupProbe: {{- include "antiphon.probe" (list . "startup" "/live" "envoy-metrics" "HTTP") | nindent 4 }}
  livenessProbe: {{- include "antiphon.probe" (list . "liveness" "/live" "envoy-metrics" "HTTP") | nindent 4 }}
  readinessProbe: {{- include "antiphon.probe" (list . "readiness" "/ready" "http" "HTTP") | nindent 4 }}
  lifecycle:
    preStop:
      exec:
        command: [bash, /run/antiphon/drain.sh, {{ .Values.drain.notice | quote }}, "9901", {{ .Values.drain.seconds | quote }}, /run/antiphon/leave]
  volumeMounts:
    - {name: run, mountPath: /run/antiphon}
    {{- if .Values.sidecarTls.secretName }}
    - {name: tls, mountPath: /etc/antiphon-tls, readOnly: true}
    {{- end }}
    {{- with .Values.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}

{{/* The port of the console, in the container to which clients connect. */}}
{{- define "antiphon.consolePort" -}}
{{- if dig "console" "enabled" false .Values.settings -}}
- {name: console, containerPort: 8091}
{{- end -}}
{{- end -}}
