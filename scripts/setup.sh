#!/usr/bin/env bash
# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Install what the other make targets need: Debian packages, .venv, collections.
# A second run finds everything in place and changes nothing. No service is started or enabled.
set -euo pipefail
cd "$(dirname "$0")/.."
export LC_ALL=C PATH="$PATH:/usr/sbin:/sbin"
mkdir -p build
exec 9>build/.setup.lock
flock 9

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }
items() { grep -vE '^[[:space:]]*(#|$)' "$1"; }

# The machine's pip may be told of places that do not exist, or lack a package: it finds others.
pip() {
	.venv/bin/pip --disable-pip-version-check "$@" \
		2> >(sed -u '/^WARNING: Location .* is ignored: /d' >&2)
}

# Names of the packages in requirements/apt.txt that are not installed.
missing_packages() {
	local have
	have=$(dpkg-query -W -f '${db:Status-Abbrev} ${Package}\n' | awk '$1 == "ii" { print $2 }')
	comm -23 <(items requirements/apt.txt | sed "s/@PYTHON@/$(python_version)/" | sort -u) \
		<(sort -u <<<"$have")
}

# What Debian calls its Python: 3.11 on Debian 12, 3.13 on Debian 13.
python_version() {
	apt-cache depends python3 2>/dev/null |
		sed -n 's/.*Depends: python\(3\.[0-9]*\)$/\1/p' | head -1
}

# Debian enables and starts services that it installs; the lab has its own in containers.
install_packages() {
	local policy=/usr/sbin/policy-rc.d made='' unit
	local -a fresh=("$@")
	[ "$(id -u)" = 0 ] || die "these packages are missing and installing them needs root: $*"
	if [ ! -e "$policy" ]; then
		printf '#!/bin/sh\nexit 101\n' >"$policy"
		chmod 755 "$policy"
		made=$policy
	fi
	# shellcheck disable=SC2064  # the path is known now
	[ -z "$made" ] || trap "rm -f $made" EXIT
	apt-get update -q
	DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${fresh[@]}" ||
		die "apt-get could not install: ${fresh[*]}; see its messages above"
	for unit in redis-server nginx; do
		case " ${fresh[*]} " in
		*" $unit"*) deb-systemd-helper disable "$unit.service" >/dev/null 2>&1 || : ;;
		esac
	done
	[ -z "$made" ] || rm -f "$made"
	trap - EXIT
}

setup_packages() {
	local -a missing
	command -v dpkg-query >/dev/null ||
		die "this is not Debian; the lab, the demo and the tests need Debian 12 or 13"
	mapfile -t missing < <(missing_packages)
	if [ "${#missing[@]}" -eq 0 ]; then
		say "Debian packages: all present"
	else
		say "Debian packages: installing ${missing[*]}"
		install_packages "${missing[@]}"
	fi
}

# The distribution's Python, so that version managers on PATH do not decide.
setup_venv() {
	local python=/usr/bin/python3 want
	[ -x "$python" ] || die "$python is missing; install python3"
	want=$({ "$python" -VV; cat requirements/dev.txt; pwd; } | sha256sum | cut -d' ' -f1)
	if [ "$(cat .venv/.requirements 2>/dev/null)" = "$want" ]; then
		say ".venv: up to date"
		return
	fi
	say ".venv: installing $(items requirements/dev.txt | wc -l) pinned packages"
	rm -f .venv/.requirements
	"$python" -m venv --clear .venv
	pip install -q --no-deps -r requirements/dev.txt
	pip check
	printf '%s\n' "$want" >.venv/.requirements
}

# Other collections come out of the PyPI package `ansible`, which works without Galaxy.
setup_collections() {
	local root=build/collections/ansible_collections want tmp
	want=$(cat requirements/collections.txt requirements.yml | sha256sum | cut -d' ' -f1)
	if [ "$(cat "$root/.requirements" 2>/dev/null)" = "$want" ]; then
		say "collections: up to date"
	else
		tmp=$(mktemp -d)
		say "collections: unpacking $(collections | tr '\n' ' ')"
		pip download -q --no-deps -d "$tmp" -r requirements/collections.txt
		mkdir -p "$root"
		collections | sed 's#\.#/#; s#.*#ansible_collections/&/*#' |
			xargs unzip -qo "$tmp"/ansible-*.whl -d "$(dirname "$root")"
		rm -rf "$tmp"
		printf '%s\n' "$want" >"$root/.requirements"
	fi
	link_own_collection "$root/colocated/tcp_sm"
}

collections() { sed -n 's/^ *- name: *//p' requirements.yml; }

# A folder of links rather than one link to the repository: nothing that walks it finds itself.
link_own_collection() {
	local entry
	mkdir -p "$1"
	for entry in galaxy.yml meta playbooks plugins roles; do
		[ -L "$1/$entry" ] || ln -s "../../../../../$entry" "$1/$entry"
	done
}

setup_packages
setup_venv
setup_collections
