# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""BPF Type Format: parse it, compare layouts, turn bytes into fields and back.

Source of the format: Documentation/bpf/btf.rst of Linux. Values that pass in and out are
plain data: integers, booleans, strings, lists, and dicts of fields.
"""

from __future__ import annotations

import functools
import ipaddress
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .errors import InputError

MAGIC = 0xEB9F
(
    VOID,
    INT,
    PTR,
    ARRAY,
    STRUCT,
    UNION,
    ENUM,
    FWD,
    TYPEDEF,
    VOLATILE,
    CONST,
    RESTRICT,
    FUNC,
    FUNC_PROTO,
    VAR,
    DATASEC,
    FLOAT,
    DECL_TAG,
    TYPE_TAG,
    ENUM64,
) = range(20)
SIGNED, CHAR, BOOL = 1, 2, 4
POINTER_SIZE = 8
NAMELESS = (TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG)
# Bytes that follow the common 12 bytes: (fixed, per member).
TRAILERS = {
    INT: (4, 0),
    ARRAY: (12, 0),
    STRUCT: (0, 12),
    UNION: (0, 12),
    ENUM: (0, 8),
    FUNC_PROTO: (0, 8),
    VAR: (4, 0),
    DATASEC: (0, 12),
    DECL_TAG: (4, 0),
    ENUM64: (0, 12),
}


@dataclass(frozen=True)
class Member:
    """One field; `bit_size` is zero where it is not a bit field."""

    name: str
    type_id: int
    bit_offset: int
    bit_size: int = 0


@dataclass(frozen=True)
class Type:
    """One BTF type. `ref` is the size in bytes, or the type id that it refers to."""

    kind: int
    name: str
    ref: int
    encoding: int = 0
    bits: int = 0
    count: int = 0
    members: tuple[Member, ...] = ()
    values: dict[str, int] = field(default_factory=dict)


class Btf:
    """The types of one BPF object; type id 0 is void."""

    def __init__(self, raw: bytes) -> None:
        """Parse `raw`, a whole .BTF section; InputError where it is malformed."""
        try:
            self.types = list(_parse(raw))
        except (struct.error, IndexError, ValueError) as error:
            raise InputError(f"The BTF of this map is malformed: {error}") from error
        self.order = "<" if raw[:2] == b"\x9f\xeb" else ">"

    def resolve(self, type_id: int) -> Type:
        """The type behind typedefs and qualifiers."""
        for _hop in range(len(self.types)):
            found = self.types[type_id]
            if found.kind not in NAMELESS:
                return found
            type_id = found.ref
        raise InputError(f"BTF type {type_id} refers to itself")

    def display(self, type_id: int) -> str:
        """The type's name as C would write it."""
        found = self.types[type_id]
        if found.kind in (STRUCT, UNION, ENUM, ENUM64):
            word = {STRUCT: "struct", UNION: "union"}.get(found.kind, "enum")
            return f"{word} {found.name}".strip()
        if found.kind == ARRAY:
            return f"{self.display(found.ref)}[{found.count}]"
        if found.kind in NAMELESS and not found.name:
            return self.display(found.ref)
        return found.name or "void"

    def size(self, type_id: int) -> int:
        """Size in bytes."""
        found = self.resolve(type_id)
        if found.kind == ARRAY:
            return found.count * self.size(found.ref)
        if found.kind == PTR:
            return POINTER_SIZE
        if found.kind in (INT, STRUCT, UNION, ENUM, ENUM64, FLOAT, DATASEC):
            return found.ref
        raise InputError(f"BTF type {self.display(type_id)} has no size")

    def layout(self, type_id: int) -> object:
        """A comparable description of the memory layout: two equal ones may share data.

        Names of fields count (their meaning would have moved), names of types do not.
        """
        found = self.resolve(type_id)
        if found.kind == ARRAY:
            return ("array", found.count, self.layout(found.ref))
        if found.kind in (STRUCT, UNION):
            return (
                found.kind,
                found.ref,
                tuple(
                    (member.name, member.bit_offset, member.bit_size, self.layout(member.type_id))
                    for member in found.members
                ),
            )
        if found.kind == INT:
            return ("int", found.ref, found.encoding & SIGNED, found.bits)
        if found.kind in (ENUM, ENUM64):
            return ("enum", found.ref)
        if found.kind == DATASEC:
            variables = [self.types[member.type_id] for member in found.members]
            return (
                "section",
                found.ref,
                tuple(
                    (variable.name, member.bit_offset, self.layout(variable.ref))
                    for variable, member in zip(variables, found.members, strict=True)
                ),
            )
        return (found.kind, self.size(type_id) if found.kind in (PTR, FLOAT) else 0)

    def fields(self, type_id: int) -> list[str]:
        """Names that a dict for this struct or union may use."""
        names: list[str] = []
        for member in self.resolve(type_id).members:
            names.extend([member.name] if member.name else self.fields(member.type_id))
        return names

    # -- bytes to plain data ----------------------------------------------------------------

    def decode(self, type_id: int, data: bytes, name: str = "") -> Any:
        """Plain data for `data`; `name` is the field's and only picks how bytes are shown."""
        found = self.resolve(type_id)
        if found.kind == INT:
            return self._decode_int(found, data)
        if found.kind in (ENUM, ENUM64):
            return self._decode_enum(found, data)
        if found.kind == ARRAY:
            return self._decode_array(found, data, name)
        if found.kind in (STRUCT, UNION):
            return self._decode_struct(found, data)
        return data[: self.size(type_id)].hex()

    def _number(self, data: bytes, signed: bool) -> int:
        return int.from_bytes(data, "little" if self.order == "<" else "big", signed=signed)

    def _decode_int(self, found: Type, data: bytes) -> int | bool:
        number = self._number(data[: found.ref], bool(found.encoding & SIGNED))
        return bool(number) if found.encoding & BOOL else number

    def _decode_enum(self, found: Type, data: bytes) -> str | int:
        number = self._number(data[: found.ref], any(v < 0 for v in found.values.values()))
        return next((name for name, value in found.values.items() if value == number), number)

    def _decode_array(self, found: Type, data: bytes, name: str) -> Any:
        size = self.size(found.ref)
        if self._is_byte(found.ref):
            raw = data[: found.count]
            if self.resolve(found.ref).encoding & (CHAR | SIGNED):
                return raw.split(b"\0")[0].decode("utf-8", "backslashreplace")
            return show_address(raw) if len(raw) in (4, 16) and "addr" in name else raw.hex()
        return [self.decode(found.ref, data[i * size : (i + 1) * size]) for i in range(found.count)]

    def _is_byte(self, type_id: int) -> bool:
        found = self.resolve(type_id)
        return found.kind == INT and found.ref == 1 and not found.encoding & BOOL

    def _decode_struct(self, found: Type, data: bytes) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for member in found.members:
            if member.bit_size:
                fields[member.name] = self._read_bits(member, data)
                continue
            start = member.bit_offset // 8
            value = self.decode(
                member.type_id, data[start : start + self.size(member.type_id)], member.name
            )
            if member.name:
                fields[member.name] = value
            elif isinstance(value, dict):
                fields.update(value)
        return fields

    def _bit_span(self, member: Member, total: int) -> tuple[int, int]:
        """(shift, mask) of a bit field within `total` bytes read as one number."""
        shift = member.bit_offset
        if self.order == ">":
            shift = total * 8 - member.bit_offset - member.bit_size
        return shift, (1 << member.bit_size) - 1

    def _read_bits(self, member: Member, data: bytes) -> int:
        shift, mask = self._bit_span(member, len(data))
        number = (self._number(data, False) >> shift) & mask
        signed = self.resolve(member.type_id).encoding & SIGNED
        return number - mask - 1 if signed and number > mask >> 1 else number

    # -- plain data to bytes ----------------------------------------------------------------

    def encode(
        self,
        type_id: int,
        value: Any,
        base: bytes | None = None,
        at: str = "value",
    ) -> bytes:
        """Bytes for `value`; fields that a dict leaves out keep those of `base` (or are zero).

        `at` names the place in messages. InputError: unknown field, wrong type, out of range.
        """
        size = self.size(type_id)
        base = bytes(size) if base is None else base[:size]
        found = self.resolve(type_id)
        if found.kind == INT:
            return self._encode_int(type_id, value, at)
        if found.kind in (ENUM, ENUM64):
            return self._encode_enum(type_id, value, at)
        if found.kind == ARRAY:
            return self._encode_array(type_id, value, base, at)
        if found.kind in (STRUCT, UNION):
            return self._encode_struct(type_id, value, base, at)
        raise InputError(f"{at}: {self.display(type_id)} cannot be set")

    def _pack(self, number: int, size: int, signed: bool) -> bytes:
        return number.to_bytes(size, "little" if self.order == "<" else "big", signed=signed)

    def _encode_int(self, type_id: int, value: Any, at: str) -> bytes:
        found = self.resolve(type_id)
        signed = bool(found.encoding & SIGNED)
        bits = 1 if found.encoding & BOOL else found.ref * 8
        number = in_range(value, bits, signed, self.display(type_id), at)
        return self._pack(number, found.ref, signed)

    def _encode_enum(self, type_id: int, value: Any, at: str) -> bytes:
        found = self.resolve(type_id)
        signed = any(number < 0 for number in found.values.values())
        if isinstance(value, str) and value in found.values:
            return self._pack(found.values[value], found.ref, signed)
        try:
            number = in_range(value, found.ref * 8, signed, self.display(type_id), at)
        except InputError as error:
            names = ", ".join(found.values)
            raise InputError(
                f"{at}: {value!r} is not a value of {self.display(type_id)} ({names})"
            ) from error
        return self._pack(number, found.ref, signed)

    def _encode_array(self, type_id: int, value: Any, base: bytes, at: str) -> bytes:
        found = self.resolve(type_id)
        if self._is_byte(found.ref) and isinstance(value, str):
            is_text = bool(self.resolve(found.ref).encoding & (CHAR | SIGNED))
            return parse_bytes(value, found.count, is_text, at)
        if not isinstance(value, (list, tuple)):
            raise InputError(
                f"{at}: {self.display(type_id)} needs a list of {found.count} values, not {value!r}"
            )
        if len(value) != found.count:
            raise InputError(
                f"{at}: {self.display(type_id)} has {found.count} values, {len(value)} were given"
            )
        size = self.size(found.ref)
        return b"".join(
            self.encode(found.ref, item, base[i * size : (i + 1) * size], f"{at}[{i}]")
            for i, item in enumerate(value)
        )

    def _encode_struct(self, type_id: int, value: Any, base: bytes, at: str) -> bytes:
        if not isinstance(value, dict):
            raise InputError(
                f"{at}: {self.display(type_id)} needs a dictionary of fields "
                f"({', '.join(self.fields(type_id))}), not {value!r}"
            )
        known = self.fields(type_id)
        for name in value:
            if name not in known:
                raise InputError(
                    f"{at}: unknown field {name!r}; {self.display(type_id)} has {', '.join(known)}"
                )
        if self.resolve(type_id).kind == UNION and len(value) > 1:
            raise InputError(
                f"{at}: give one field of {self.display(type_id)}, not "
                f"{', '.join(value)}: they share memory"
            )
        data = bytearray(base)
        for member in self.resolve(type_id).members:
            self._encode_member(member, value, data, at)
        return bytes(data)

    def _encode_member(
        self,
        member: Member,
        value: dict[str, Any],
        data: bytearray,
        at: str,
    ) -> None:
        start = member.bit_offset // 8
        if not member.name:
            inner = {key: value[key] for key in self.fields(member.type_id) if key in value}
            if inner:
                end = start + self.size(member.type_id)
                data[start:end] = self.encode(member.type_id, inner, bytes(data[start:end]), at)
        elif member.name in value:
            place = f"{at}.{member.name}"
            if member.bit_size:
                self._write_bits(member, value[member.name], data, place)
                return
            end = start + self.size(member.type_id)
            data[start:end] = self.encode(
                member.type_id, value[member.name], bytes(data[start:end]), place
            )

    def _write_bits(self, member: Member, value: Any, data: bytearray, at: str) -> None:
        signed = bool(self.resolve(member.type_id).encoding & SIGNED)
        number = in_range(value, member.bit_size, signed, f"{member.bit_size}-bit field", at)
        shift, mask = self._bit_span(member, len(data))
        whole = self._number(bytes(data), False) & ~(mask << shift)
        data[:] = self._pack(whole | (number & mask) << shift, len(data), False)


