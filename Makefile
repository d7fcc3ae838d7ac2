# `make` lists the targets.

CARGO ?= cargo
EXAMPLES := $(or $(CARGO_TARGET_DIR),target)/release/examples

.DEFAULT_GOAL := help
.PHONY: help build test examples build-cluster cluster demo fmt fmt-check lint doc ci clean

help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1|\2/p' $(MAKEFILE_LIST) | \
		while IFS='|' read -r target text; do printf '  make %-10s %s\n' "$$target" "$$text"; done
	@echo
	@echo 'With `make cluster KEEP=1` the nodes go on when one of them ends; ARGS=-v logs each get.'

build: ## build the library and the examples, in release mode
	$(CARGO) build --release --locked --lib --examples

test: ## run all tests
	$(CARGO) test --locked

examples: ## run the small examples: hello, by_hand, ring
	$(CARGO) run --locked --quiet --example hello
	$(CARGO) run --locked --quiet --example by_hand
	$(CARGO) run --locked --quiet --example ring -- Tom Jack Sam

build-cluster:
	$(CARGO) build --release --locked --example node --example cluster

cluster: build-cluster ## run nodes on 8001 to 8003 and a front on 9999, until Ctrl-C or one of them ends
	$(EXAMPLES)/cluster $(if $(KEEP),--keep-going) $(ARGS)

demo: build-cluster ## show by itself what a cluster does, then end
	$(EXAMPLES)/cluster --demo $(ARGS)

fmt: ## format the code
	$(CARGO) fmt

fmt-check: ## check the format
	$(CARGO) fmt --check

lint: ## run clippy on all targets, warnings denied
	$(CARGO) clippy --locked --all-targets -- -D warnings

doc: ## build the docs, warnings denied
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps

ci: fmt-check lint test doc ## format, lint, tests and docs, as before each merge

clean: ## remove what was built
	$(CARGO) clean
