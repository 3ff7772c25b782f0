"""Every name that two sides must agree on: API group, labels, annotations, mounted files, environment variables."""

from typing import Final

GROUP: Final = "olivine.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
FINETUNEJOB_KIND: Final = "FineTuneJob"
FINETUNEJOB_PLURAL: Final = "finetunejobs"
ADAPTERBUNDLE_KIND: Final = "AdapterBundle"
ADAPTERBUNDLE_PLURAL: Final = "adapterbundles"

# Labels on children.
LABEL_JOB: Final = "olivine.dev/job"
LABEL_JOB_UID: Final = "olivine.dev/job-uid"
LABEL_BUNDLE: Final = "olivine.dev/bundle"  # on children of an AdapterBundle; their LABEL_JOB is BUNDLE_PREFIX and the name
BUNDLE_PREFIX: Final = "bundle."  # no FineTuneJob's name has a dot
LABEL_MANAGED_BY: Final = "app.kubernetes.io/managed-by"
MANAGED_BY: Final = "olivine"

# Annotation on the child Job: digest of the specification that it was made from.
ANNOTATION_SPEC_DIGEST: Final = "olivine.dev/spec-digest"

# Annotation on an AdapterBundle with updatePolicy Manual: a new value asks for an update.
ANNOTATION_UPDATE: Final = "olivine.dev/update"

# The job's ConfigMap, mounted as a folder into every trainer pod.
CONFIG_DIR: Final = "/etc/olivine/job"
CONFIG_SPEC: Final = "spec.json"  # FineTuneJobSpec, defaults filled in; of a bundle's build, a BundleBuild
CONFIG_IDENTITY: Final = "identity.json"  # JobIdentity
CONFIG_CA: Final = "status-ca.crt"  # trust anchor of the operator's status endpoint
CONFIG_WORLD: Final = "world.json"  # World: how many pods and processes there are
CONFIG_OVERRIDES: Final = "overrides.json"  # Overrides: a smaller micro-batch after a pod ran out of memory; often absent

# Projected ServiceAccount token for the status endpoint.
TOKEN_DIR: Final = "/var/run/secrets/olivine"
TOKEN_FILE: Final = "token"
TOKEN_AUDIENCE: Final = "olivine-status"

# Scratch space: the only writable folders of a trainer pod.
SCRATCH_DIR: Final = "/scratch"
TERMINATION_LOG: Final = "/dev/termination-log"
TERMINATION_LOG_LIMIT: Final = 4096  # bytes; kubelet truncates the rest

# The Python files that the specification names, as <folder>/<ConfigMap>/<key>.
PLUGINS_DIR: Final = "/etc/olivine/plugins"

# Volumes of the user's: claims that pvc:// URIs name, each in a folder of its name, and the shared model cache.
CLAIMS_DIR: Final = "/mnt/claims"
MODEL_CACHE_DIR: Final = "/mnt/model-cache"

# Several pods meet at the first one.
RENDEZVOUS_PORT: Final = 29500

# Environment of trainer pods.
ENV_LEADER_HOST: Final = "OLIVINE_LEADER_HOST"  # DNS name of the pod with index 0; absent with one pod
ENV_STATUS_URL: Final = "OLIVINE_STATUS_URL"
ENV_POD_NAME: Final = "OLIVINE_POD_NAME"
ENV_HUB_OFFLINE: Final = "OLIVINE_HUB_OFFLINE"  # the user's HF_HUB_OFFLINE, as workers find it: theirs shields the libraries
ENV_CPU_LIMIT: Final = "OLIVINE_CPU_LIMIT"  # whole CPUs, rounded up by the kubelet
# Credentials of one source are its Secret's keys behind a prefix: OLIVINE_STORAGE_AWS_ACCESS_KEY_ID, …
ENV_SECRET_PREFIXES: Final = {
    "storage": "OLIVINE_STORAGE_",
    "model": "OLIVINE_MODEL_",
    "train": "OLIVINE_TRAIN_",
    "validation": "OLIVINE_VALIDATION_",
    "test": "OLIVINE_TEST_",
    "publish": "OLIVINE_PUBLISH_",
}
# Of an adapter of a bundle: the number is BuildAdapter.credentials.
ENV_ADAPTER_PREFIX: Final = "OLIVINE_ADAPTER_{number}_"

# Status endpoint: POST {ENV_STATUS_URL}{STATUS_PATH} with a Snapshot.
STATUS_PATH: Final = "/v1/namespaces/{namespace}/finetunejobs/{name}/snapshot"
# The same of an AdapterBundle, with a BuildSnapshot.
BUNDLE_STATUS_PATH: Final = "/v1/namespaces/{namespace}/adapterbundles/{name}/snapshot"
STATUS_BODY_LIMIT: Final = 64 * 1024  # bytes
