# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# make demo    everything from a bare clone to accelerated redis and nginx, with a report
# make test    every check; make help lists the single steps

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VERSION := $(shell sed -n 's/^version: *//p' galaxy.yml)
TARBALL := build/colocated-tcp_sm-$(VERSION).tar.gz
BIN := .venv/bin
PY := $(BIN)/python

export PATH := $(CURDIR)/.venv/bin:$(PATH):/usr/sbin:/sbin
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
export ANSIBLE_FORCE_COLOR ?= 0

BPF_SRC := $(wildcard bpf/*.bpf.c)
BPF_OBJ := $(BPF_SRC:bpf/%.bpf.c=build/bpf/%.bpf.o)
# asm/types.h lies below the machine's multiarch folder, which clang does not search for BPF.
BPF_CFLAGS := -O2 -g -target bpf -mcpu=v3 -std=gnu11 -Wall -Werror \
	-fdebug-prefix-map=$(CURDIR)=. -Ibpf -Ibpf/include \
	-idirafter /usr/include/$(shell uname -m)-linux-gnu

.PHONY: help
help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

.PHONY: setup
setup:  ## install Debian packages, .venv and collections
	@scripts/setup.sh

.PHONY: bpf
bpf: $(BPF_OBJ)  ## compile the BPF objects to build/bpf
	@test -n "$(BPF_SRC)" || { echo "bpf: no bpf/*.bpf.c to compile" >&2; exit 1; }

build/bpf/%.bpf.o: bpf/%.bpf.c $(wildcard bpf/*.h bpf/*/*.h) Makefile
	@mkdir -p $(@D)
	@echo "bpf: $@"
	@clang $(BPF_CFLAGS) -c $< -o $@
	@llvm-strip -g $@

# What public sockmap demonstrations do, for comparison only: it loses bytes.
NAIVE := build/bpf-naive/naive.bpf.o
$(NAIVE): tests/naive/naive.bpf.c Makefile
	@mkdir -p $(@D)
	@clang $(BPF_CFLAGS) -c $< -o $@
	@llvm-strip -g $@

.PHONY: build
build: bpf  ## fill the roles' files and build the Galaxy tarball
	@$(PY) scripts/build.py $(TARBALL)

# Checks. Each target is one stage of `make test`; see scripts/stages.py for their order.

PYTHON_PATHS = $(wildcard plugins scripts tests roles molecule)

.PHONY: lint lint-ruff lint-format lint-mypy lint-yaml lint-ansible lint-bpf lint-files
lint: lint-ruff lint-format lint-mypy lint-yaml lint-ansible lint-bpf lint-files  ## run every linter
lint-ruff:
	@ruff check $(PYTHON_PATHS)
lint-format:
	@ruff format --check $(PYTHON_PATHS)
lint-mypy:
	@mypy -p ansible_collections.colocated.tcp_sm.plugins
	@mypy scripts tests
lint-yaml:
	@yamllint --strict .
lint-ansible:
	@ansible-lint --offline --profile production
lint-bpf: bpf
	@for f in $(BPF_SRC) tests/naive/*.bpf.c; do \
		clang $(BPF_CFLAGS) -Wextra -Wno-unused-parameter -Wshadow -fsyntax-only $$f; done
	@! llvm-objdump -d $(BPF_OBJ) | grep 'lock \*(' || \
		{ echo "an atomic without BPF_FETCH orders nothing on arm64: use add_fenced" >&2; exit 1; }
lint-files:
	@$(PY) scripts/lint_files.py

JUNIT := build/test/junit
PYTEST = $(PY) -m pytest --junit-xml=$(JUNIT)/$@.xml

.PHONY: unit units sanity integration molecule traffic faults package-test readme-test lab-test bench-test
unit:  ## pytest units
	@$(PYTEST) tests/unit
units: ## ansible-test units
	@$(PY) scripts/run_ansible_test.py units
sanity:  ## ansible-test sanity
	@$(PY) scripts/run_ansible_test.py sanity
integration: build  ## ansible-test integration
	@$(PY) scripts/run_ansible_test.py integration
traffic: build  ## real programs over accelerated sockets
	@$(PYTEST) tests/traffic
faults: build  ## bad input and crashes
	@$(PYTEST) tests/faults
package-test: build  ## install the tarball elsewhere and run from there
	@$(PYTEST) tests/package
readme-test: build  ## the commands of README.md
	@$(PYTEST) tests/readme
lab-test: build  ## the lab and the demo, in a lab of the test's own
	@$(PYTEST) tests/lab
bench-test: build $(NAIVE)  ## a short benchmark, to see that it works
	@ansible-playbook -i inventories/local.yml playbooks/bench.yml -e @tests/bench/short.yml \
		-e bench_naive_object=$(CURDIR)/$(NAIVE) -e bench_report_dir=$(CURDIR)/build/test/report
molecule: build  ## molecule scenarios
	@ANSIBLE_CALLBACKS_ENABLED=ansible.builtin.junit JUNIT_OUTPUT_DIR=$(CURDIR)/$(JUNIT)/molecule \
		molecule test --all --shared-state

.PHONY: test
test: setup  ## everything
	@$(PY) scripts/stages.py

.PHONY: soak
soak: build  ## the long run; SOAK_SECONDS bounds it (default 600)
	@TCP_SM_SOAK_SECONDS=$${SOAK_SECONDS:-600} $(PYTEST) --timeout=0 -m soak tests/traffic

# The lab: this machine as the host, two containers in a network namespace.

LAB := -i inventories/lab

.PHONY: lab demo bench clean-lab
lab: build  ## start the lab
	@ansible-playbook $(LAB) playbooks/lab.yml
demo: setup  ## from a bare clone to a report
	@$(MAKE) --no-print-directory build lab
	@ansible-playbook $(LAB) playbooks/site.yml
	@ansible-playbook $(LAB) playbooks/demo.yml
	@echo "report: build/report/index.html"
bench: setup  ## compare with TCP, a naive sockmap and AF_UNIX
	@$(MAKE) --no-print-directory build $(NAIVE)
	@ansible-playbook -i inventories/local.yml playbooks/bench.yml \
		-e bench_naive_object=$(CURDIR)/$(NAIVE)
clean-lab:  ## remove the lab and what the demo applied
	@ansible-playbook $(LAB) playbooks/remove.yml
	@ansible-playbook $(LAB) playbooks/lab.yml -e lab_state=absent

.PHONY: clean
clean:  ## remove what was built; .venv and caches stay
	@rm -rf build/bpf build/*.tar.gz build/test build/report roles/host/files
