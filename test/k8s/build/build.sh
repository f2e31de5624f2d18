#!/usr/bin/env bash
# Builds the programs of a Kubernetes cluster, and its network tests, from their Go modules into
# $WEFT_K8S_CACHE/bin. What is there in the wanted version is not built again, so a CI job that caches the
# directory skips nearly all of the time: 15 minutes cold on 2 cores, 9 of them for what every cluster needs.
#
#   build.sh          the control plane, kubelet, kube-proxy, kubectl, CoreDNS
#   build.sh e2e      also Kubernetes' own tests: e2e.test, ginkgo, agnhost
#
# The versions are those of kubernetes/go.mod and coredns/go.mod. k8s.io/kubernetes cannot be installed by
# `go install`: its go.mod points the staging modules at folders of its repository. Ours maps each of them to
# the module that is published for the same release.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bin=${WEFT_K8S_CACHE:-/var/cache/weft-k8s}/bin
jobs=${JOBS:-$(nproc)}
export CGO_ENABLED=0 GOFLAGS=-buildvcs=false
mkdir -p "$bin"

# required MODULE: its version in the go.mod of the working directory
required() { go mod edit -json | tr -d ' \t\n' | sed -E "s|.*\{\"Path\":\"$1\",\"Version\":\"([^\"]*)\".*|\1|"; }
built() { [[ -x $bin/$1 && -e $bin/.$1-$2 ]]; }
mark() { rm -f "$bin/.$1"-v*; touch "$bin/.$1-$2"; }

cd "$here/kubernetes"
version=$(required k8s.io/kubernetes)
ld="-s -w"
for p in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
	ld+=" -X $p.gitVersion=$version -X $p.gitMajor=1 -X $p.gitMinor=$(cut -d. -f2 <<<"$version")"
	ld+=" -X $p.gitTreeState=clean -X $p.buildDate=2026-01-01T00:00:00Z"
done
build() { # PACKAGE...: those that are not there yet, in one go
	local missing=() p
	for p; do built "${p##*/}" "$version" || missing+=("$p"); done
	[[ ${#missing[@]} -gt 0 ]] || return 0
	echo "building ${missing[*]##*/} $version" >&2
	go build -p "$jobs" -trimpath -ldflags "$ld" -o "$bin/" "${missing[@]}"
	for p in "${missing[@]}"; do mark "${p##*/}" "$version"; done
}
k=k8s.io/kubernetes
build $k/cmd/kube-apiserver $k/cmd/kube-controller-manager $k/cmd/kube-scheduler $k/cmd/kubelet $k/cmd/kube-proxy $k/cmd/kubectl
if [[ ${1:-} == e2e ]]; then
	build $k/test/images/agnhost github.com/onsi/ginkgo/v2/ginkgo
	if ! built e2e.test "$version"; then
		echo "building e2e.test $version" >&2
		go test -c -p "$jobs" -trimpath -ldflags "$ld" -o "$bin/e2e.test" $k/test/e2e
		mark e2e.test "$version"
	fi
fi

cd "$here/coredns"
version=$(required github.com/coredns/coredns)
if ! built coredns "$version"; then
	echo "building coredns $version" >&2
	go build -p "$jobs" -trimpath -ldflags '-s -w' -o "$bin/coredns" .
	mark coredns "$version"
fi
