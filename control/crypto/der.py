"""Just enough DER for the AlgorithmIdentifiers of AUTH payloads (RFC 7427 appendix A): short definite lengths."""

from __future__ import annotations

SEQUENCE = 0x30
OID = 0x06
NULL = 0x05
INTEGER = 0x02


def element(tag: int, content: bytes) -> bytes:
    """One element with a length below 128, which all of ours have."""
    if len(content) > 127:
        raise ValueError(f"DER element of {len(content)} bytes; want at most 127")
    return bytes([tag, len(content)]) + content


def oid(dotted: str) -> bytes:
    """The whole OBJECT IDENTIFIER element for 1.2.840..."""
    first, second, *rest = (int(part) for part in dotted.split("."))
    content = bytearray([40 * first + second])
    for number in rest:
        digits = [number & 0x7F]
        while number := number >> 7:
            digits.append(number & 0x7F | 0x80)
        content += bytes(reversed(digits))
    return element(OID, bytes(content))


def elements(data: bytes) -> list[tuple[int, bytes]]:
    """Tag and content of all elements that `data` consists of; ValueError where it is not whole DER."""
    found, at = [], 0
    while at < len(data):
        if len(data) - at < 2:
            raise ValueError("DER ends within an element's header")
        tag, length = data[at], data[at + 1]
        at += 2
        if length > 127:
            raise ValueError(f"DER length byte {length:#x}; want a length below 128 here")
        if length > len(data) - at:
            raise ValueError(f"DER element of {length} bytes; {len(data) - at} are left")
        found.append((tag, data[at : at + length]))
        at += length
    return found


def only(data: bytes, tag: int) -> bytes:
    """The content of the one element that `data` is; ValueError where it is another, or more."""
    found = elements(data)
    if len(found) != 1 or found[0][0] != tag:
        raise ValueError(f"DER tags {[hex(tag) for tag, _ in found]}; want just {tag:#x}")
    return found[0][1]
