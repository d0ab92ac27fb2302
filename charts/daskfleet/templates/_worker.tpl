{{/* Threads and memory for dask-worker, from what the pod may use: "500m" processors are one thread, "2" are two. */}}
{{- define "daskfleet.threads" -}}
{{- $limits := .resources.limits | default dict -}}
{{- $cpu := toString (.threads_per_worker | default $limits.cpu | default (ternary .default_resources.cpu "" (gt (len $limits) 0))) -}}
{{- if hasSuffix "m" $cpu -}}
{{- divf (trimSuffix "m" $cpu) 1000 | ceil -}}
{{- else if $cpu -}}
{{- ceil (float64 $cpu) -}}
{{- end -}}
{{- end -}}

{{- define "daskfleet.memory" -}}
{{- $limits := .resources.limits | default dict -}}
{{- $limits.memory | default (ternary .default_resources.memory "" (gt (len $limits) 0)) -}}
{{- end -}}

{{/*
One group of workers: a dict of root, group (what it is called, "default" for the first) and values. The replicas of a
Deployment that has been handed over to an operator are the operator's: an upgrade leaves them as they are.
*/}}
{{- define "daskfleet.workers" -}}
{{- $cluster := include "daskfleet.cluster" .root -}}
{{- $name := printf "%s-worker" $cluster -}}
{{- if ne .group "default" -}}
{{- $name = printf "%s-worker-%s" $cluster .group -}}
{{- end -}}
{{- $labels := dict "root" .root "component" "worker" "group" (printf "%s-%s" $cluster .group) -}}
{{- $there := lookup "apps/v1" "Deployment" .root.Release.Namespace $name -}}
{{- $adopted := get (($there.metadata).annotations | default dict) "kubernetes.dask.org/adopted-by" -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ $name }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "daskfleet.labels" $labels | nindent 4 }}
spec:
  replicas: {{ ternary ($there.spec).replicas .values.replicas (ne $adopted "") }}
  {{- with .values.strategy }}
  strategy:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  selector:
    matchLabels:
      {{- include "daskfleet.selectorLabels" $labels | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "daskfleet.podLabels" $labels | nindent 8 }}
      {{- with .values.annotations }}
      annotations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
    spec:
      {{- include "daskfleet.pod" (dict "values" .values) | trim | nindent 6 }}
      serviceAccountName: {{ .values.serviceAccountName | default "default" }}
      automountServiceAccountToken: {{ ne .values.serviceAccountName "" }}
      terminationGracePeriodSeconds: {{ .values.terminationGracePeriodSeconds }}
      containers:
        - name: worker
          image: {{ include "daskfleet.image" (dict "root" .root "image" .values.image) | quote }}
          imagePullPolicy: {{ .values.image.pullPolicy }}
          args:
            - {{ .values.image.dask_worker }}
            - --name=$(DASK_WORKER_NAME)
            - --dashboard
            - --dashboard-address=:{{ .values.portDashboard }}
            {{- with include "daskfleet.threads" .values }}
            - --nthreads={{ . }}
            {{- end }}
            {{- with include "daskfleet.memory" .values }}
            - --memory-limit={{ . }}
            {{- end }}
            {{- with .values.port }}
            - --worker-port={{ . }}
            {{- end }}
            {{- with .values.extraArgs }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          env:
            {{- $podName := dict "fieldRef" (dict "fieldPath" "metadata.name") }}
            {{- $address := .values.custom_scheduler_url | default (include "daskfleet.schedulerAddress" .root) }}
            {{- $ours := list (dict "name" "DASK_WORKER_NAME" "valueFrom" $podName) (dict "name" "DASK_SCHEDULER_ADDRESS" "value" $address) }}
            {{- include "daskfleet.env" (dict "root" .root "given" .values.env "ours" $ours) | nindent 12 }}
          ports:
            - {name: http-dashboard, containerPort: {{ .values.portDashboard }}}
          {{- include "daskfleet.container" (dict "root" .root "values" .values) | trim | nindent 10 }}
          {{- include "daskfleet.volumeMounts" (dict "root" .root "mounts" .values.mounts) | nindent 10 }}
      {{- include "daskfleet.volumes" (dict "root" .root "mounts" .values.mounts) | nindent 6 }}
{{- end -}}
