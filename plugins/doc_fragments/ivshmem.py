# Copyright (c) 2026, the colocated.tcp_sm authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation that the modules for regions and chunks share."""

from __future__ import annotations


class ModuleDocFragment:
    """Options, requirements and attributes of every module that changes a region."""

    DOCUMENTATION = r"""
options:
  lock_timeout:
    description:
      - Seconds to wait while another run, or the agent, changes the region.
      - After that the module fails and has changed nothing.
    type: int
    default: 30
requirements:
  - root, or a user who may write the region's file and look at the processes that use it
  - Linux 5.6 or newer on a little-endian machine
  - Python 3.11 or newer on the target
attributes:
  check_mode:
    support: full
    description: Can run in C(check_mode) and return changed status prediction without modifying
      the target.
  diff_mode:
    support: full
    description: Will return details on what has changed (or possibly needs changing in
      C(check_mode)), when in diff mode.
  idempotent:
    support: full
    description: When run twice in a row outside check mode, with the same arguments, the second
      invocation indicates no change.
  platform:
    support: full
    description: Target operating system that can be operated against.
    platforms: linux
"""
