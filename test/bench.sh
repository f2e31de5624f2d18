#!/bin/sh
# The figures of docs/benchmarks.md. WEFT_UPSTREAM_FLANNELD names a binary of the original to compare with.
set -eu
cd "$(dirname "$0")/.."
go run ./test/bench/control -bin bin
go run ./test/bench/udp -bin bin
go test ./test/cni -run '^$' -bench . -benchtime 1x
go test ./internal/firewall ./internal/kernel -run '^$' -bench .
