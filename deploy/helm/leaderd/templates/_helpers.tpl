{{- define "leaderd.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "leaderd.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains (include "leaderd.name" .) .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "leaderd.name" .) | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "leaderd.selector" -}}
app.kubernetes.io/name: {{ include "leaderd.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "leaderd.labels" -}}
{{ include "leaderd.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "leaderd.account" -}}
{{- default (include "leaderd.fullname" .) .Values.serviceAccount.name -}}
{{- end -}}

{{- define "leaderd.image" -}}
{{- $repository := required "image.repository is not set: no image is published, so build deploy/Dockerfile and name yours" .Values.image.repository -}}
{{- if .Values.image.digest -}}
{{ $repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ $repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}

{{/* Where the metrics are served, as leaderd takes it. */}}
{{- define "leaderd.listen" -}}
{{- if contains ":" .Values.metrics.address -}}
[{{ .Values.metrics.address }}]:{{ .Values.metrics.port }}
{{- else -}}
{{ .Values.metrics.address }}:{{ .Values.metrics.port }}
{{- end -}}
{{- end -}}

{{/* Where the kubelet asks: on the loopback address unless another one is the only one that answers. */}}
{{- define "leaderd.probed" -}}
{{- if eq .Values.metrics.address "0.0.0.0" -}}127.0.0.1
{{- else if eq .Values.metrics.address "::" -}}::1
{{- else -}}{{ .Values.metrics.address }}
{{- end -}}
{{- end -}}

{{/* Root without its powers: Kubernetes gives capabilities to root only, as it sets no ambient ones. */}}
{{- define "leaderd.confined" -}}
privileged: false
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsUser: 0
runAsGroup: 0
capabilities:
  drop: [ALL]
  {{- with .add }}
  add: {{ toJson . }}
  {{- end }}
{{- end -}}

{{- define "leaderd.env" -}}
- name: NODE_NAME
  valueFrom:
    fieldRef:
      fieldPath: spec.nodeName
- name: POD_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
- name: LEADERD_LOG
  value: {{ .Values.log.level | quote }}
- name: LEADERD_WIREGUARD
  value: {{ eq .Values.wireguard.backend "kernel" | ternary "kernel" "leaderd" }}
- name: LEADERD_PROC_SYS
  value: /host/proc/sys
{{- end -}}

{{- define "leaderd.mounts" -}}
- name: state
  mountPath: /var/lib/leaderd
- name: run
  mountPath: /run/leaderd
- name: sysctls
  mountPath: /host/proc/sys/net
{{- if eq .Values.wireguard.backend "userspace" }}
- name: tun
  mountPath: /dev/net/tun
- name: wireguard
  mountPath: /var/run/wireguard
{{- end }}
{{- end -}}
