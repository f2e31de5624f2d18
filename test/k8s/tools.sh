#!/bin/sh
# Installs what the tests here need besides test/tools.sh (Debian). Does nothing when all is there.
set -eu
packages=
need() { command -v "$1" >/dev/null 2>&1 || packages="$packages $2"; }
PATH=$PATH:/usr/sbin:/sbin
# nodes
need containerd containerd
need runc runc
need nsenter util-linux
need pgrep procps
need iptables iptables
# images for Kubernetes' own tests
need busybox busybox-static
need dash dash
need curl curl
need dig bind9-dnsutils
need iperf iperf
need nc netcat-openbsd
need wget wget
need hostname hostname
[ -n "$packages" ] || exit 0
if ! command -v apt-get >/dev/null 2>&1; then
	echo "missing on this machine (Debian packages):$packages" >&2
	exit 0 # the tests that need them say so
fi
set -- -o Acquire::Retries=3 -o DPkg::Lock::Timeout=300
apt-get "$@" update -qq
# shellcheck disable=SC2086 # a list of words
DEBIAN_FRONTEND=noninteractive apt-get "$@" install -y -qq --no-install-recommends $packages
