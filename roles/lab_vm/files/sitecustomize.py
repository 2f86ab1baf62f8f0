# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep the bytecode of what Python imports from zip files.

Each task of Ansible brings its module in a zip file, which Python compiles anew. In a guest
without KVM that takes seconds, more than all the rest of the task.
"""

import _imp
import marshal
import os
import zipimport

FOLDER = "/var/cache/zipimport"
compile_source = zipimport._compile_source


def kept(pathname, source):
    """Compiled source, from the folder if this source was compiled before."""
    name = f"{FOLDER}/{_imp.source_hash(0, source).hex()}"
    try:
        with open(name, "rb") as file:
            return marshal.loads(file.read())
    except (OSError, EOFError, ValueError, TypeError):
        pass
    code = compile_source(pathname, source)
    part = f"{name}.{os.getpid()}"
    try:
        with open(part, "wb") as file:
            file.write(marshal.dumps(code))
        os.rename(part, name)
    except OSError:
        pass
    return code


zipimport._compile_source = kept