@functools.lru_cache(maxsize=8)
def parse_btf(raw: bytes) -> Btf:
    """Btf(raw), parsed once: all maps of an object share theirs."""
    return Btf(raw)


def in_range(value: Any, bits: int, signed: bool, kind: str, at: str) -> int:
    """`value` as an integer of `bits` bits; decimal and 0x strings are taken too."""
    if isinstance(value, str):
        try:
            value = int(value.strip(), 0)
        except ValueError:
            raise InputError(f"{at}: {value!r} is not a number ({kind})") from None
    if not isinstance(value, int):
        raise InputError(f"{at}: {value!r} is not a number ({kind})")
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    if not low <= value <= high:
        raise InputError(f"{at}: {value} is out of range for {kind} ({low} to {high})")
    return int(value)


def parse_bytes(text: str, count: int, is_text: bool, at: str) -> bytes:
    """`count` bytes from an IP address (4 or 16 bytes), hex digits, or text for char arrays."""
    if is_text:
        raw = text.encode()
        if len(raw) >= count:
            raise InputError(f"{at}: {text!r} has {len(raw)} bytes, at most {count - 1} fit")
        return raw.ljust(count, b"\0")
    if count in (4, 16):
        try:
            return pack_address(text, count)
        except ValueError:
            pass
    try:
        raw = bytes.fromhex(text.removeprefix("0x").replace(":", ""))
    except ValueError:
        what = "an IP address, hex digits" if count in (4, 16) else "hex digits"
        raise InputError(f"{at}: {text!r} is not {what} or a list of {count} bytes") from None
    if len(raw) != count:
        raise InputError(f"{at}: {text!r} has {len(raw)} bytes, {count} are needed")
    return raw


