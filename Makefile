# All that is done with this repository. `make demo` and `make test` install what is missing, or say what it is.
.POSIX:
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

TARGET := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
LAB := $(TARGET)/lab

.PHONY: nightly long corpus help demo test bench bench-peers bench-sim bench-cost soak check-service check-deploy check-image deps lint fmt clippy doc dependencies links unit simulation sim story recording fuzz lab scenarios bad-input test-kernel test-service test-kilo test-kilo-kernel test-kilo-binaries test-kubelet image-programs bench-kilo bench-api audit clean

help:
	@echo 'make demo              breaks a leader and replaces it, live, in network namespaces on this machine'
	@echo 'make test              what a change must pass: format, lints, docs, licences, manifests, unit and property tests, virtual time, fuzz corpus, lab scenarios, bad input, kernel WireGuard'
	@echo 'make nightly           what takes longer: mixed versions, 2,000 fresh seeds, long fuzzing, all scenarios on kernels, Kubernetes (PART=name; list: tests/nightly --list)'
	@echo 'make deps              installs what demo and test need (root, Debian/Ubuntu), or says what is missing'
	@echo
	@echo 'make unit              unit and property tests'
	@echo 'make sim               the mesh in virtual time; SEEDS=1..500 explores these seeds, FRESH=2000 as many new ones'
	@echo 'make story             tells one run in virtual time, second by second: OF=19, or OF=FILE of tests/regressions'
	@echo 'make soak              a day in virtual time with trouble every hour: the memory of the cores stays flat'
	@echo 'make long              unit tests that take minutes'
	@echo 'make scenarios         the scenarios of tests/scenarios on real packets in the lab (REST=1: those that are left to make nightly)'
	@echo 'make bad-input         damaged stores, hostile peers and live changes, with real daemons in the lab'
	@echo 'make fuzz              fuzzes each place where bytes come in for a minute (FUZZ_SECONDS=60)'
	@echo 'make corpus            writes the fuzzer'\''s first inputs anew, after a format changed'
	@echo 'make recording         writes tests/fixtures/*.recording anew, after a change of what a core decides or records'
	@echo 'make test-kernel       kernel WireGuard: tests and scenarios on kernels of Debian, in an emulated machine (SCENARIOS=all, or names)'
	@echo 'make test-kilo         Kubernetes: real kube-apiserver and etcd (built once, with Go), a stand-in of Kilo (KILO_KG=/path/to/kg: the real one), leaderd beside it'
	@echo 'make test-kilo-kernel  some of these with kernel WireGuard, in an emulated machine (TESTS=names)'
	@echo 'make test-kubelet      real kubelets, containerd and runc: image and chart are installed, upgraded and removed as the docs say (root)'
	@echo 'make test-service      a real systemd in an emulated machine: the unit is installed, reloaded, killed and removed as the docs say'
	@echo
	@echo 'make lint              format, clippy, docs, and docs/dependencies.md'
	@echo 'make audit             what is linked, and its licences (ADVISORY_DB=/path/to/advisory-db: known advisories too)'
	@echo 'make check-service     the score of the systemd unit, and whether daemons work with what it leaves them'
	@echo 'make check-deploy      Helm chart, plain manifests, alert rules and dashboard: sound, and in agreement'
	@echo 'make check-image       the container image, built without a registry: two containers with the rights of a Pod are a mesh (root)'
	@echo
	@echo 'make bench             the figures of docs/benchmarks.md (hours; RUNS=10, ONLY="kilo-489 idle": less)'
	@echo 'make bench-cost        costs in docs/benchmarks.md: failover, watching, throughput, times (QUICK=1: less)'
	@echo 'make bench-sim         the figures of docs/bench-sim.md, in virtual time (minutes; QUICK=1: less)'
	@echo 'make bench-peers       leaderd beside FRR, keepalived and Kilo'\''s rule: docs/bench-peers.md (half an hour, root; RUNS=2; QUICK=1: one run, a quarter)'
	@echo 'make bench-kilo        times beside the stand-in of Kilo, over RUNS runs'
	@echo 'make bench-api         requests to the Kubernetes API with 10, 100 and 1,000 nodes (NODES="10 100"; MINUTES=5)'

demo: lab
	"$(LAB)/wgctl" lab demo

test: deps lint audit check-deploy unit simulation scenarios bad-input test-kernel
	@echo
	@echo 'make test: all of it passed: format, clippy, docs; supply chain; Kubernetes manifests; unit and property tests; virtual time and the fuzz corpus;'
	@echo "           lab scenarios on real packets; bad input and live changes; kernel WireGuard"

# ONLY: these rows, scenarios or 'idle'.
bench: lab
	LEADERD_BIN_DIR="$(LAB)" cargo run --locked --profile lab -p leaderd-bench --bin bench -- $(or $(RUNS),50) $(ONLY)

