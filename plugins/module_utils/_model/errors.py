# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one exception family that modules and the boot-time runtime turn into messages."""

from __future__ import annotations


class TcpSmError(Exception):
    """Something was refused; the text says what was tried, on what, why, and what to do."""


class InputError(TcpSmError):
    """What the user gave cannot be right, whatever the machine's state."""


class MissingError(TcpSmError):
    """Something is not there yet that an earlier step of the same run may provide.

    Check mode reports it as a warning, because that earlier step was only predicted too.
    """


class ForeignError(TcpSmError):
    """Something is in the way that this collection did not make and will not touch."""


class KernelError(TcpSmError):
    """The kernel refused; `log` is the end of the verifier's log, or empty."""

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log
