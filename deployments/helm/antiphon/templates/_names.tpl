{{/* Names and labels. */}}

{{- define "antiphon.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 46 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 46 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 46 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What selects pods: (list . COMPONENT). Antiphon's pods are `server`, the gateway's Envoys `envoy`. */}}
{{- define "antiphon.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ default $root.Chart.Name $root.Values.nameOverride }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "antiphon.labels" -}}
{{- $root := index . 0 -}}
{{ include "antiphon.selector" . }}
app.kubernetes.io/version: {{ include "antiphon.tag" $root | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
{{- end -}}

{{- define "antiphon.tag" -}}
{{- default .Chart.AppVersion .Values.image.tag -}}
{{- end -}}

{{- define "antiphon.image" -}}
{{ .Values.image.repository }}:{{ include "antiphon.tag" . }}
{{- end -}}

{{/* The component that clients connect to. */}}
{{- define "antiphon.public" -}}
{{ ternary "envoy" "server" (eq .Values.shape "gateway") }}
{{- end -}}

{{/* The host name of Antiphon's ports in the shape gateway, which is the name in its certificate. */}}
{{- define "antiphon.extprocHost" -}}
{{ include "antiphon.fullname" . }}-extproc.{{ .Release.Namespace }}.svc
{{- end -}}
