# `make demo` shows the network on this machine; `make test` tells whether the tree can be trusted.
SHELL       := /bin/bash
GO          ?= go
STATICCHECK ?= $(GO) run honnef.co/go/tools/cmd/staticcheck@v0.8.2
export CGO_ENABLED ?= 0
LDFLAGS     := -s -w
export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null)

.PHONY: help build image demo test lint unit fuzz e2e e2e-turns e2e-k8s e2e-k8s-short chart soak bench tools clean

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

build: ## build flanneld, flannel, weft and install-conf into bin/
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/...

image: ## the container image of each architecture into dist/; ARCH=amd64 for one
	$(GO) run ./tools/image $(if $(ARCH),-arch $(ARCH))

demo: build ## three nodes on this machine, with pods, paths and a capture; KEEP=1 leaves them standing
	./bin/weft lab demo $(if $(KEEP),--keep)

test: tools lint unit ## everything needed to trust the tree, the slow suites excepted

tools: ## install what the tests look at the kernel with (Debian)
	./test/tools.sh

lint:
	@test -z "$$(gofmt -l cmd deploy internal test tools)" || { gofmt -l cmd deploy internal test tools; echo 'run gofmt'; exit 1; }
	$(GO) vet ./...
	$(GO) vet -tags node ./cmd/weft
	$(STATICCHECK) ./...

unit: build ## the tests of every package, under the race detector, and of the CNI plugin as a program
	CGO_ENABLED=1 $(GO) test -race -timeout 15m ./internal/... ./cmd/...
	$(GO) test -timeout 15m ./test/cni/...

fuzz: ## every fuzz target for FUZZTIME each (10s)
	./test/fuzz.sh $(or $(FUZZTIME),10s)

e2e: tools build ## whole networks of real processes in namespaces
	$(GO) test -count=1 -timeout 40m ./test/e2e/...

e2e-turns: tools build ## every change of the backend under traffic, 30 s from node to node (about 1 hour); HZ=200 on a slow machine
	WEFT_TURNS=all WEFT_TURNS_HZ=$(or $(HZ),1000) $(GO) test -count=1 -timeout 3h -run 'TestTurn|TestNetworkGrows' -v ./test/e2e/

e2e-k8s: tools ## real Kubernetes clusters in namespaces; builds their components once (about 15 minutes)
	./test/k8s/tools.sh
	cd test/k8s && $(GO) test -v -count=1 -timeout 80m $(K8S_FLAGS) .
	$(GO) test -count=1 -timeout 15m ./internal/lease/kube

e2e-k8s-short: K8S_FLAGS = -short
e2e-k8s-short: e2e-k8s ## the part of it that takes 5 minutes

chart: build ## the Helm chart and the kustomize base on Helm's engine and kubectl, and the admission policy on a real API server
	cd test/chart && $(GO) test -count=1 -timeout 10m ./...

soak: ## the CNI plugin through 10,000 attachments with random kills
	WEFT_SOAK=1 $(GO) test -count=1 -run Churn -timeout 3h ./test/cni/

bench: tools build ## the figures of docs/benchmarks.md
	./test/bench.sh

clean:
	rm -rf bin dist