# On a quiet machine, as root: FRR changes to a user of its own. ONLY='bfd-50 node-crash': these alone, on the terminal.
bench-peers: lab
	tests/setup peers
	cargo build --locked --profile lab -p leaderd-bench --bin bench_peers
	"$(LAB)/bench_peers" $(if $(QUICK),--quick) $(if $(RUNS),--runs $(RUNS)) $(if $(PROVISIONAL),--provisional) $(ONLY)

# Figures and pictures from virtual time: PART=detection, scale or election alone.
bench-sim:
	cargo run --locked --profile lab -p leaderd-bench --bin bench_sim -- $(if $(QUICK),--quick) $(PART)

# Figures of real kernels and daemons: PART=programming, scale, throughput or times alone.
bench-cost: lab
	tests/setup cost
	LEADERD_BIN_DIR="$(LAB)" cargo run --locked --profile lab -p leaderd-bench --bin bench_cost -- $(if $(QUICK),--quick) $(PART)

deps:
	@tests/setup

lint: fmt clippy doc links dependencies

fmt:
	cargo fmt --all --check

clippy:
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo clippy --locked -p leaderd --features kubernetes --all-targets -- -D warnings

# What each direct dependency is for: `tests/dependencies` writes the rest of the page.
dependencies:
	tests/dependencies --check

doc:
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --workspace --no-deps --features leaderd/kubernetes

# Links and anchors of the documents, and the README's length.
links:
	docs/check

# In the lab's profile, as all other tests: one build of the dependencies, and the core's tests take a tenth of the time.
unit:
	cargo test --locked --profile lab --workspace --exclude tests --exclude leaderd-bench
	cargo test --locked --profile lab -p leaderd --features kubernetes --lib kubernetes

# The mesh in virtual time, recordings, and the fuzzer's corpus: all tests of packages `tests` and `leaderd-bench` but those that need the lab.
simulation: sim
	cargo test --locked --profile lab -p tests -p leaderd-bench --lib
	cargo test --locked --profile lab -p tests -p leaderd-bench --bins
	cargo test --locked --profile lab -p tests --test corpus --test replay

# Scenarios in virtual time, what once failed, and random worlds of every kind. SEEDS=FROM..TO: these seeds; FRESH=2000: this many that
# never ran (after an interruption it goes on where it was); KIND=disks: of one kind; NOTE=1: adds a line to docs/bench-sim.md.
sim: deps
ifneq ($(SEEDS)$(FRESH),)
	cargo run --locked --profile lab -p tests --bin explore -- $(SEEDS) $(if $(FRESH),--fresh $(FRESH)) $(if $(KIND),--kind $(KIND)) $(if $(NOTE),--note)
else
	cargo test --locked --profile lab -p tests --test virtual_time --test soak --test known_to_fail --test worst_peer
	cargo test --locked --profile lab -p tests --test hostile -- --nocapture
	cargo test --locked --profile lab -p tests --test explore -- --nocapture
endif

# A day of virtual time with trouble every hour: the memory of the cores must stay flat. `make test` runs a part of it.
soak:
	SOAK_HOURS=24 cargo test --locked --profile lab -p tests --test soak -- --nocapture

# Faults, which candidates could have carried traffic, who led, what the daemons logged.
story:
	@cargo run --quiet --locked --profile lab -p tests --bin story -- "$(OF)"

# Unit tests that take minutes: in `make nightly`.
long:
	cargo test --locked --profile lab -p leaderd-core --lib -- --ignored --skip write_the_corpus

# The first inputs of the fuzz targets that are made by tests.
corpus:
	cargo test --locked -p tests --test corpus -- --ignored
	cargo test --locked -p leaderd-core --lib write_the_corpus -- --ignored

# A real failover in the lab, recorded: what `make test` replays.
recording: lab
	tests/record "$(LAB)" "$(TARGET)/recording"

# FUZZ_SECONDS for each target. The bootstrap variable lets a stable compiler accept cargo-fuzz's flags.
FUZZ_SECONDS ?= 60
fuzz:
	@[ "$$(cargo fuzz --version 2>/dev/null)" = 'cargo-fuzz 0.13.2' ] || { echo 'fuzz: run: cargo install cargo-fuzz --version 0.13.2 --locked' >&2; exit 1; }
	for target in $$(ls tests/fuzz/fuzz_targets | sed 's/[.]rs$$//'); do \
	  found="$(TARGET)/fuzz/$$target"; mkdir -p "$$found"; \
	  RUSTC_BOOTSTRAP=1 cargo fuzz run --fuzz-dir tests/fuzz "$$target" "$$found" "tests/fuzz/corpus/$$target" -- \
	    -max_total_time=$(FUZZ_SECONDS) -timeout=20 || exit; done

# The programs of the lab: optimised, built once, for demo, scenarios and benchmarks.
lab: deps
	cargo build --locked --profile lab -p leaderd -p wgctl

