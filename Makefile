# "make help" lists the commands.

# A shell that stops at the first failure, also within a pipe.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build
# The steps of "make test" run one after the other, even with -j.
.NOTPARALLEL:

# The host of "make demo": harness (bundled) or fluent-bit.
HOST ?= harness
# Some shells export the machine's name as HOST.
ifeq ($(origin HOST)$(filter harness fluent-bit,$(HOST)),environment)
HOST := harness
endif
# A fluent-bit executable. With it, "make test" also tests in the real host.
FLUENT_BIT ?=
export HOST FLUENT_BIT
# "make soak": kills per test, the seed of their times, and seconds per fuzz target.
KILLS ?= 200
SEED ?= 1
FUZZ_SECONDS ?= 600
# "make soak": hot reloads in one process.
RELOADS ?= 1000
# "make test": the seed of the property tests. "make soak" draws a new one each time.
PROPERTY_SEED ?= 1
# "make install": the prefix, and a staging folder for packagers.
PREFIX ?= /usr/local
DESTDIR ?=
# "make package": the target, and the oldest glibc to support.
PACKAGE_TARGET ?= $(shell uname -m)-unknown-linux-gnu
PACKAGE_GLIBC := 2.28
# zig's compiler cannot compile libdeflate's use of ARM's SHA-3 instructions; its checksums work without them.
PACKAGE_CFLAGS := CFLAGS_aarch64_unknown_linux_gnu=-DLIBDEFLATE_ASSEMBLER_DOES_NOT_SUPPORT_SHA3
# When cross-compiling, the ferry built for this machine, which writes the manual pages.
PACKAGE_TOOL = $(if $(filter $(shell uname -m)-%,$(PACKAGE_TARGET)),,TOOL=$(RELEASE)/ferry)
# "make deny": the checks to run; advisories downloads a database.
DENY ?= licenses bans sources
# "make bench-targets": more options ("target/ferry-harness bench-targets --help").
BENCH_TARGETS ?=
# "make fleet-sim": its options.
FLEET ?=
# "make bench-host": the number of sample lines and of rounds, and words by which to select rows.
LINES ?= 600000
REPEAT ?= 1
ROWS ?=
# "make bench-parquet": a fluent-bit that was built with Arrow, as a peer.
FLUENT_BIT_ARROW ?=
# Terminals export their height as LINES.
ifeq ($(origin LINES),environment)
LINES := 600000
endif

# Cargo's target folder may be elsewhere; the results are always copied to target/.
CARGO_TARGET_DIR ?= target
export CARGO_TARGET_DIR
RELEASE := $(CARGO_TARGET_DIR)/release
DEBUG := $(CARGO_TARGET_DIR)/debug
# The build for packages, with another linker and other C compiler options.
PORTABLE := $(CARGO_TARGET_DIR)/portable
# The tools that build packages and the book.
TOOLS := $(CURDIR)/target/tools
CYCLONEDX := 0.5.9
MDBOOK := 0.5.4
STARTED := $(shell date +%s)

heading = @printf '\n=== %s\n' "$(1)"
# Replaces a file in one step, so that a running host keeps the library it has mapped.
publish = if [ "$(1)" -nt "$(2)" ]; then cp "$(1)" "$(2).new" && mv "$(2).new" "$(2)" && echo "built $(2)"; fi

.PHONY: build
build: cargo-present ## Build out_ferry.so, ferry and ferry-harness into target/ (the same as plain "make")
	cargo build --release --workspace --locked
	@mkdir -p target
	@$(call publish,$(RELEASE)/libferry.so,target/out_ferry.so)
	@$(call publish,$(RELEASE)/ferry-harness,target/ferry-harness)
	@$(call publish,$(RELEASE)/ferry,target/ferry)

.PHONY: demo
demo: demo-build ## Ship a generated application log to target/demo/objects and count what arrived
	$(call heading,Demo)
	@LIBRARY=target/demo-build/out_ferry.so HARNESS=target/demo-build/ferry-harness tests/demo.sh

