{{- define "operator.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "operator.selectorLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "operator.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "operator.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "operator.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "operator.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "operator.image" -}}
{{ .Values.image.name }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{/* What daskfleet-operator gets of kopfArgs, as JSON: {"namespaces": [...], "args": [...]}. */}}
{{- define "operator.kopfArgs" -}}
{{- $namespaces := list -}}
{{- $args := list -}}
{{- $expectsNamespace := false -}}
{{- range .Values.kopfArgs -}}
  {{- if $expectsNamespace -}}
    {{- $namespaces = append $namespaces . -}}
    {{- $expectsNamespace = false -}}
  {{- else if has . (list "--namespace" "-n") -}}
    {{- $expectsNamespace = true -}}
  {{- else if hasPrefix "--namespace=" . -}}
    {{- $namespaces = append $namespaces (trimPrefix "--namespace=" .) -}}
  {{- else if has . (list "--all-namespaces" "-A" "--standalone" "--log-format=plain" "--log-format=full") -}}
  {{- else if has . (list "--verbose" "-v" "--debug" "-d") -}}
    {{- $args = append $args "--log-level=DEBUG" -}}
  {{- else if has . (list "--quiet" "-q") -}}
    {{- $args = append $args "--log-level=WARNING" -}}
  {{- else if eq . "--log-format=json" -}}
    {{- $args = append $args "--log-json" -}}
  {{- else -}}
    {{- fail (printf "kopfArgs: %s is not known here. Known are --all-namespaces, --namespace=NAME, --verbose, --debug, --quiet, --log-format=json|plain and --standalone; what else can be set of the operator is set by extraEnv, for instance DASKFLEET_OPERATOR_CONCURRENCY" .) -}}
  {{- end -}}
{{- end -}}
{{- if $expectsNamespace -}}
  {{- fail "kopfArgs: --namespace is not followed by a name" -}}
{{- end -}}
{{- if and (not .Values.rbac.cluster) (not $namespaces) -}}
  {{- $namespaces = list .Release.Namespace -}}
{{- end -}}
{{- dict "namespaces" (uniq $namespaces) "args" (uniq $args) | toJson -}}
{{- end -}}

{{/* The rules of the Role or ClusterRole of this name in operator/deploy/20-rbac.yaml, as a JSON list. */}}
{{- define "operator.rules" -}}
{{- $rules := list -}}
{{- range regexSplit "(?m)^---$" (.root.Files.Get "files/rbac.yaml") -1 -}}
  {{- $document := fromYaml . -}}
  {{- if and (has $document.kind (list "Role" "ClusterRole")) (eq $document.metadata.name $.name) -}}
    {{- $rules = $document.rules -}}
  {{- end -}}
{{- end -}}
{{- if not $rules -}}
  {{- fail (printf "files/rbac.yaml has no rules named %s" .name) -}}
{{- end -}}
{{- $rules | toJson -}}
{{- end -}}

{{/* What makes an object of the hook that applies the resource definitions; it is gone once that has succeeded. */}}
{{- define "operator.hook" -}}
helm.sh/hook: pre-install,pre-upgrade
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}
