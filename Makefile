# Two commands matter: `make demo` shows it working, `make test` proves it. Both say what they install before they do.

PREFIX ?= /usr/local
DESTDIR ?=
CARGO ?= cargo
HOST := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
BIN := target/bin

# Where the static libseccomp lies; a bare "." when it is not installed yet, which `setup-build` mends.
SECCOMP_DIR = $(shell dirname "$$($(CC) -print-file-name=libseccomp.a)")
STATIC = LIBSECCOMP_LINK_TYPE=static LIBSECCOMP_LIB_PATH=$(SECCOMP_DIR)

.NOTPARALLEL:
.PHONY: build demo test test-vm test-attacks test-all check unit fixtures integration bench fuzz install setup clean

build: setup-build
	@mkdir -p $(BIN)
	$(STATIC) RUSTFLAGS='-C target-feature=+crt-static' $(CARGO) build --release --locked --target $(HOST) --bin proa
	install -m 755 target/$(HOST)/release/proa $(BIN)/proa
	$(STATIC) $(CARGO) build --release --locked --features engine --bin proa-wasmedge
	install -m 755 target/release/proa-wasmedge $(BIN)/proa-wasmedge

demo: setup-demo build
	@scripts/demo

# The suite comes last: its closing line is the verdict.
test: setup-test check unit build integration

# In a virtual machine with cgroup v2, all its controllers, and systemd: the part that only such a machine can try, some
# minutes. docs/testing.md has the rest.
test-vm: setup-test setup-vm build fixtures
	integration/vm/test chosen

check:
	@if $(CARGO) fmt --version >/dev/null 2>&1; then $(CARGO) fmt --all --check; else echo 'rustfmt is not installed: skipped'; fi
	@if $(CARGO) clippy --version >/dev/null 2>&1; then $(CARGO) clippy --locked --workspace --all-targets --features engine -- -D warnings; else echo 'clippy is not installed: skipped'; fi
	@scripts/test-attacks --applies

# The executor's tests run on every engine that is set up.
unit: setup-engines
	$(CARGO) test --locked --workspace --exclude proa-integration
	$(CARGO) test --locked --package proa-executor --features engine

# The Wasm modules that the suite runs.
fixtures: setup-engines
	@integration/fixtures/wasm/build && integration/fixtures/wasm/fetch && integration/fixtures/wasm/sqlite/build

# Wasm with the older engine first, then everything with the one that set-up chose.
integration: fixtures
	@older=$$(ENGINE_SUITE=stable scripts/setup-engine | tail -n 1) && echo "Wasm with the engine in $$older" && \
	PROA_ENGINE_DIR=$$older $(CARGO) test --locked --quiet --package proa-integration --test suite -- wasm
	$(CARGO) test --locked --quiet --package proa-integration --test suite

# Takes away one defence against attacks at a time, and demands that the tests notice. Builds proa some forty times.
test-attacks: setup-test setup-engines
	@scripts/test-attacks

# All there is to test, longer than continuous integration lasts: also every step of every call at which something can go
# wrong (docs/hardening.md), and the whole suite in the virtual machine, which alone takes about an hour.
test-all: export PROA_TEST_STEPS = all
test-all: test test-attacks
	@scripts/setup vm
	integration/vm/test all

bench: setup-bench build
	$(CARGO) run --locked --release --quiet --package proa-integration --bin bench -- docs/performance.md

# Each target for FUZZ_SECONDS (60), FUZZ_JOBS (2) at once. Needs cargo-fuzz; `make test` does not: it replays the corpora.
fuzz:
	scripts/fuzz $(FUZZ_TARGETS)

install: build
	install -D -m 755 $(BIN)/proa $(DESTDIR)$(PREFIX)/bin/proa
	ln -sfn proa $(DESTDIR)$(PREFIX)/bin/proa-wasm
	install -D -m 755 $(BIN)/proa-wasmedge $(DESTDIR)$(PREFIX)/bin/proa-wasmedge
	@if [ -d target/engine/current ]; then \
		echo "the engine of target/engine goes to $(DESTDIR)$(PREFIX)/lib/proa/engine"; \
		mkdir -p $(DESTDIR)$(PREFIX)/lib/proa/engine; \
		cp -R target/engine/current/. $(DESTDIR)$(PREFIX)/lib/proa/engine/; \
	fi

# Everything that any of the targets needs; setup-build, setup-demo, … only for that one.
setup: setup-all

.PHONY: setup-all setup-build setup-demo setup-test setup-bench setup-vm
setup-all setup-build setup-demo setup-test setup-bench setup-vm: setup-%:
	@scripts/setup $*

# The engine that set-up chooses, and Debian stable's: both run the tests.
.PHONY: setup-engines
setup-engines:
	@scripts/setup-engine >/dev/null
	@ENGINE_SUITE=stable scripts/setup-engine >/dev/null

clean:
	$(CARGO) clean