def pack_address(text: str, count: int) -> bytes:
    """Network-order bytes; IPv4 in 16 bytes is v4-mapped. ValueError if it does not fit."""
    address = ipaddress.ip_address(text)
    if len(address.packed) == count:
        return address.packed
    if address.version == 4 and count == 16:
        return bytes(10) + b"\xff\xff" + address.packed
    raise ValueError(f"{text} does not fit into {count} bytes")


def show_address(raw: bytes) -> str:
    """The inverse of pack_address."""
    if len(raw) == 16 and raw[:12] == bytes(10) + b"\xff\xff":
        raw = raw[12:]
    return str(ipaddress.ip_address(raw))


def _parse(raw: bytes) -> Iterator[Type]:
    """Yield the types of a .BTF section in the order of their ids."""
    order = {b"\x9f\xeb": "<", b"\xeb\x9f": ">"}.get(raw[:2])
    if order is None:
        raise InputError("The BTF of this map is malformed: wrong magic number")
    header, type_off, type_len, str_off, str_len = struct.unpack_from(order + "5I", raw, 4)
    types = raw[header + type_off : header + type_off + type_len]
    strings = raw[header + str_off : header + str_off + str_len]
    yield Type(VOID, "void", 0)
    at = 0
    while at < len(types):
        name_off, info, ref = struct.unpack_from(order + "3I", types, at)
        kind, vlen, flag = info >> 24 & 0x1F, info & 0xFFFF, bool(info >> 31)
        if kind > ENUM64 or kind == VOID:
            raise InputError(f"The BTF of this map is malformed: unknown kind {kind}")
        fixed, per_member = TRAILERS.get(kind, (0, 0))
        size = fixed + per_member * vlen
        extra = struct.unpack_from(f"{order}{size // 4}I", types, at + 12)
        yield _Parser(strings, flag, extra).parse(kind, _string(strings, name_off), ref)
        at += 12 + size


