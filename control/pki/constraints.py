"""Name constraints of a CA (RFC 5280 section 4.2.1.10): which names the certificates below it may have.

`violation` is asked for every certificate below a constrained CA. Host names, mail addresses, IP addresses and
directory names are compared; a constraint on any other kind refuses a certificate that has such a name. So does a
certificate with so many names, below a CA with so many constraints, that comparing them would hold everything else up.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network

from cryptography import x509

from control.ike import dn
from control.pki import names
from dataplane.model import Address

MAX_COMPARISONS = 50_000  # of a certificate's names with a CA's constraints
_COMPARED = (x509.DNSName, x509.RFC822Name, x509.IPAddress, x509.DirectoryName)


def violation(certificate: x509.Certificate, constraints: x509.NameConstraints) -> str:
    """Why the names of `certificate` break `constraints`; "" when they do not."""
    found: list[x509.GeneralName] = list(names.alternative_names(certificate))
    if len(certificate.subject.rdns):
        found.append(x509.DirectoryName(certificate.subject))
    subtrees = (*(constraints.permitted_subtrees or ()), *(constraints.excluded_subtrees or ()))
    if len(found) * len(subtrees) > MAX_COMPARISONS:
        return f"its {len(found)} names and {len(subtrees)} constraints are more than are compared"
    for name in found:
        if not isinstance(name, _COMPARED) and _constrains(constraints, type(name)):
            return f"{_show(name)} is of a kind whose constraints are not supported"
        for subtree in constraints.excluded_subtrees or ():
            if type(subtree) is type(name) and _within(name, subtree):
                return f"{_show(name)} is within the excluded {_show(subtree)}"
        permitted = [
            subtree for subtree in constraints.permitted_subtrees or () if type(subtree) is type(name)
        ]
        if permitted and not any(_within(name, subtree) for subtree in permitted):
            allowed = ", ".join(map(_show, permitted[:4]))
            return f"{_show(name)} is not within the permitted {allowed}"
    return ""


def _constrains(constraints: x509.NameConstraints, kind: type[x509.GeneralName]) -> bool:
    subtrees = (*(constraints.permitted_subtrees or ()), *(constraints.excluded_subtrees or ()))
    return any(type(subtree) is kind for subtree in subtrees)


def _within(name: x509.GeneralName, subtree: x509.GeneralName) -> bool:
    if isinstance(name, x509.DNSName) and isinstance(subtree, x509.DNSName):
        return _host_within(name.value.lower(), subtree.value.lower())
    if isinstance(name, x509.RFC822Name) and isinstance(subtree, x509.RFC822Name):
        return _mail_within(name.value.lower(), subtree.value.lower())
    if isinstance(name, x509.IPAddress) and isinstance(subtree, x509.IPAddress):
        address, network = name.value, subtree.value
        same = isinstance(address, Address) and address.version == network.version
        return same and isinstance(network, IPv4Network | IPv6Network) and address in network
    if isinstance(name, x509.DirectoryName) and isinstance(subtree, x509.DirectoryName):
        ours, base = (_comparable(each.value.public_bytes()) for each in (name, subtree))
        return ours[: len(base)] == base
    return False


@lru_cache(maxsize=1024)
def _comparable(der: bytes) -> dn.Comparable:
    return dn.comparable(dn.decode_name(der))


def _host_within(host: str, base: str) -> bool:
    base = base.removeprefix(".")
    return not base or host == base or host.endswith(f".{base}")


def _mail_within(mail: str, base: str) -> bool:
    host = mail.rpartition("@")[2]
    if "@" in base:
        return mail == base
    return host.endswith(base) if base.startswith(".") else host == base


def _show(name: x509.GeneralName) -> str:
    if isinstance(name, x509.DirectoryName):
        return f"name {name.value.rfc4514_string()}"
    kind = {x509.DNSName: "dNSName", x509.RFC822Name: "rfc822Name", x509.IPAddress: "iPAddress"}
    return f"{kind.get(type(name), type(name).__name__)} {getattr(name, 'value', '')}"
