{{- define "daskfleet.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* The cluster's name: that of the release, since KubeCluster(name=RELEASE) finds it so. All names begin with it. */}}
{{- define "daskfleet.cluster" -}}
{{- $name := default .Release.Name .Values.fullnameOverride -}}
{{- if or (gt (len $name) 53) (not (regexMatch "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$" $name)) -}}
{{- fail (printf "%q cannot name a Dask cluster: at most 53 lower-case letters, digits and '-'. Choose another release name or set fullnameOverride" $name) -}}
{{- end -}}
{{- $name -}}
{{- end -}}

{{/* Both take a dict of root, component and perhaps group (the worker group's full name). */}}
{{- define "daskfleet.selectorLabels" -}}
app: {{ include "daskfleet.name" .root }}
release: {{ .root.Release.Name | quote }}
component: {{ .component }}
{{- with .group }}
dask.org/workergroup-name: {{ . }}
{{- end }}
{{- end -}}

{{- define "daskfleet.labels" -}}
{{ include "daskfleet.selectorLabels" . }}
chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
heritage: {{ .root.Release.Service }}
dask.org/cluster-name: {{ include "daskfleet.cluster" .root }}
dask.org/component: {{ .component }}
{{- end -}}

{{/* Of pods: without the chart's version, so that another version of the chart alone restarts nothing. */}}
{{- define "daskfleet.podLabels" -}}
{{ include "daskfleet.selectorLabels" . }}
dask.org/cluster-name: {{ include "daskfleet.cluster" .root }}
dask.org/component: {{ .component }}
sidecar.istio.io/inject: "false"
{{- end -}}

{{- define "daskfleet.image" -}}
{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end -}}

{{- define "daskfleet.tokenSecret" -}}
{{- .Values.token.existingSecret | default (printf "%s-token" (include "daskfleet.cluster" .)) -}}
{{- end -}}

{{- define "daskfleet.tlsSecret" -}}
{{- .Values.tls.existingSecret | default (printf "%s-tls" (include "daskfleet.cluster" .)) -}}
{{- end -}}

{{/* Where Jupyter and workers find the scheduler. */}}
{{- define "daskfleet.schedulerAddress" -}}
{{- if .Values.worker.custom_scheduler_url -}}
{{- .Values.worker.custom_scheduler_url -}}
{{- else -}}
{{- printf "%s://%s-scheduler.%s.svc:%d" (ternary "tls" "tcp" .Values.tls.enabled) (include "daskfleet.cluster" .) .Release.Namespace (int .Values.scheduler.servicePort) -}}
{{- end -}}
{{- end -}}

{{/* The environment of a container: what the user gives, then ours that the user does not give. */}}
{{- define "daskfleet.env" -}}
{{- $given := .given | default list -}}
{{- $names := list -}}
{{- range $given -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- $all := $given -}}
{{- range .ours -}}
{{- if not (has .name $names) -}}
{{- $all = append $all . -}}
{{- end -}}
{{- end -}}
{{- if .root.Values.token.enabled -}}
{{- if not (has "DASKFLEET_TOKEN" $names) -}}
{{- $ref := dict "name" (include "daskfleet.tokenSecret" .root) "key" "token" -}}
{{- $all = append $all (dict "name" "DASKFLEET_TOKEN" "valueFrom" (dict "secretKeyRef" $ref)) -}}
{{- end -}}
{{- end -}}
{{- if .root.Values.tls.enabled -}}
{{- $files := dict "CA_FILE" "ca.crt" -}}
{{- range list "SCHEDULER" "WORKER" "CLIENT" -}}
{{- $_ := set $files (printf "%s__CERT" .) "tls.crt" -}}
{{- $_ := set $files (printf "%s__KEY" .) "tls.key" -}}
{{- end -}}
{{- range $variable, $file := $files -}}
{{- $all = append $all (dict "name" (printf "DASK_DISTRIBUTED__COMM__TLS__%s" $variable) "value" (printf "/etc/daskfleet/tls/%s" $file)) -}}
{{- end -}}
{{- $all = append $all (dict "name" "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION" "value" "true") -}}
{{- end -}}
{{- toYaml $all -}}
{{- end -}}

{{/* Volumes and mounts: what the user gives as `mounts`, and what TLS needs. Dicts of root, mounts and more (ours). */}}
{{- define "daskfleet.volumes" -}}
{{- $all := concat ((.mounts).volumes | default list) (.more | default list) -}}
{{- if .root.Values.tls.enabled -}}
{{- $all = append $all (dict "name" "tls" "secret" (dict "secretName" (include "daskfleet.tlsSecret" .root))) -}}
{{- end -}}
{{- with $all -}}
volumes:
  {{- toYaml . | nindent 2 }}
{{- end -}}
{{- end -}}

{{- define "daskfleet.volumeMounts" -}}
{{- $all := concat ((.mounts).volumeMounts | default list) (.more | default list) -}}
{{- if .root.Values.tls.enabled -}}
{{- $all = append $all (dict "name" "tls" "mountPath" "/etc/daskfleet/tls" "readOnly" true) -}}
{{- end -}}
{{- with $all -}}
volumeMounts:
  {{- toYaml . | nindent 2 }}
{{- end -}}
{{- end -}}

{{/* What every container has of its values. */}}
{{- define "daskfleet.container" -}}
{{- with .values.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.livenessProbe }}
livenessProbe:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.readinessProbe }}
readinessProbe:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.containerSecurityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* What every pod has of its values. */}}
{{- define "daskfleet.pod" -}}
{{- with .values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.securityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* A dict of root, name (the object's and its Service's), component, port (the Service's, by name) and ingress. */}}
{{- define "daskfleet.ingress" -}}
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: {{ .name }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "daskfleet.labels" . | nindent 4 }}
  {{- with .ingress.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  {{- with .ingress.ingressClassName }}
  ingressClassName: {{ . }}
  {{- end }}
  rules:
    - host: {{ .ingress.hostname | quote }}
      http:
        paths:
          - path: /
            pathType: {{ .ingress.pathType }}
            backend:
              service:
                name: {{ .name }}
                port: {name: {{ .port }}}
  {{- if .ingress.tls }}
  tls:
    - hosts: [{{ .ingress.hostname | quote }}]
      secretName: {{ .ingress.secretName }}
  {{- end }}
{{- end -}}

{{/* The hash of Jupyter's password; empty when there is none, and for the one that everybody knows. */}}
{{- define "daskfleet.passwordHash" -}}
{{- if ne .Values.jupyter.password "sha1:aae8550c0a44:9507d45e087d5ee481a5ce9f4f16f37a0867318c" -}}
{{- .Values.jupyter.password -}}
{{- end -}}
{{- end -}}

{{- define "daskfleet.jupyterAccount" -}}
{{- .Values.jupyter.serviceAccountName | default (ternary (printf "%s-jupyter" (include "daskfleet.cluster" .)) "default" .Values.jupyter.rbac) -}}
{{- end -}}
