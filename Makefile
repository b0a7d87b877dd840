# Everything that is done with this repository. `make demo` and `make test` install what is missing, or say what is.
.POSIX:
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

TARGET := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
LAB := $(TARGET)/lab

.PHONY: help demo test bench deps lint fmt clippy doc unit fuzz-corpus lab sim scenarios audit clean

help:
	@echo 'make demo    a leader is broken and replaced, live, in network namespaces on this machine'
	@echo 'make test    format, lints, docs, unit and property tests, fuzz corpus, lab scenarios'
	@echo 'make sim     the mesh in virtual time; SEEDS=1..500 explores these seeds'
	@echo 'make bench   the figures of docs/benchmarks.md (long)'
	@echo 'make deps    install what demo and test need (root, Debian/Ubuntu), or say what is missing'

demo: lab
	"$(LAB)/wgctl" lab demo

test: deps lint unit fuzz-corpus sim scenarios
	@echo 'make test: all of it passed'

bench: lab
	LEADERD_BIN_DIR="$(LAB)" tests/bench

deps:
	@tests/setup

lint: fmt clippy doc

fmt:
	cargo fmt --all --check

clippy:
	cargo clippy --locked --workspace --all-targets -- -D warnings

doc:
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --workspace --no-deps

unit:
	cargo test --locked --workspace --exclude tests

fuzz-corpus:
	@if [ -f tests/tests/corpus.rs ]; then cargo test --locked -p tests --test corpus; \
	 else echo 'fuzz corpus: tests/tests/corpus.rs is missing' >&2; exit 1; fi

# What the lab runs: optimised, built once, used by demo, scenarios and bench alike.
lab: deps
	cargo build --locked --profile lab -p leaderd -p wgctl

# The test ends with a line of its own, 'N passed, N failed', naming the WireGuard backend.
scenarios: lab
	LEADERD_BIN_DIR="$(LAB)" cargo test --locked -p tests --test scenarios -- --nocapture --test-threads=1

# The mesh in virtual time: scenarios, what once failed, and random worlds (25 s of them, or SEEDS=FROM..TO).
sim: deps
	SIM_SEEDS="$(SEEDS)" cargo test --locked --profile lab -p tests --test virtual_time --test explore

audit:
	cargo deny check

clean:
	cargo clean