# The demo ships to a folder, so it is built without the cloud SDKs, which take most of the build time.
.PHONY: demo-build
demo-build: cargo-present
	cargo build --release --locked --package ferry --package ferry-harness --lib --bins --no-default-features
	@mkdir -p target/demo-build
	@cp $(RELEASE)/libferry.so target/demo-build/out_ferry.so
	@cp $(RELEASE)/ferry-harness target/demo-build/ferry-harness

.PHONY: test
test: tools format-check clippy header-check emulators test-rust test-c fuzz demo ## Run every check and test, in order, stopping at the first failure
	$(call heading,Passed in $$(($$(date +%s) - $(STARTED))) seconds)
ifeq ($(FLUENT_BIT),)
	@echo "Skipped: the tests in the real host; to run them, set FLUENT_BIT=/path/to/fluent-bit."
endif
	@command -v promtool >/dev/null || echo "Skipped: the tests of the alerts; to run them, install promtool (apt install prometheus)."
	@command -v initdb /usr/lib/postgresql/*/bin/initdb >/dev/null || echo "Skipped: loading objects into PostgreSQL; to run it, install PostgreSQL (apt install postgresql)."
	@command -v jq >/dev/null || echo "Skipped: repairing dead letters as documented; to run it, install jq (apt install jq)."
	@[ -x $(TOOLS)/bin/mdbook ] || echo "Skipped: the links of the built book; to check them, run \"make book\" once, which installs mdbook."

.PHONY: soak
soak: tools emulators ## Kill hosts hundreds of times (KILLS=200, SEED=…), reload RELOADS=1000 times, and fuzz for FUZZ_SECONDS=600
	$(call heading,Soak: $(KILLS) kills per test)
	FERRY_KILLS=$(KILLS) FERRY_SEED=$(SEED) cargo test --workspace --locked --test ferry -- --nocapture crash:: faults::
	$(call heading,Soak: the spool on a failing disk)
	PROPTEST_CASES=5000 cargo test --workspace --locked --lib -- spool::
	$(call heading,Soak: $(RELOADS) hot reloads)
	cargo test --workspace --locked --no-run
	@$(MAKE) --no-print-directory -C tests/c reloads RELOADS=$(RELOADS) LIBRARY="$(abspath $(DEBUG))/deps/libferry.so" BUILD="$(abspath target/c)"
	$(call heading,Soak: fuzzing)
	fuzz/run.sh $(FUZZ_SECONDS)

.PHONY: fuzz
fuzz: cargo-present ## Fuzz each parser for ten seconds
	$(call heading,Fuzz)
	fuzz/run.sh 10

.PHONY: faults-table
faults-table: tools emulators ## Inject every fault, and print a table of what was lost and duplicated
	@mkdir -p target && rm -f target/faults.md
	FERRY_TABLE=$(CURDIR)/target/faults.md cargo test --workspace --locked --test ferry -- --test-threads 1 faults::
	@echo "| destination | fault injected | times it occurred | lost | duplicated |"
	@echo "| --- | --- | --- | --- | --- |"
	@cat target/faults.md

.PHONY: bench
bench: tools emulators ## Measure each part against a reference: encode, compress, batch, spool, pipeline, fake Firehose, Azurite
	cargo bench --workspace --locked --bench ferry

.PHONY: bench-instructions
bench-instructions: cargo-present ## Count the instructions of encoding and compressing, and of references; needs valgrind
	@command -v valgrind >/dev/null || { echo "error: valgrind is not installed; remedy: apt install valgrind" >&2; exit 1; }
	cargo bench --workspace --locked --bench instructions

# With the profile of the tests: it shares their build, and is fast enough.
.PHONY: fleet-sim
fleet-sim: cargo-present ## Simulate 1,000 senders on one delivery stream, and draw their rates into target/fleet.svg
	@mkdir -p target
	cargo bench --profile dev --locked --bench fleet -- --out "$(CURDIR)/target/fleet.svg" $(FLEET)

.PHONY: bench-spool
bench-spool: build ## Measure flushes of 500 tags per second, spooled and direct
	@tests/bench-spool.sh

.PHONY: bench-isolation
bench-isolation: build emulators ## Measure what nine healthy targets get while the tenth is in trouble
	@tests/bench-isolation.sh

.PHONY: bench-targets
bench-targets: build ## Measure 1 to 10,000 folders of a store 50 ms away, and 1,000 delivery streams
	target/ferry-harness bench-targets $(BENCH_TARGETS)

.PHONY: bench-backlog
bench-backlog: cargo-present ## Measure how a long backlog is opened and delivered
	cargo bench --locked --bench backlog

.PHONY: bench-host
bench-host: host-present build ## Compare the cost of Ferry with that of Fluent Bit's own plugins, in a real host; needs FLUENT_BIT
	target/ferry-harness bench-host --fluent-bit "$(FLUENT_BIT)" --lines $(LINES) --repeat $(REPEAT) --rows "$(ROWS)"

# pyarrow and DuckDB are those of the tests; FLUENT_BIT_ARROW is a host whose own s3 writes Parquet.
.PHONY: bench-parquet
bench-parquet: host-present build emulators ## Compare the cost of Parquet with that of pyarrow, in a real host; needs FLUENT_BIT
	target/emulators/readers/bin/python tests/bench-parquet.py --fluent-bit "$(FLUENT_BIT)" --lines $(LINES) \
		$(if $(FLUENT_BIT_ARROW),--fluent-bit-arrow "$(FLUENT_BIT_ARROW)")

.PHONY: bench-throughput
bench-throughput: host-present build ## Measure the throughput of Ferry, in a real host and with 500 tags; needs FLUENT_BIT
	target/ferry-harness bench-host --fluent-bit "$(FLUENT_BIT)" --lines $(LINES) --throughput
	@tests/bench-spool.sh

.PHONY: format-check
format-check: cargo-present
	$(call heading,Format)
	cargo fmt --all --check

.PHONY: clippy
clippy: cargo-present ## Lint everything; warnings are errors
	$(call heading,Lints)
	cargo clippy --workspace --all-targets --locked -- -D warnings

.PHONY: header-check
header-check: cargo-present
	$(call heading,C header)
	cargo test --workspace --locked --test ferry -- header::

.PHONY: emulators
emulators: ## Install Azurite, moto and the Python packages of the tests into target/emulators
	$(call heading,Emulators)
	@tests/emulators/install.sh

.PHONY: readers
readers: cargo-present ## Read Parquet files with DuckDB, pyarrow, Polars and Spark (needs Java)
	$(call heading,Readers of Parquet)
	python3 -m venv target/readers
	target/readers/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r tests/readers/all.txt
	FERRY_READERS=$(CURDIR)/target/readers cargo test --workspace --locked --test ferry -- --nocapture readers::

.PHONY: test-rust
test-rust: cargo-present ## Run only the Rust tests; needs "make emulators" once
	$(call heading,Rust tests)
	PROPTEST_RNG_SEED=$(PROPERTY_SEED) cargo test --workspace --locked

# Uses the library of the Rust tests: "cargo build" would select other features of its dependencies, and rebuild many of
# them.
.PHONY: test-c
test-c: cargo-present ## Run only the C host, under the address and undefined-behaviour sanitizers
	$(call heading,C host)
	cargo test --workspace --locked --no-run
	@$(MAKE) --no-print-directory -C tests/c LIBRARY="$(abspath $(DEBUG))/deps/libferry.so" BUILD="$(abspath target/c)"

.PHONY: test-packaging
test-packaging: ## Package stand-ins twice, and compare the bytes; builds nothing
	$(call heading,Packaging)
	@tests/deploy/packaging.sh

.PHONY: lint-workflows
lint-workflows: ## Check the workflows of .github with zizmor and their schema; installs both the first time
	$(call heading,Workflows)
	@tests/deploy/install.sh $(TOOLS)/deploy
	@$(TOOLS)/deploy/bin/zizmor --offline --no-progress --quiet .github/workflows
	@$(TOOLS)/deploy/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

.PHONY: test-kubernetes
test-kubernetes: ## Check the examples' manifests and Helm values against the schemas of Kubernetes' API
	$(call heading,Kubernetes)
	@tests/deploy/install.sh $(TOOLS)/deploy
	@$(TOOLS)/deploy/bin/python tests/deploy/kubernetes.py examples

.PHONY: test-cdk
test-cdk: emulators ## Synthesise the CDK application of the examples, and compare it with their JSON; installs it the first time
	$(call heading,CDK)
	@tests/deploy/cdk.sh $(TOOLS) "$(CURDIR)/target/emulators"

.PHONY: docs
docs: cargo-present ## Regenerate docs/configuration.md from src/config/keys.rs, then "make book"
	FERRY_WRITE_DOCS=1 cargo test --workspace --locked --test ferry -- configuration::the_reference
	@$(MAKE) --no-print-directory book

# The omitted features serve and watch a book.
$(TOOLS)/bin/mdbook:
	cargo install --locked --quiet --version $(MDBOOK) --root $(TOOLS) --no-default-features --features search mdbook

.PHONY: book
book: cargo-present $(TOOLS)/bin/mdbook ## Build the documentation as a book into target/book; installs mdbook the first time, in two minutes
	$(call heading,Book)
	@docs/book.sh target/book-source
	@$(TOOLS)/bin/mdbook build --dest-dir "$(CURDIR)/target/book" target/book-source

.PHONY: header
header: cargo-present ## Regenerate include/ferry.h from src/ffi
	FERRY_WRITE_HEADER=1 cargo test --workspace --locked --test ferry -- header::

# The completions of bash, zsh and fish, below PREFIX.
COMPLETIONS := share/bash-completion/completions/ferry share/zsh/site-functions/_ferry share/fish/vendor_completions.d/ferry.fish

.PHONY: install
install: ## Install what "make build" built, and the documentation, below PREFIX=/usr/local (and DESTDIR)
	@[ -f target/out_ferry.so ] || { echo "error: target/out_ferry.so does not exist; remedy: make build" >&2; exit 1; }
	install -D -m 0644 target/out_ferry.so "$(DESTDIR)$(PREFIX)/lib/fluent-bit/out_ferry.so"
	install -D -m 0755 target/ferry "$(DESTDIR)$(PREFIX)/bin/ferry"
	target/ferry man "$(DESTDIR)$(PREFIX)/share/man/man1"
	@mkdir -p $(foreach folder,$(dir $(COMPLETIONS)),"$(DESTDIR)$(PREFIX)/$(folder)")
	target/ferry completions bash >"$(DESTDIR)$(PREFIX)/$(word 1,$(COMPLETIONS))"
	target/ferry completions zsh >"$(DESTDIR)$(PREFIX)/$(word 2,$(COMPLETIONS))"
	target/ferry completions fish >"$(DESTDIR)$(PREFIX)/$(word 3,$(COMPLETIONS))"
	install -D -m 0644 include/ferry.h "$(DESTDIR)$(PREFIX)/include/ferry.h"
	@$(MAKE) --no-print-directory install-docs

.PHONY: install-docs
install-docs:
	@packaging/documents.sh | while read -r file; do \
		install -D -m "$$([ -x "$$file" ] && echo 0755 || echo 0644)" "$$file" "$(DESTDIR)$(PREFIX)/share/doc/ferry/$$file"; \
	done
	@echo "copied the documentation to $(DESTDIR)$(PREFIX)/share/doc/ferry"

.PHONY: uninstall
uninstall: ## Remove what "make install" copied, but not spools or dead letters
	rm -f "$(DESTDIR)$(PREFIX)/lib/fluent-bit/out_ferry.so" "$(DESTDIR)$(PREFIX)/bin/ferry" \
		"$(DESTDIR)$(PREFIX)/include/ferry.h" "$(DESTDIR)$(PREFIX)/share/man/man1/ferry.1" \
		"$(DESTDIR)$(PREFIX)"/share/man/man1/ferry-*.1 $(foreach file,$(COMPLETIONS),"$(DESTDIR)$(PREFIX)/$(file)")
	@packaging/documents.sh | while read -r file; do rm -f "$(DESTDIR)$(PREFIX)/share/doc/ferry/$$file"; done
	@find "$(DESTDIR)$(PREFIX)/share/doc/ferry" -depth -type d -empty -delete 2>/dev/null || true
	@rmdir --ignore-fail-on-non-empty "$(DESTDIR)$(PREFIX)/lib/fluent-bit" 2>/dev/null || true

# zig links against the symbols of an old glibc; both are prebuilt, and pinned by hash.
$(TOOLS)/zig.stamp: packaging/requirements.txt
	@command -v python3 >/dev/null || { echo "error: python3 is not installed; remedy: apt install python3 python3-venv" >&2; exit 1; }
	rm -rf $(TOOLS)/zig && python3 -m venv $(TOOLS)/zig
	$(TOOLS)/zig/bin/pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r $<
	@touch $@

.PHONY: package
package: cargo-present $(TOOLS)/zig.stamp sbom ## Build a tarball and a .deb for glibc 2.28 and later into target/package
	$(call heading,Package for $(PACKAGE_TARGET))
	@[ -d "$$(rustc --print target-libdir --target $(PACKAGE_TARGET))" ] || { echo "error: Rust has no $(PACKAGE_TARGET) here; remedy: rustup target add $(PACKAGE_TARGET)" >&2; exit 1; }
	PATH="$(TOOLS)/zig/bin:$$PATH" CARGO_TARGET_DIR=$(PORTABLE) $(PACKAGE_CFLAGS) cargo zigbuild --release --locked -p ferry \
		--target $(PACKAGE_TARGET).$(PACKAGE_GLIBC) --lib --bin ferry
ifneq ($(filter $(shell uname -m)-%,$(PACKAGE_TARGET)),$(PACKAGE_TARGET))
	cargo build --release --locked -p ferry --bin ferry
endif
	FERRY_GLIBC=$(PACKAGE_GLIBC) SBOM=target/ferry.cdx.json $(PACKAGE_TOOL) packaging/package.sh $(PORTABLE)/$(PACKAGE_TARGET)/release target/package

.PHONY: glibc-check
glibc-check: ## Print the glibc that the build in target/ needs, and fail if it is newer than 2.28
	FERRY_GLIBC=$(PACKAGE_GLIBC) packaging/glibc.sh target/out_ferry.so target/ferry

$(TOOLS)/bin/cargo-cyclonedx:
	cargo install --locked --quiet --version $(CYCLONEDX) --root $(TOOLS) cargo-cyclonedx

.PHONY: sbom
sbom: cargo-present $(TOOLS)/bin/cargo-cyclonedx ## Write the bill of materials (CycloneDX) to target/ferry.cdx.json
	$(call heading,SBOM)
	@packaging/sbom.sh $(TOOLS)/bin/cargo-cyclonedx $(PACKAGE_TARGET) target/ferry.cdx.json

.PHONY: deny
deny: cargo-present ## Check licences, bans and sources of the dependencies; DENY=advisories looks for known vulnerabilities
	$(call heading,Dependencies)
	@command -v cargo-deny >/dev/null || { echo "error: cargo-deny is not installed; remedy: cargo install cargo-deny --locked" >&2; exit 1; }
	cargo deny --locked check $(DENY)

# Miri supports neither sockets nor C code, so only the code that works on memory runs under it. It supports only the SIMD
# levels that are enabled for the compiler.
ifeq ($(shell uname -m),x86_64)
MIRI_LEVEL := -Ctarget-feature=+avx2,+bmi2
endif

.PHONY: miri
miri: cargo-present ## Run the code that handles raw memory under Miri; needs a nightly toolchain with it
	$(call heading,Miri)
	@cargo +nightly miri --version >/dev/null 2>&1 || { echo "error: Miri is not installed; remedy: rustup toolchain install nightly --component miri,rust-src" >&2; exit 1; }
	PROPTEST_CASES=4 MIRIFLAGS=-Zmiri-disable-isolation RUSTFLAGS="$(MIRI_LEVEL)" CARGO_TARGET_DIR=$(CARGO_TARGET_DIR)/miri \
		cargo +nightly miri test --locked --lib -- ffi::lend:: buffers:: delivery::batch:: codec::json:: codec::tests::

.PHONY: fmt
fmt: cargo-present ## Format the Rust sources
	cargo fmt --all

.PHONY: clean
clean: ## Remove everything built or installed in this folder
	cargo clean
	rm -rf target

.PHONY: help
help: ## List the commands
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 28
	@echo
	@echo "Variables:"
	@echo "  FLUENT_BIT=/path/to/fluent-bit   make test: test in the real host too; make demo: the host to run"
	@echo "  HOST=harness|fluent-bit          make demo: the host to run; harness, the default, is bundled"
	@echo "  KILLS=200 SEED=1                 make soak: kills per test, and the seed of their times"
	@echo "  FUZZ_SECONDS=600                 make soak: seconds per fuzz target"
	@echo "  BACKLOG_MB=2000 BACKLOG_SMALL=500000 BACKLOG_IN=.   make bench-backlog: MB in chunks of 2 MB, chunks of 2 KB, and where"
	@echo "  RELOADS=1000                     make soak: hot reloads in one process"
	@echo "  DENY=\"licenses bans sources\"     make deny: the checks to run; advisories needs the network"
	@echo "  PREFIX=/usr/local DESTDIR=       make install, make uninstall: the prefix, and a staging folder"
	@echo "  PACKAGE_TARGET=…                 make package: another target, such as aarch64-unknown-linux-gnu"
	@echo "  FLEET=\"--senders 100\"            make fleet-sim: its options; --help lists them"
	@echo "  LINES=600000 REPEAT=1 ROWS=…     make bench-host: lines, rounds, and words in row names, such as gzip,blob"

# Reports missing tools before anything is built.
.PHONY: tools
tools: cargo-present
	@tests/emulators/install.sh check
	@command -v cc >/dev/null || { echo "error: no C compiler is installed; remedy: apt install gcc libc6-dev" >&2; exit 1; }
	@command -v c++ >/dev/null || { echo "error: no C++ compiler is installed, which the fuzz targets need; remedy: apt install g++" >&2; exit 1; }
	@if [ -n "$(FLUENT_BIT)" ]; then \
		[ -x "$(FLUENT_BIT)" ] || { echo "error: FLUENT_BIT is $(FLUENT_BIT), which cannot be executed; remedy: the full path of a fluent-bit executable" >&2; exit 1; }; \
		"$(FLUENT_BIT)" --version | head -n 1; \
	fi

.PHONY: host-present
host-present:
	@[ -n "$(FLUENT_BIT)" ] || { echo "error: FLUENT_BIT is not set; remedy: FLUENT_BIT=/path/to/fluent-bit" >&2; exit 1; }

.PHONY: cargo-present
cargo-present:
	@command -v cargo >/dev/null || { echo "error: cargo is not on the PATH; remedy: install Rust 1.94.1 or later (rustup)" >&2; exit 1; }
