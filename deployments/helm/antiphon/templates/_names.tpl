{{/* Names, labels and images. */}}

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

{{/* The labels that select pods. Arguments: (list . COMPONENT), `server` for Antiphon's pods, `envoy` for Envoys of shape gateway. */}}
{{- define "antiphon.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ default $root.Chart.Name $root.Values.nameOverride }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* A pod's labels, without the chart's version: a new chart alone must not replace pods. */}}
{{- define "antiphon.podLabels" -}}
{{- $root := index . 0 -}}
{{ include "antiphon.selector" . }}
app.kubernetes.io/version: {{ include "antiphon.version" $root | quote }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "antiphon.labels" -}}
{{- $root := index . 0 -}}
{{ include "antiphon.podLabels" . }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63 }}
{{- end -}}

{{/* The image's tag or digest, cut to a valid label. */}}
{{- define "antiphon.version" -}}
{{- $tag := regexReplaceAll "@.*" .Values.image.tag "" -}}
{{- $version := $tag | default .Values.image.digest | default .Chart.AppVersion -}}
{{- regexReplaceAll "[^A-Za-z0-9._-]" $version "-" | trunc 63 | trimAll "._-" -}}
{{- end -}}

{{/* An image's full name, by digest if it has one. Arguments: (list . IMAGE TAG), TAG being the default. */}}
{{- define "antiphon.imageOf" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- with dig "imageRegistry" "" $root.Values.global }}{{ trimSuffix "/" . }}/{{ end -}}
{{- $image.repository -}}
{{- with $image.tag | default (ternary "" (index . 2) (ne $image.digest "")) }}:{{ . }}{{ end -}}
{{- with $image.digest }}@{{ . }}{{ end -}}
{{- end -}}

{{- define "antiphon.image" -}}
{{- include "antiphon.imageOf" (list . .Values.image .Chart.AppVersion) -}}
{{- end -}}

{{- define "antiphon.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (ternary (include "antiphon.fullname" .) "default" .Values.serviceAccount.create) -}}
{{- end -}}

{{/* The component that clients connect to. */}}
{{- define "antiphon.public" -}}
{{ ternary "envoy" "server" (eq .Values.shape "gateway") }}
{{- end -}}

{{/* The host name of Antiphon's ports in shape gateway. It is the name in its certificate. */}}
{{- define "antiphon.extprocHost" -}}
{{ include "antiphon.fullname" . }}-extproc.{{ .Release.Namespace }}.svc
{{- end -}}

{{/* The number of Antiphon's pods without autoscaling. */}}
{{- define "antiphon.replicas" -}}
{{- kindIs "invalid" .Values.replicaCount | ternary .Values.replicas .Values.replicaCount -}}
{{- end -}}

{{/* The present number of pods of a scaled Deployment, as a line of its spec. Without it Kubernetes would assume one pod and end the
others. Arguments: (list . DEPLOYMENT). */}}
{{- define "antiphon.scaledReplicas" -}}
{{- $root := index . 0 -}}
{{- with lookup "apps/v1" "Deployment" $root.Release.Namespace (index . 1) -}}
replicas: {{ .spec.replicas }}
{{- end -}}
{{- end -}}
