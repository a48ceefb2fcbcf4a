{{/* What the pods have in common: rights, places, volumes, and their containers. */}}

{{- define "antiphon.podSecurity" -}}
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
runAsNonRoot: true
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "antiphon.containerSecurity" -}}
{readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
{{- end -}}

{{/* The beginning of a pod's spec: (list . COMPONENT). */}}
{{- define "antiphon.podBegin" -}}
{{- $root := index . 0 -}}
serviceAccountName: {{ include "antiphon.fullname" $root }}
automountServiceAccountToken: false
# A Service's variables are no settings.
enableServiceLinks: false
securityContext: {{- include "antiphon.podSecurity" $root | nindent 2 }}
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $root.Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $root.Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $root.Values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- if $root.Values.topologySpread }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "antiphon.selector" . | nindent 8 }}
{{- end }}
{{- end -}}

{{/* (list . SETTINGS CLAIM): the name of the ConfigMap; the claim of the data folder, or "" for an empty one. */}}
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

{{/* The claim of the data folder; empty where it is an emptyDir. */}}
{{- define "antiphon.claim" -}}
{{- if and (eq .Values.state.kind "sqlite") .Values.persistence.enabled -}}
{{- default (printf "%s-data" (include "antiphon.fullname" .)) .Values.persistence.existingClaim -}}
{{- end -}}
{{- end -}}

{{/* Where everything that reads the settings finds it. */}}
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

{{/* A container of Antiphon's image that runs one command to its end: (list . NAME COMMAND VARIABLES), `command` or `args` as a
mapping, and further variables as text. */}}
{{- define "antiphon.step" -}}
{{- $root := index . 0 -}}
- name: {{ index . 1 }}
  image: {{ include "antiphon.image" $root }}
  imagePullPolicy: {{ $root.Values.image.pullPolicy }}
  {{- toYaml (index . 2) | nindent 2 }}
  env:
    {{- include "antiphon.env" $root | trim | nindent 4 }}
    {{- with index . 3 }}{{ . | nindent 4 }}{{ end }}
  securityContext: {{ include "antiphon.containerSecurity" $root }}
  volumeMounts: {{- include "antiphon.mounts" $root | nindent 4 }}
{{- end -}}

{{/* The step that writes Envoy's bootstrap from the settings, with the image that serves them: the two always fit. */}}
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
{{/* Where Envoy can only compare with a literal, a placeholder stands for the secret. */}}
{{- $script := printf "set -euo pipefail\nantiphon envoy-config%s | python3 -c '\nimport json, os, sys\nsecret = json.dumps(os.environ.get(\"ANTIPHON_SIDECAR__SECRET\", \"\"))[1:-1]\nsys.stdout.write(sys.stdin.read().replace(\"${ANTIPHON_SIDECAR_SECRET}\", secret))\n' >/run/antiphon/envoy.yaml\n" $arguments -}}
{{- include "antiphon.step" (list . "envoy-config" (dict "command" (list "bash" "-c" $script)) "") -}}
{{- end -}}

{{- define "antiphon.migrateStep" -}}
{{- include "antiphon.step" (list . "migrate" (dict "args" (list "migrate" "up")) (include "antiphon.stateEnv" . | trim)) -}}
{{- end -}}

