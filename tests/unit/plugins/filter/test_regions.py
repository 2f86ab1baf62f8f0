# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Do the filters about regions give what the agent reads, and errors as Ansible shows them?"""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.colocated.tcp_sm.plugins.filter import regions

FILTERS = regions.FilterModule().filters()


def test_a_region_is_spelled_out() -> None:
    (one,) = FILTERS["tcp_sm_regions"]([{"name": "x", "size": "16M"}], "/run/here")
    assert one["socket"] == "/run/here/x.sock"


def test_a_mistake_names_the_variable() -> None:
    with pytest.raises(AnsibleFilterError, match=r"tcp_sm_regions: mine\[0\] \(x\): size: 3M"):
        FILTERS["tcp_sm_regions"]([{"name": "x", "size": "3M"}], prefix="mine")


def test_what_is_gone_needs_lists_of_regions() -> None:
    assert FILTERS["tcp_sm_regions_gone"]([], [])["regions"] == []
    with pytest.raises(AnsibleFilterError, match="as the filter tcp_sm_regions gives them"):
        FILTERS["tcp_sm_regions_gone"]([{"name": "x"}], [])
