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

{{/* What selects pods: (list . COMPONENT). Antiphon's pods are `server`, the gateway's Envoys `envoy`. */}}
{{- define "antiphon.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ default $root.Chart.Name $root.Values.nameOverride }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* Of a pod; not the chart's version, which alone replaces none. */}}
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

{{/* The image's tag, or else its digest, as a label may be. */}}
{{- define "antiphon.version" -}}
{{- $tag := regexReplaceAll "@.*" .Values.image.tag "" -}}
{{- $version := $tag | default .Values.image.digest | default .Chart.AppVersion -}}
{{- regexReplaceAll "[^A-Za-z0-9._-]" $version "-" | trunc 63 | trimAll "._-" -}}
{{- end -}}

{{/* (list . IMAGE TAG): the image by its digest where there is one, else by its tag, or the given one. */}}
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

{{/* The host name of Antiphon's ports in the shape gateway, which is the name in its certificate. */}}
{{- define "antiphon.extprocHost" -}}
{{ include "antiphon.fullname" . }}-extproc.{{ .Release.Namespace }}.svc
{{- end -}}

{{/* Pods of Antiphon that are wanted, where nothing scales them. */}}
{{- define "antiphon.replicas" -}}
{{- kindIs "invalid" .Values.replicaCount | ternary .Values.replicas .Values.replicaCount -}}
{{- end -}}

{{/* (list . DEPLOYMENT): how many pods something that scales has made of it by now, as a line of its spec. Kubernetes takes a Deployment
that does not say for one of one pod, and would end all others. */}}
{{- define "antiphon.scaledReplicas" -}}
{{- $root := index . 0 -}}
{{- with lookup "apps/v1" "Deployment" $root.Release.Namespace (index . 1) -}}
replicas: {{ .spec.replicas }}
{{- end -}}
{{- end -}}
