#!/bin/sh
# Installs what the tests set namespaces up with and look at the kernel with. Does nothing when all is there.
set -eu
packages=
need() { command -v "$1" >/dev/null 2>&1 || packages="$packages $2"; }
PATH=$PATH:/usr/sbin:/sbin
need ip iproute2
need bridge iproute2
need nft nftables
need gcc gcc
[ -e /usr/include/stdlib.h ] || packages="$packages libc6-dev" # the race detector links with it
need iptables-nft iptables
[ -x /usr/lib/cni/bridge ] || packages="$packages containernetworking-plugins"
need containerd containerd
need runc runc
need ping iputils-ping
need sysctl procps
need iperf3 iperf3
[ -n "$packages" ] || exit 0
if ! command -v apt-get >/dev/null 2>&1; then
	echo "missing on this machine (Debian packages):$packages" >&2
	exit 0 # the tests that need them say so
fi
set -- -o Acquire::Retries=3 -o DPkg::Lock::Timeout=300
apt-get "$@" update -qq
# shellcheck disable=SC2086 # a list of words
DEBIAN_FRONTEND=noninteractive apt-get "$@" install -y -qq --no-install-recommends $packages
