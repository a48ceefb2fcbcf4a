{{/* Refuses values that contradict each other, which the schema cannot express. Each message names the value to set. */}}

{{/* The first place in a value that matches a path; * matches any name. Empty if there is none. Arguments: (list VALUE PATH ABOVE). */}}
{{- define "antiphon.found" -}}
{{- $value := index . 0 -}}
{{- $path := index . 1 -}}
{{- $above := index . 2 -}}
{{- if not $path -}}
{{- join "." $above -}}
{{- else if kindIs "map" $value -}}
{{- $found := "" -}}
{{- range $name, $one := $value -}}
{{- if and (not $found) (has (first $path) (list "*" $name)) -}}
{{- $found = include "antiphon.found" (list $one (rest $path) (append $above $name)) -}}
{{- end -}}
{{- end -}}
{{- $found -}}
{{- end -}}
{{- end -}}

{{- define "antiphon.check" -}}
{{- $v := .Values -}}
{{- $settings := $v.settings -}}
{{- $postgresql := eq $v.state.kind "postgresql" -}}
{{- $several := or (gt (int (include "antiphon.replicas" .)) 1) (and (ne $v.autoscaling.kind "none") (gt (int $v.autoscaling.maxReplicas) 1)) -}}

{{- if and $several (not $postgresql) -}}
{{- fail (printf "Several replicas need a shared database, but with state.kind: %s each replica would know only its own responses. Set state.kind: postgresql. Or set replicas: 1 and autoscaling.kind: none." $v.state.kind) -}}
{{- end -}}
{{- if $postgresql -}}
{{- if not (or $v.secrets.stateUrl.name $v.state.database.secretName) -}}
{{- fail "state.kind: postgresql needs the database's URL. Set secrets.stateUrl.name to the Secret with the URL, or state.database.secretName to the Secret with the URL's parts." -}}
{{- end -}}
{{- if and $v.secrets.stateUrl.name $v.state.database.secretName -}}
{{- fail "Both secrets.stateUrl and state.database name a database. Remove one of them." -}}
{{- end -}}
{{- if not (and $v.secrets.ownerKey.name $v.secrets.sealingKeys.name) -}}
{{- fail "state.kind: postgresql needs keys that all replicas share. Create two keys (openssl rand -hex 32, once for each), put them into a Secret, and set secrets.ownerKey.name and secrets.sealingKeys.name to the Secret's name." -}}
{{- end -}}
{{- if and (or (dig "admin" "api" false $settings) (dig "console" "enabled" false $settings)) (not $v.secrets.adminToken.name) -}}
{{- fail "With state.kind: postgresql the admin API and the console need an admin token that all replicas share. Create a token (openssl rand -hex 32), put it into a Secret, and set secrets.adminToken.name to the Secret's name." -}}
{{- end -}}
{{- if not (or (dig "blobs" "url" "" $settings) (eq (dig "files" "enabled" true $settings) false)) -}}
{{- fail "Without a bucket, each pod stores the contents of files on its own disk and loses them when it ends. Set settings.blobs.url, or settings.files.enabled: false." -}}
{{- end -}}
{{- else if or $v.secrets.stateUrl.name $v.state.database.secretName -}}
{{- fail (printf "secrets.stateUrl or state.database names a database, but state.kind is %s. Set state.kind: postgresql." $v.state.kind) -}}
{{- end -}}

{{- if le (int $v.terminationGracePeriodSeconds) (add (int $v.drain.seconds) 4) -}}
{{- fail (printf "terminationGracePeriodSeconds (%d) must be at least 5 more than drain.seconds (%d). Otherwise Kubernetes would kill responses that can still finish." (int $v.terminationGracePeriodSeconds) (int $v.drain.seconds)) -}}
{{- end -}}
{{- if ge (int $v.drain.notice) (int $v.drain.seconds) -}}
{{- fail (printf "drain.notice (%d) must be less than drain.seconds (%d), because drain.seconds includes the notice." (int $v.drain.notice) (int $v.drain.seconds)) -}}
{{- end -}}

{{- if and (eq $v.shape "gateway") (not $v.secrets.sidecarSecret.name) -}}
{{- fail "shape: gateway needs the secret that Envoy sends to Antiphon. Create one (openssl rand -hex 32), put it into a Kubernetes Secret, and set secrets.sidecarSecret.name to that Secret's name." -}}
{{- end -}}
{{- if and $v.sidecarTls.secretName (ne $v.shape "gateway") -}}
{{- fail (printf "sidecarTls is for shape: gateway; with shape: %s Envoy and Antiphon do not use TCP. Leave sidecarTls.secretName empty." $v.shape) -}}
{{- end -}}

