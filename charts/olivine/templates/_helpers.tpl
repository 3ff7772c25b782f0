{{- define "olivine.labels" -}}
app.kubernetes.io/name: olivine
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "olivine.selector" -}}
app.kubernetes.io/name: olivine
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "olivine.image" -}}
{{ printf "%s:%s" .image.repository (.image.tag | default .version) }}
{{- end }}

{{/* The operator's settings: operator/olivine_operator/plan/settings.py reads them. */}}
{{- define "olivine.settings" -}}
{{- $trainer := dict
  "image" (include "olivine.image" (dict "image" .Values.trainer.image "version" .Chart.AppVersion))
  "imagePullPolicy" .Values.trainer.image.pullPolicy
  "podDefaults" .Values.trainer.podDefaults
  "sharedMemory" .Values.trainer.sharedMemory -}}
{{- dict
  "namespace" .Release.Namespace
  "trainer" $trainer
  "policy" .Values.policy
  "policies" .Values.policies
  "statusIntervalSeconds" .Values.statusIntervalSeconds
  "resyncSeconds" .Values.resyncSeconds
  "lostPodTimeoutSeconds" .Values.lostPods.timeoutSeconds
  "removeLostPods" .Values.lostPods.remove
  "workers" .Values.workers
  "logLevel" .Values.logLevel | toPrettyJson -}}
{{- end }}
