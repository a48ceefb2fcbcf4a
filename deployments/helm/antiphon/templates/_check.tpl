{{/* What the schema cannot say: values that contradict each other are refused with a sentence that says what to do. */}}

{{- define "antiphon.check" -}}
{{- $v := .Values -}}
{{- $settings := $v.settings -}}
{{- $postgresql := eq $v.state.kind "postgresql" -}}
{{- $several := or (gt (int $v.replicas) 1) (and (ne $v.autoscaling.kind "none") (gt (int $v.autoscaling.maxReplicas) 1)) -}}

{{- if and $several (not $postgresql) -}}
{{- fail (printf "More than one replica needs a database that all of them share. Set state.kind: postgresql, or replicas: 1 and autoscaling.kind: none; with state.kind: %s each replica would know its own responses alone." $v.state.kind) -}}
{{- end -}}
{{- if $postgresql -}}
{{- if not $v.secrets.stateUrl.name -}}
{{- fail "state.kind: postgresql needs the database's URL. Name the Secret that has it in secrets.stateUrl.name." -}}
{{- end -}}
{{- if not (and $v.secrets.ownerKey.name $v.secrets.sealingKeys.name) -}}
{{- fail "state.kind: postgresql needs keys that all replicas share. Make them (openssl rand -hex 32, once for each), put them into a Secret and name it in secrets.ownerKey.name and secrets.sealingKeys.name." -}}
{{- end -}}
{{- if not (or (dig "blobs" "url" "" $settings) (eq (dig "files" "enabled" true $settings) false)) -}}
{{- fail "Pods keep the contents of files on their own disk, and lose them, unless they have a bucket. Set settings.blobs.url, or settings.files.enabled: false." -}}
{{- end -}}
{{- else if $v.secrets.stateUrl.name -}}
{{- fail (printf "secrets.stateUrl is given, but state.kind is %s. Set state.kind: postgresql." $v.state.kind) -}}
{{- end -}}

{{- if le (int $v.terminationGracePeriodSeconds) (add (int $v.drain.seconds) 4) -}}
{{- fail (printf "terminationGracePeriodSeconds (%d) must be at least 5 more than drain.seconds (%d): what is in flight would be killed while it may still finish." (int $v.terminationGracePeriodSeconds) (int $v.drain.seconds)) -}}
{{- end -}}
{{- if ge (int $v.drain.notice) (int $v.drain.seconds) -}}
{{- fail (printf "drain.notice (%d) must be less than drain.seconds (%d), which it is a part of." (int $v.drain.notice) (int $v.drain.seconds)) -}}
{{- end -}}

{{- if and (eq $v.shape "gateway") (not $v.secrets.sidecarSecret.name) -}}
{{- fail "shape: gateway needs the secret that Envoy shows Antiphon. Make one (openssl rand -hex 32), put it into a Secret and name it in secrets.sidecarSecret.name." -}}
{{- end -}}
{{- if and $v.sidecarTls.secretName (ne $v.shape "gateway") -}}
{{- fail (printf "sidecarTls is for shape: gateway; with shape: %s nothing of Antiphon's goes over TCP inside. Leave sidecarTls.secretName empty." $v.shape) -}}
{{- end -}}

{{- if not (or (dig "upstream" "url" "" $settings) (dig "upstreams" "" $settings)) -}}
{{- fail "No chat server is named. Set settings.upstream.url, for example http://vllm.models:8000/v1." -}}
{{- end -}}
{{- range $path, $instead := dict "listen" "service.port" "door" "shape" "data" "persistence" "workers" "replicas" "sidecar" "shape" "metrics" "metrics" "envoy.admin" "nothing: the drain needs it" "state.url" "secrets.stateUrl" "state.direct_url" "secrets.stateDirectUrl" "state.migrate" "state.migrate" "timeouts.drain" "drain.seconds" "timeouts.notice" "drain.notice" "owner.key" "secrets.ownerKey" "sealing.keys" "secrets.sealingKeys" "upstream.api_key" "secrets.upstreamKey" "blobs.key_id" "secrets.blobsKeyId" "blobs.secret" "secrets.blobsSecret" "owner.api_keys" "extraEnv (ANTIPHON_OWNER__API_KEYS)" "embeddings.api_key" "extraEnv (ANTIPHON_EMBEDDINGS__API_KEY)" "web_search.api_key" "extraEnv (ANTIPHON_WEB_SEARCH__API_KEY)" -}}
{{- $names := splitList "." $path -}}
{{- $section := $settings -}}
{{- if eq (len $names) 2 -}}{{- $section = get $settings (first $names) -}}{{- end -}}
{{- if and (kindIs "map" $section) (hasKey $section (last $names)) -}}
{{- fail (printf "settings.%s is set by the chart, or is a secret that does not belong into a ConfigMap. Take it out; instead there is %s." $path $instead) -}}
{{- end -}}
{{- end -}}
{{- range $name, $upstream := dig "upstreams" (dict) $settings -}}
{{- if hasKey $upstream "api_key" -}}
{{- fail (printf "settings.upstreams.%s.api_key is a secret and does not belong into a ConfigMap. Name a Secret in secrets.upstreamKeys.%s." $name $name) -}}
{{- end -}}
{{- if and (eq (dig "auth" "" $upstream) "inject") (not (dig $name "name" "" $v.secrets.upstreamKeys)) -}}
{{- fail (printf "settings.upstreams.%s.auth is inject, but there is no key. Name a Secret in secrets.upstreamKeys.%s." $name $name) -}}
{{- end -}}
{{- end -}}
{{- range $name, $_ := $v.secrets.upstreamKeys -}}
{{- if not (hasKey (dig "upstreams" (dict) $settings) $name) -}}
{{- fail (printf "secrets.upstreamKeys.%s is the key of no upstream. The names of settings.upstreams are: %s." $name (keys (dig "upstreams" (dict) $settings) | sortAlpha | join ", ")) -}}
{{- end -}}
{{- end -}}
{{- if and (eq (dig "upstream" "auth" "" $settings) "inject") (not $v.secrets.upstreamKey.name) -}}
{{- fail "settings.upstream.auth is inject, but there is no key. Name the Secret that has it in secrets.upstreamKey.name." -}}
{{- end -}}

{{- if and (ne $v.autoscaling.kind "none") (gt (int $v.autoscaling.minReplicas) (int $v.autoscaling.maxReplicas)) -}}
{{- fail (printf "autoscaling.minReplicas (%d) must not be more than autoscaling.maxReplicas (%d)." (int $v.autoscaling.minReplicas) (int $v.autoscaling.maxReplicas)) -}}
{{- end -}}
{{- if and (eq $v.autoscaling.kind "keda") (not $v.autoscaling.keda.prometheus) -}}
{{- fail "autoscaling.kind: keda needs the Prometheus that KEDA asks. Set autoscaling.keda.prometheus, for example http://prometheus.monitoring:9090." -}}
{{- end -}}
{{- end -}}
