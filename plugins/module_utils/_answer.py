# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the modules that change something end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from ansible.module_utils.basic import AnsibleModule

from ._model.errors import KernelError, TcpSmError
from ._options import refuse_nul


class Outcome(Protocol):
    """What all their results have in common."""

    @property
    def changed(self) -> bool: ...
    @property
    def before(self) -> dict[str, Any]: ...
    @property
    def after(self) -> dict[str, Any]: ...
    @property
    def warnings(self) -> list[str]: ...


def answer(module: AnsibleModule, work: Callable[[], Outcome], returned: str) -> None:
    """Do the work and end the module; `returned` is the field that the module returns."""
    refuse_nul(module)
    try:
        result = work()
    except TcpSmError as error:
        log = error.log if isinstance(error, KernelError) else ""
        module.fail_json(msg=str(error), **({"verifier_log": log} if log else {}))
    for warning in result.warnings:
        module.warn(warning)
    module.exit_json(
        changed=result.changed,
        diff={"before": result.before, "after": result.after},
        **{returned: getattr(result, returned)},
    )