@dataclass(frozen=True)
class _Parser:
    """Reads what follows a type's first 12 bytes; `flag` is its kind_flag."""

    strings: bytes
    flag: bool
    extra: tuple[int, ...]

    def parse(self, kind: int, name: str, ref: int) -> Type:
        """The whole type."""
        if kind == INT:
            return Type(
                kind, name, ref, encoding=self.extra[0] >> 24 & 0xF, bits=self.extra[0] & 0xFF
            )
        if kind == ARRAY:
            return Type(kind, name, self.extra[0], count=self.extra[2])
        if kind in (STRUCT, UNION, DATASEC):
            members = self._variables() if kind == DATASEC else self._members()
            return Type(kind, name, ref, members=members)
        if kind in (ENUM, ENUM64):
            return Type(kind, name, ref, values=self._values(kind))
        return Type(kind, name, ref)

    def _members(self) -> tuple[Member, ...]:
        return tuple(
            Member(
                _string(self.strings, name),
                type_id,
                where & 0xFFFFFF if self.flag else where,
                where >> 24 if self.flag else 0,
            )
            for name, type_id, where in self._triples()
        )

    def _variables(self) -> tuple[Member, ...]:
        return tuple(Member("", type_id, start * 8) for type_id, start, _size in self._triples())

    def _triples(self) -> Iterator[tuple[int, ...]]:
        return (self.extra[i : i + 3] for i in range(0, len(self.extra), 3))

    def _values(self, kind: int) -> dict[str, int]:
        bits, width = (32, 2) if kind == ENUM else (64, 3)
        values = {}
        for i in range(0, len(self.extra), width):
            number = self.extra[i + 1] | (self.extra[i + 2] << 32 if width == 3 else 0)
            if self.flag and number >> (bits - 1):
                number -= 1 << bits
            values[_string(self.strings, self.extra[i])] = number
        return values


def _string(strings: bytes, offset: int) -> str:
    return strings[offset : strings.index(b"\0", offset)].decode()