{{/* Antiphon itself. Its probes cost no process: they are requests to a port that is open anyway. */}}
{{- define "antiphon.server" -}}
- name: antiphon
  image: {{ include "antiphon.image" . }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  args: [{{ ternary "serve" "extproc" (eq .Values.shape "http") }}]
  env:
    {{- include "antiphon.env" . | trim | nindent 4 }}
    {{- with include "antiphon.stateEnv" . | trim }}{{ . | nindent 4 }}{{ end }}
  ports:
    - {name: metrics, containerPort: 9090}
    {{- if eq .Values.shape "http" }}
    - {name: http, containerPort: 8080}
    {{- else if eq .Values.shape "gateway" }}
    - {name: extproc, containerPort: 9000}
    - {name: http, containerPort: 9001}
    {{- end }}
  securityContext: {{ include "antiphon.containerSecurity" . }}
  {{- with .Values.resources }}
  resources: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if eq .Values.shape "sidecar" }}
  # A native sidecar: started before Envoy, stopped after it. Its other ports are Unix sockets, which no probe reaches.
  restartPolicy: Always
  startupProbe:
    httpGet: {path: /metrics, port: metrics}
    periodSeconds: 1
    timeoutSeconds: 5
    failureThreshold: 120
  livenessProbe:
    httpGet: {path: /metrics, port: metrics}
    periodSeconds: 10
    timeoutSeconds: 5
    failureThreshold: 3
    # One that hangs does not drain.
    terminationGracePeriodSeconds: 10
  lifecycle:
    preStop:
      exec:
        # Hooks of all containers begin together. Once Envoy has nothing left but WebSockets (or is gone) Antiphon drains:
        # it closes the idle ones, and the busy ones after their turn.
        command:
          - bash
          - -c
          - until [ -e /run/antiphon/leave ] || ! (exec 3<>/dev/tcp/127.0.0.1/9901) 2>/dev/null; do sleep 0.5; done; kill -TERM 1
  {{- else }}
  {{- $scheme := ternary "HTTPS" "HTTP" (ne .Values.sidecarTls.secretName "") }}
  startupProbe:
    httpGet: {path: /health, port: http, scheme: {{ $scheme }}}
    periodSeconds: 1
    timeoutSeconds: 5
    failureThreshold: 120
  readinessProbe:
    httpGet: {path: /ready, port: http, scheme: {{ $scheme }}}
    periodSeconds: 2
    timeoutSeconds: 5
    failureThreshold: 2
  livenessProbe:
    httpGet: {path: /health, port: http, scheme: {{ $scheme }}}
    periodSeconds: 10
    timeoutSeconds: 5
    failureThreshold: 3
    terminationGracePeriodSeconds: 10
  {{- end }}
  volumeMounts: {{- include "antiphon.mounts" . | nindent 4 }}
{{- end -}}

{{- define "antiphon.envoy" -}}
- name: envoy
  image: {{ .Values.envoy.image.repository }}:{{ .Values.envoy.image.tag }}
  imagePullPolicy: {{ .Values.envoy.image.pullPolicy }}
  args: [-c, /run/antiphon/envoy.yaml, --disable-hot-restart, --log-level, {{ dig "envoy" "log_level" "warning" .Values.settings }}]
  {{- with include "antiphon.envoyEnv" . | trim }}
  env: {{- . | nindent 4 }}
  {{- end }}
  ports:
    - {name: http, containerPort: 8080}
    {{- if eq .Values.shape "gateway" }}
    - {name: model-door, containerPort: 8090}
    {{- end }}
  securityContext: {{ include "antiphon.containerSecurity" . }}
  {{- with .Values.envoy.resources }}
  resources: {{- toYaml . | nindent 4 }}
  {{- end }}
  # The sidecar's own word, through Envoy.
  readinessProbe:
    httpGet: {path: /ready, port: http}
    periodSeconds: 2
    timeoutSeconds: 5
    failureThreshold: 2
  lifecycle:
    preStop:
      exec:
        command: [bash, /etc/antiphon/drain.sh, {{ .Values.drain.notice | quote }}, "9901", {{ .Values.drain.seconds | quote }}, /run/antiphon/leave]
  volumeMounts:
    - {name: settings, mountPath: /etc/antiphon, readOnly: true}
    - {name: run, mountPath: /run/antiphon}
    {{- if .Values.sidecarTls.secretName }}
    - {name: tls, mountPath: /etc/antiphon-tls, readOnly: true}
    {{- end }}
    {{- with .Values.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}