{{- if not (or (dig "upstream" "url" "" $settings) (dig "upstreams" "" $settings)) -}}
{{- fail "The settings name no chat server. Set settings.upstream.url, for example http://vllm.models:8000/v1." -}}
{{- end -}}
{{- range $path, $instead := dict "listen" "service.port" "console.listen" "nothing (the Service has the port)" "door" "shape" "data" "persistence" "workers" "replicas" "sidecar" "shape" "metrics" "metrics" "envoy.admin" "nothing (the drain needs it)" "envoy.metrics" "nothing (the probe needs it)" "state.migrate" "state.migrate" "timeouts.drain" "drain.seconds" "timeouts.notice" "drain.notice" -}}
{{- if include "antiphon.found" (list $settings (splitList "." $path) list) -}}
{{- fail (printf "The chart sets settings.%s itself. Remove this setting and set %s instead." $path $instead) -}}
{{- end -}}
{{- end -}}
{{- $instead := dict "state.url" "secrets.stateUrl" "state.direct_url" "secrets.stateDirectUrl" "owner.key" "secrets.ownerKey" "owner.api_keys" "secrets.apiKeys" "owner.keys" "secrets.ownerKeys" "owner.keys.*.keys" "secrets.ownerKeys" "sealing.keys" "secrets.sealingKeys" "admin.token" "secrets.adminToken" "upstream.api_key" "secrets.upstreamKey" "upstreams.*.api_key" "secrets.upstreamKeys" "blobs.key_id" "secrets.blobsKeyId" "blobs.secret" "secrets.blobsSecret" "embeddings.api_key" "secrets.embeddingsKey" "web_search.api_key" "secrets.webSearchKey" "mcp.connectors.*.headers" "secrets.connectors" "tracing.headers" "secrets.tracingHeaders" -}}
{{/* An owner may be a list of keys, which has no field of its own in the list of secrets. */}}
{{- range $path := append (compact (.Files.Lines "files/secrets.txt")) "owner.keys" -}}
{{- with include "antiphon.found" (list $settings (splitList "." $path) list) -}}
{{- fail (printf "settings.%s is a secret and does not belong in a ConfigMap. Remove it from the settings, put it into a Secret, and name that Secret in %s." . (get $instead $path | default "extraEnv")) -}}
{{- end -}}
{{- end -}}
{{- range $name, $upstream := dig "upstreams" (dict) $settings -}}
{{- if and (eq (dig "auth" "" $upstream) "inject") (not (dig $name "name" "" $v.secrets.upstreamKeys)) -}}
{{- fail (printf "settings.upstreams.%s.auth is inject, but no Secret has the key. Name a Secret in secrets.upstreamKeys.%s." $name $name) -}}
{{- end -}}
{{- end -}}
{{- range $name, $_ := $v.secrets.upstreamKeys -}}
{{- if not (hasKey (dig "upstreams" (dict) $settings) $name) -}}
{{- fail (printf "secrets.upstreamKeys.%s belongs to no upstream. settings.upstreams has these names: %s." $name (keys (dig "upstreams" (dict) $settings) | sortAlpha | join ", ")) -}}
{{- end -}}
{{- end -}}
{{- if and (eq (dig "upstream" "auth" "" $settings) "inject") (not $v.secrets.upstreamKey.name) -}}
{{- fail "settings.upstream.auth is inject, but no Secret has the key. Set secrets.upstreamKey.name to the Secret with the key." -}}
{{- end -}}

{{- if and (ne $v.autoscaling.kind "none") (gt (int $v.autoscaling.minReplicas) (int $v.autoscaling.maxReplicas)) -}}
{{- fail (printf "autoscaling.minReplicas (%d) must not be more than autoscaling.maxReplicas (%d)." (int $v.autoscaling.minReplicas) (int $v.autoscaling.maxReplicas)) -}}
{{- end -}}
{{- if and $v.ingress.enabled (not $v.ingress.hosts) -}}
{{- fail "ingress.enabled needs a host. Set ingress.hosts, for example [{host: responses.example}]." -}}
{{- end -}}
{{- if and $v.httpRoute.enabled (not $v.httpRoute.parentRefs) -}}
{{- fail "httpRoute.enabled needs a Gateway. Name it in httpRoute.parentRefs, for example [{name: public, namespace: gateways}]." -}}
{{- end -}}
{{- if and $v.service.loadBalancerClass (ne $v.service.type "LoadBalancer") -}}
{{- fail "service.loadBalancerClass is for service.type: LoadBalancer." -}}
{{- end -}}
{{- if and (eq $v.autoscaling.kind "keda") (not $v.autoscaling.keda.prometheus) -}}
{{- fail "autoscaling.kind: keda needs a Prometheus server. Set autoscaling.keda.prometheus, for example http://prometheus.monitoring:9090." -}}
{{- end -}}
{{- end -}}
