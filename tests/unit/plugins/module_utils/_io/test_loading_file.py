# Copyright (c) 2026, the colocated.tcp_sm authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Is only a plain file read as a BPF object?"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ansible_collections.colocated.tcp_sm.plugins.module_utils._io.loading import read_object
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.errors import InputError
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.spec import ObjectSpec


@pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
def test_is_anything_else_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = "/dev/zero" if kind == "device" else str(tmp_path / kind)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        os.mkdir(path)
    spec = ObjectSpec.parse({"name": "x", "path": path, "state": "loaded"})
    with pytest.raises(InputError, match=f"Cannot read {path}"):
        read_object(spec)
