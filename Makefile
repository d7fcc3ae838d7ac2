# `make` lists the targets.

CARGO ?= cargo
# Installs a Debian package unless its program is there: $(call install,program,package).
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
install = command -v $(1) >/dev/null || \
	{ $(SUDO) apt-get update -q && $(SUDO) apt-get install -qy --no-install-recommends $(2); } || \
	{ echo '$(1) is needed here and could not be installed: the package is $(2)' >&2; exit 1; }
PROGRAMS := $(or $(CARGO_TARGET_DIR),target)/release
CLUSTER := $(or $(CARGO_TARGET_DIR),target)/cluster/cluster
MSRV := $(shell sed -nE 's/^rust-version = "(.*)"/\1/p' Cargo.toml | head -n 1)
SECONDS ?= 300
SEED ?= 1

.DEFAULT_GOAL := help
.PHONY: $(shell sed -nE 's/^([a-z-]+):.*/\1/p' $(MAKEFILE_LIST))

help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1|\2/p' $(MAKEFILE_LIST) | \
		while IFS='|' read -r target text; do printf '  make %-12s %s\n' "$$target" "$$text"; done
	@echo
	@echo 'With `make cluster KEEP=1` the nodes go on when one of them ends; ARGS=-v logs each get.'

build: ## build the library and the examples, in release mode
	$(CARGO) build --release --locked --workspace --exclude tests --lib --bins --examples

test: ## run all tests, and those of the pool in a build without TLS, too
	$(CARGO) test --locked --workspace --features tls
	$(CARGO) test --locked --workspace --lib -- http::options http::pool

test-metrics: ## check /metrics and the alert rules with promtool (installs Debian's prometheus where missing)
	$(call install,promtool,prometheus)
	$(CARGO) test --locked --workspace --features tls --test it -- --ignored promtool

test-page: ## test the page in a browser (installs Debian's chromium where missing)
	$(call install,chromium,chromium)
	$(CARGO) test --locked --workspace --features tls --test it -- --ignored --test-threads=1 page::
	@echo 'pictures: $(or $(CARGO_TARGET_DIR),target)/page/*.png'

races: ## try 100 times as many schedules of threads and sequences as `make test`
	RACES=100 $(CARGO) test --release --locked -p tests --test races
	PROPTEST_CASES=25600 $(CARGO) test --release --locked --lib cache::properties

stress: ## send a node whatever can be sent: SEEDS=20000 seeds
	GEECACHE_TEST_SEEDS=$(or $(SEEDS),20000) $(CARGO) test --locked -p tests --test it fuzz:: -- --nocapture

examples: ## run the small examples: hello, typed, by_hand, three, ring
	$(CARGO) run --locked --quiet --example hello
	$(CARGO) run --locked --quiet --example typed
	$(CARGO) run --locked --quiet --example by_hand
	$(CARGO) run --locked --quiet --example three
	$(CARGO) run --locked --quiet --example ring -- Tom Jack Sam

build-cluster:
	$(CARGO) build --profile cluster --locked -p node -p cluster

cluster: build-cluster ## run nodes on 8001 to 8003, with a page on 9999, until Ctrl-C or one of them ends
	$(CLUSTER) $(if $(KEEP),--keep-going) $(ARGS)

demo: build-cluster ## show by itself what a cluster does, then end
	$(CLUSTER) --demo $(ARGS)

proxy: ## ask and attack three nodes behind HAProxy (installs Debian's haproxy where missing)
	$(call install,haproxy,haproxy)
	$(CARGO) test --locked -p tests --features tls --test it -- --ignored --nocapture --test-threads=1 proxy::

soak: ## check every answer while three nodes, and the network between them, fail; SECONDS=300, SEED=1
	$(CARGO) build --release --locked -p soak
	$(PROGRAMS)/soak --seconds $(SECONDS) --seed $(SEED)

bench: ## measure all, beside quick_cache, moka and Redis (installs it where missing); ARGS=--quick
	$(call install,redis-server,redis-server)
	$(CARGO) run --release --locked -p bench -- $(or $(TOPIC),all) $(ARGS)

fmt: ## format the code
	$(CARGO) fmt --all

fmt-check: ## check the format
	$(CARGO) fmt --all --check

lint: ## run clippy on all targets, with TLS and without, warnings denied
	@# The library supports a Rust without `let` chains. Edition 2021 has none, so its parser finds them.
	rustfmt --check --edition 2021 --style-edition 2024 src/lib.rs examples/*.rs
	$(CARGO) clippy --locked --workspace --all-targets --features tls -- -D warnings
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

msrv: ## build the library with the oldest Rust that it supports (rustup installs it)
	rustup toolchain install $(MSRV) --profile minimal --no-self-update
	rustup run $(MSRV) cargo check --locked --lib --features tls

package: ## pack the library as for a registry, and build it from that
	$(CARGO) package --locked --allow-dirty

deny: ## check the licences, sources and versions of all dependencies
	$(CARGO) test --locked --workspace --features tls --test it -- --ignored dependencies::

doc: ## build the docs as a book, the private modules among them, warnings denied
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --features tls
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --features tls --document-private-items

# The tests last: theirs is the last word.
ci: fmt-check lint doc package deny test-metrics test-page proxy test ## all checks and tests (installs what they need): before each merge

clean: ## remove what was built
	$(CARGO) clean
