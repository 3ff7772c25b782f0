#!/usr/bin/env bash
# Makes .venv from requirements.lock: installs Debian packages that are missing, uv where it is missing, then the locked environment.
set -euo pipefail
cd "$(dirname "$0")/.."
# uv would install into an environment that the shell has active.
unset VIRTUAL_ENV CONDA_PREFIX UV_PYTHON UV_SYSTEM_PYTHON
export PATH="$PATH:/usr/sbin:/sbin" # `su` may leave them out

UV_VERSION=0.13.9
CACHE=${OLIVINE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}}/olivine
# For the environment, then for the embedded cluster's node.
PACKAGES="python3 python3-venv ca-certificates git make \
  containerd runc containernetworking-plugins iptables conntrack iproute2 util-linux debootstrap"

if command -v dpkg-query >/dev/null && command -v apt-get >/dev/null; then
  missing=()
  for package in $PACKAGES; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
  done
  if [ ${#missing[@]} -gt 0 ]; then
    [ "$(id -u)" = 0 ] || { echo "missing Debian packages, install them as root: ${missing[*]}" >&2; exit 1; }
    echo "installing Debian packages: ${missing[*]}"
    apt-get -o DPkg::Lock::Timeout=600 update -qq
    DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    # The embedded cluster runs a containerd of its own: the package's service would only take memory.
    if [[ " ${missing[*]} " == *" containerd "* && -d /run/systemd/system ]]; then systemctl disable --quiet --now containerd; fi
  fi
fi

UV=$(command -v uv || true)
if [ -z "$UV" ]; then
  UV=$CACHE/uv-$UV_VERSION/bin/uv
  [ -x "$UV" ] || { /usr/bin/python3 -m venv "$CACHE/uv-$UV_VERSION" && "$CACHE/uv-$UV_VERSION/bin/pip" install -q "uv==$UV_VERSION"; }
fi

# The system's interpreter: trainer pods mount this environment and have the same one at the same place.
[ -x .venv/bin/python ] || "$UV" venv -q --python /usr/bin/python3 .venv
echo "installing the locked environment into .venv (about 2 minutes the first time)"
# Bytecode now, once: pods mount the environment read-only and would compile torch anew each.
# Two packages exist as sources only: built last, by the locked setuptools and setuptools-scm that are installed by then.
SOURCES='^(rouge-score|seqeval)=='
"$UV" pip sync -q --python .venv/bin/python --compile-bytecode --require-hashes --no-build \
  <(awk -v sources="$SOURCES" '/^[a-z]/ { built = $0 ~ sources } !built' requirements.lock)
"$UV" pip install -q --python .venv/bin/python --compile-bytecode --require-hashes --no-deps --no-build-isolation \
  -r <(awk -v sources="$SOURCES" '/^[a-z]/ { built = $0 ~ sources } built' requirements.lock)
"$UV" pip install -q --python .venv/bin/python --no-deps --no-build-isolation -e .
touch .venv/.complete
