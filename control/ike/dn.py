"""X.500 distinguished names: DER as certificates and ID payloads carry it <-> text as operators write it.

Walk: `encode_name` turns (attribute, text) pairs into DER, `decode_name` turns DER back, `parse_name` and
`format_name` are the textual side (`C=DE, O=Example, CN=gw`), and `comparable` is what two equal names share.
Text keeps the order of the DER, as strongSwan's does; a backslash takes the next character as it is, and a
value may stand in double quotes. Limits: no multi-valued RDN is made from text (they are read and shown); 4 KiB of DER.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

# Attribute types by the word that operators write; the first word of an OID is the one shown.
_WORDS: dict[str, str] = {
    "C": "2.5.4.6",
    "ST": "2.5.4.8",
    "L": "2.5.4.7",
    "street": "2.5.4.9",
    "O": "2.5.4.10",
    "OU": "2.5.4.11",
    "CN": "2.5.4.3",
    "S": "2.5.4.4",
    "serialNumber": "2.5.4.5",
    "SN": "2.5.4.5",
    "T": "2.5.4.12",
    "title": "2.5.4.12",
    "D": "2.5.4.13",
    "postalCode": "2.5.4.17",
    "N": "2.5.4.41",
    "G": "2.5.4.42",
    "givenName": "2.5.4.42",
    "I": "2.5.4.43",
    "ID": "2.5.4.45",
    "dnQualifier": "2.5.4.46",
    "dmdName": "2.5.4.54",
    "pseudonym": "2.5.4.65",
    "UID": "0.9.2342.19200300.100.1.1",
    "DC": "0.9.2342.19200300.100.1.25",
    "E": "1.2.840.113549.1.9.1",
    "Email": "1.2.840.113549.1.9.1",
    "emailAddress": "1.2.840.113549.1.9.1",
    "UN": "1.2.840.113549.1.9.2",
    "unstructuredName": "1.2.840.113549.1.9.2",
    "UA": "1.2.840.113549.1.9.8",
    "unstructuredAddress": "1.2.840.113549.1.9.8",
    "EN": "2.16.840.1.113730.3.1.3",
    "employeeNumber": "2.16.840.1.113730.3.1.3",
}
_OIDS = {word.lower(): oid for word, oid in _WORDS.items()}
_SHOWN: dict[str, str] = {}
for _word, _oid in _WORDS.items():
    _SHOWN.setdefault(_oid, _word)
_IA5 = {_WORDS["E"], _WORDS["UN"], _WORDS["DC"]}  # RFC 5280 appendix A: these are IA5String

LONGEST = 4096  # bytes of a name: anyone may send one, and thousands of attributes take long
_SEQUENCE, _SET, _OID = 0x30, 0x31, 0x06
_PRINTABLE, _UTF8, _IA5STRING = 0x13, 0x0C, 0x16
_CODECS = {
    0x0C: "utf-8",
    0x12: "ascii",
    0x13: "ascii",
    0x14: "latin-1",
    0x16: "ascii",
    0x1A: "ascii",
    0x1C: "utf-32-be",
    0x1E: "utf-16-be",
}
_PRINTABLE_TEXT = re.compile(r"[A-Za-z0-9 '()+,./:=?-]*")
_DOTTED = re.compile(r"[0-2](\.[0-9]{1,20}){1,30}")


@dataclass(frozen=True, kw_only=True)
class Attribute:
    """One attribute of a name: its type as a dotted OID and its value, by tag and bytes of the DER."""

    oid: str
    tag: int
    data: bytes

    def text(self) -> str | None:
        """The value as text; None for a type that is no string, or bytes that are none."""
        try:
            return self.data.decode(_CODECS[self.tag])
        except (KeyError, UnicodeDecodeError):
            return None


Name = tuple[tuple[Attribute, ...], ...]  # relative distinguished names, each one or more attributes


def decode_name(data: bytes) -> Name:
    """The name that DER `data` holds, all of it; ValueError says what is wrong with the bytes."""
    if len(data) > LONGEST:
        raise ValueError(f"a distinguished name has {len(data)} bytes, at most {LONGEST} are taken")
    tag, body, rest = _element(data)
    if tag != _SEQUENCE or rest:
        raise ValueError(
            f"a distinguished name begins with tag 0x{tag:02x} and has {len(rest)} bytes behind it"
        )
    name = []
    for set_tag, members in _elements(body):
        if set_tag != _SET:
            raise ValueError(f"a distinguished name has tag 0x{set_tag:02x} where a SET belongs")
        attributes = tuple(_attribute(tag, body) for tag, body in _elements(members))
        if not attributes:
            raise ValueError("a distinguished name has an empty SET")
        name.append(attributes)
    return tuple(name)


def _attribute(tag: int, body: bytes) -> Attribute:
    parts = list(_elements(body)) if tag == _SEQUENCE else []
    if len(parts) != 2 or parts[0][0] != _OID:
        raise ValueError("a distinguished name has an attribute that is not a pair of type and value")
    return Attribute(oid=_decode_oid(parts[0][1]), tag=parts[1][0], data=parts[1][1])


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    while data:
        tag, body, data = _element(data)
        yield tag, body


def _element(data: bytes) -> tuple[int, bytes, bytes]:
    """Tag, content and what follows of the DER element that begins `data` (lengths below 64 KiB)."""
    if len(data) < 2:
        raise ValueError(f"a DER element of {len(data)} bytes, too short for its header")
    start, length = 2, data[1]
    if length in (0x81, 0x82):
        start = length - 0x7E
        length = int.from_bytes(data[2:start], "big")
    elif length >= 0x80:
        raise ValueError(f"a DER length that begins with 0x{length:02x}")
    if len(data) < start + length:
        raise ValueError(f"a DER element of {length} bytes with only {max(0, len(data) - start)} there")
    return data[0], data[start : start + length], data[start + length :]


def _decode_oid(body: bytes) -> str:
    """Dotted text of an OID's content (X.690 section 8.19)."""
    if not body or len(body) > 64 or body[-1] & 0x80:
        raise ValueError("a distinguished name has a malformed attribute type")
    numbers, value = [], 0
    for byte in body:
        value = value << 7 | byte & 0x7F
        if not byte & 0x80:
            numbers.append(value)
            value = 0
    first = min(numbers[0] // 40, 2)
    return ".".join(str(number) for number in (first, numbers[0] - 40 * first, *numbers[1:]))


def encode_name(pairs: list[tuple[str, str]]) -> bytes:
    """DER of a name given as (dotted OID, text) pairs, one RDN each."""
    rdns = b""
    for oid, text in pairs:
        if oid in _IA5 and text.isascii():
            tag = _IA5STRING
        else:
            tag = _PRINTABLE if _PRINTABLE_TEXT.fullmatch(text) else _UTF8
        value = _der(_OID, _encode_oid(oid)) + _der(tag, text.encode())
        rdns += _der(_SET, _der(_SEQUENCE, value))
    return _der(_SEQUENCE, rdns)


def _der(tag: int, body: bytes) -> bytes:
    size = len(body)
    if size < 0x80:
        return bytes((tag, size)) + body
    if size < 0x100:
        return bytes((tag, 0x81, size)) + body
    if size < 0x10000:
        return bytes((tag, 0x82)) + size.to_bytes(2, "big") + body
    raise ValueError(f"a name of {size} bytes, want less than 65536")


def _encode_oid(oid: str) -> bytes:
    first, second, *others = (int(number) for number in oid.split("."))
    if first < 2 and second > 39:
        raise ValueError(f"{oid} is no object identifier")
    body = b""
    for number in (40 * first + second, *others):
        groups = bytes((number & 0x7F,))
        while number := number >> 7:
            groups = bytes((0x80 | number & 0x7F,)) + groups
        body += groups
    return body


def parse_name(text: str) -> bytes:
    """DER of `C=DE, O=Example, CN=gw`, or of the same with `/` before each part; ValueError says what is wrong."""
    separator = "/" if text.startswith("/") else ","
    pairs = []
    for part in _split(text, separator):
        word, equals, value = part.partition("=")
        word = word.strip()
        if not equals:
            raise ValueError(f"{_short(part)} is no TYPE=value")
        oid = _OIDS.get(word.lower(), word if _DOTTED.fullmatch(word) else "")
        if not oid:
            raise ValueError(f"{_short(word)} is no attribute type (C, ST, L, O, OU, CN, E, ...)")
        pairs.append((oid, _unquote(value.strip())))
    if not pairs:
        raise ValueError("no attribute; want something like C=DE, O=Example, CN=gw")
    return encode_name(pairs)


def _split(text: str, separator: str) -> list[str]:
    """The parts of `text` between separators that stand neither in quotes nor behind a backslash."""
    parts, part, quoted, escaped = [], "", False, False
    for character in text:
        if escaped:
            escaped = False
        elif character == "\\":
            escaped = True
        elif character == '"':
            quoted = not quoted
        elif character == separator and not quoted:
            parts.append(part)
            part = ""
            continue
        part += character
    if quoted:
        raise ValueError("a double quote is not closed")
    return [part for part in (*parts, part) if part.strip()]


def _unquote(text: str) -> str:
    if len(text) >= 2 and text[0] == text[-1] == '"':
        text = text[1:-1]
    return re.sub(r"\\(.)", r"\1", text)


def format_name(name: Name) -> str:
    """The name as text that `parse_name` reads back (a multi-valued RDN is joined by `+`, which it does not)."""
    return ", ".join("+".join(_format(attribute) for attribute in rdn) for rdn in name)


def _format(attribute: Attribute) -> str:
    text = attribute.text()
    value = f"#{attribute.data.hex()}" if text is None else re.sub(r'([,"\\])', r"\\\1", text)
    return f"{_SHOWN.get(attribute.oid, attribute.oid)}={value}"


Comparable = tuple[tuple[tuple[str, str], ...], ...]


def comparable(name: Name) -> Comparable:
    """What two equal names share: case and runs of blanks do not count (RFC 5280 section 7.1), nor the string type."""
    return tuple(tuple(sorted((attribute.oid, _fold(attribute)) for attribute in rdn)) for rdn in name)


def _fold(attribute: Attribute) -> str:
    text = attribute.text()
    return f"#{attribute.tag}:{attribute.data.hex()}" if text is None else " ".join(text.casefold().split())


def _short(text: str) -> str:
    text = text.strip()
    return repr(text if len(text) <= 60 else text[:60] + "...")