# Ends with a line 'N passed, N failed', which names the WireGuard backend. REST=1: those that are left to `make nightly`.
scenarios: lab
	LEADERD_BIN_DIR="$(LAB)" cargo test --locked --profile lab -p tests --test scenarios -- --nocapture --test-threads=1 $(if $(REST),--ignored)

# Damaged stores, hostile peers, live changes, on real daemons in the lab.
bad-input: lab
	LEADERD_BIN_DIR="$(LAB)" cargo test --locked --profile lab -p tests --test bad_input

# The score of the systemd unit, and whether daemons work with what it leaves them (needs the packages systemd and strace).
check-service: lab
	deploy/systemd/check "$(LAB)"

# Manifests for Kubernetes. helm and kubectl come from PATH, or Go builds them.
check-deploy: deps
	TARGET="$(TARGET)" deploy/check

# The container image, with programs that are linked statically here; its own build stage does that with musl.
check-image: image-programs
	deploy/image-check "$(TARGET)/image"

# The programs of the image, linked statically.
image-programs: deps
	tests/setup image
	mkdir -p "$(TARGET)/image"
	cargo rustc --locked --profile lab -p leaderd --bin leaderd --features kubernetes -- -C target-feature=+crt-static
	cp "$(LAB)/leaderd" "$(TARGET)/image/"
	cargo rustc --locked --profile lab -p wgctl --bin wgctl -- -C target-feature=+crt-static
	cp "$(LAB)/wgctl" "$(TARGET)/image/"

# A real systemd and the unit, in an emulated machine.
test-service: lab
	TARGET="$(TARGET)" tests/systemd/run "$(LAB)"

# Kernel WireGuard, whatever this machine's kernel has: ends with a line for each kernel. SCENARIOS='dual-stack wan-cut', or `all`, in
# place of each kernel's own.
test-kernel: lab
	SCENARIOS="$(SCENARIOS)" TARGET="$(TARGET)" tests/kernel/run

# Kubernetes in the lab. Not in `make test`: it needs Go, and some minutes for etcd and kube-apiserver the first time.
# KILO_KG=/path/to/kg: with the real Kilo agent in place of the stand-in.
test-kilo: test-kilo-binaries
	LEADERD_BIN_DIR="$(TARGET)/kilo/bin" KILO_BIN_DIR="$(TARGET)/kilo/bin" cargo test --locked --profile lab -p tests --test kilo -- $(ONLY)

# A cluster of two nodes with real kubelets, containerd and runc on this machine (root): the chart, as the docs install it. Not in
# `make test`: it needs Go, and builds kubelet, controller manager and scheduler the first time.
test-kubelet: image-programs
	tests/setup kubelet
	TARGET="$(TARGET)" tests/kilo/build kubelet
	LOGS="$(TARGET)/kubelet" tests/kubelet/run "$(TARGET)/kilo/bin" "$(TARGET)/image"

# Some of these with kernel WireGuard, in an emulated machine. Not in `make test`: the emulated processor is slow.
test-kilo-kernel: test-kilo-binaries
	TESTS="$(TESTS)" TARGET="$(TARGET)" tests/kernel/run linux-image-6.12-cloud-amd64 kilo

test-kilo-binaries: deps
	TARGET="$(TARGET)" tests/kilo/build
	cargo build --locked --profile lab -p leaderd --features kubernetes
	cp "$(LAB)/leaderd" "$(TARGET)/kilo/bin/"

# What test-kilo measures, over RUNS runs each, as a table on the terminal; on a quiet machine.
bench-kilo: test-kilo-binaries
	export LEADERD_BIN_DIR="$(TARGET)/kilo/bin" KILO_BIN_DIR="$(TARGET)/kilo/bin"; \
	  tests/kilo/bench "$$(cargo test --locked --profile lab -p tests --test kilo --no-run --message-format json 2>/dev/null | \
	    jq -r 'select(.executable != null and .target.name == "kilo") | .executable')" $(or $(RUNS),10)

# Requests to the API server in peace, as a table on the terminal.
bench-api: test-kilo-binaries
	LEADERD_BIN_DIR="$(TARGET)/kilo/bin" KILO_BIN_DIR="$(TARGET)/kilo/bin" cargo run --locked --profile lab -p leaderd-bench --bin bench_api -- \
	  --minutes=$(or $(MINUTES),5) $(NODES)

# ADVISORY_DB=/path/to/advisory-db: known advisories too.
audit:
	tests/setup audit "$(TARGET)/tools"
	tests/supply-chain "$(TARGET)/tools/bin/cargo-deny"

# What does not fit into `make test`, in parts of an hour at most. Parts that have passed for this commit are not run again.
nightly: deps
	TARGET="$(TARGET)" tests/nightly $(PART)

clean:
	cargo clean
