"""What IPsec knows and this gateway has not, by the words that swanctl.conf, setkey and `ip xfrm` have for it.

Each section's keys, with what is there instead: an operator who brings a configuration along is told which part of it
has no counterpart, and not that a word is unknown. A key whose value asks for nothing ("no", 0) is taken as it is.
Algorithms are in control.ike.keywords.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_NOTHING = (False, "no", 0, "0", "", "0s")


@dataclass(frozen=True, kw_only=True)
class Unsupported:
    """One key: why it is refused, as the end of "got X, and ...", and the values that ask for nothing."""

    why: str
    taken: tuple[object, ...] = _NOTHING

    def takes(self, value: object) -> bool:
        """Whether the value asks for what is done anyway; 1 is not true here, nor 0 false."""
        return any(type(value) is type(each) and value == each for each in self.taken)


def _not(why: str, *taken: object) -> Unsupported:
    return Unsupported(why=why, taken=taken or _NOTHING)


_IKEV1 = "IKEv1 (RFC 2409, made historic by RFC 9395) is not supported; want it left out"
_MEDIATION = _not("mediation (draft-brunner-ikev2-mediation) is not supported; want it left out")
_MARK = _not("the kernel's marks have no part in a tunnel's policies; want selectors that tell traffic apart")
_XFRM_INTERFACE = _not(
    "XFRM interfaces are not supported: routes and policies lead traffic; want it left out"
)
_IPTFS = _not("IP-TFS (RFC 9347) is not supported; want tfc_padding and tfc_dummies")
_LABEL = _not("security labels (RFC 9478) are not supported; want selectors of addresses, protocol and ports")
_REQID = _not("SAs are tied to their policies by name here; want it left out")
_IPCOMP = _not("IPComp (RFC 3173) is not supported, packets go as they are; want it left out")
_PRIORITY = _not("policies are asked in their order, those of children narrow ones first; want it left out")

CONNECTION: Mapping[str, Unsupported] = {
    "version": _not(
        "only IKEv2 (RFC 7296) is supported, IKEv1 (RFC 2409) is historic (RFC 9395); want 2", 0, 2
    ),
    "aggressive": _not(f"aggressive mode is of IKEv1: {_IKEV1}"),
    "pull": _not(f"mode config is of IKEv1: {_IKEV1}", True, "yes"),
    "dpd_timeout": _not("IKEv2 gives a peer up when its retransmissions end; want retransmit_tries in [ike]"),
    "mediation": _MEDIATION,
    "mediated_by": _MEDIATION,
    "mediation_peer": _MEDIATION,
    "if_id_in": _XFRM_INTERFACE,
    "if_id_out": _XFRM_INTERFACE,
}
SIDE: Mapping[str, Unsupported] = {
    "round": _not("several rounds of authentication (RFC 4739) are not supported; want one", 0, 1),
    "pubkeys": _not("raw public keys (RFC 7670) are not supported; want certs"),
    "groups": _not("attribute certificates (RFC 5755) are not supported; want an id that names the group"),
    "cert_policy": _not("certificate policies are not asked for; want cacerts of a CA of that policy alone"),
    "ca_id": _not("a CA is known by its certificate; want cacerts"),
    "aaa_id": _not("EAP is answered here, there is no AAA server; want it left out"),
    "xauth_id": _not(f"XAuth is of IKEv1: {_IKEV1}"),
    "cert": _not("certificates are in files; want certs = a path, or [certificates.NAME]"),
    "cacert": _not("certificates are in files; want cacerts = a path, or [authorities.NAME]"),
}
CHILD: Mapping[str, Unsupported] = {
    "ipcomp": _IPCOMP,
    "compress": _IPCOMP,
    "sha256_96": _not("HMAC-SHA2-256 has 128 bits (RFC 4868), not early Linux kernels' 96; want it left out"),
    "policies": _not("a child has its policies always; want it left out", True, "yes"),
    "policies_fwd_out": _not("the gateway forwards by itself, without forward policies; want it left out"),
    "updown": _not("no scripts are run; want `esplanade log`, which tells of every tunnel"),
    "hostaccess": _not("no firewall rules are made; want it left out"),
    "interface": _not("policies are of no interface; want selectors that tell traffic apart"),
    "priority": _PRIORITY,
    "reqid": _REQID,
    "mark_in": _MARK,
    "mark_out": _MARK,
    "mark_in_sa": _MARK,
    "set_mark_in": _MARK,
    "set_mark_out": _MARK,
    "if_id_in": _XFRM_INTERFACE,
    "if_id_out": _XFRM_INTERFACE,
    "label": _LABEL,
    "label_mode": _not(_LABEL.why, "system"),
    "hw_offload": _not("packets are enciphered here, not by a network card; want it left out"),
    "copy_df": _not('the bit is set by df; want df = "clear"', True, "yes"),
    "copy_ecn": _not("ECN is always as RFC 6040 has it; want it left out", True, "yes"),
    "copy_dscp": _not("a packet keeps its own DSCP inside; want dscp for the outer one", "out"),
    "inactivity": _not("an idle child stays until its life_time; want life_time"),
    "rand_bytes": _not("limits of volume have no random part; want rekey_bytes that differ"),
    "rand_packets": _not("limits of volume have no random part; want rekey_packets that differ"),
    "esn": _not('extended sequence numbers are a matter of proposals; want "...-esn" in esp_proposals'),
    "pfs": _not("forward secrecy is a matter of proposals; want a key exchange in esp_proposals"),
    "iptfs": _IPTFS,
    **{
        f"iptfs_{word}": _IPTFS
        for word in (
            *("dont_frag", "packet_size", "max_queue_size", "drop_time", "init_delay"),
            "reorder_window",
        )
    },
}
SA: Mapping[str, Unsupported] = {
    "ipcomp": _IPCOMP,
    "compression_algorithm": _IPCOMP,
    "reqid": _REQID,
    "mark": _MARK,
    "if_id": _XFRM_INTERFACE,
    "label": _LABEL,
    "esn": _not('extended sequence numbers are part of the proposal; want "...-esn" there'),
    **{
        key: _not(
            "SAs by hand have no lifetimes (RFC 4301 section 4.5.1); want [connections.NAME], which rekeys"
        )
        for key in ("lifetime", "life_time", "life_bytes", "life_packets", "rekey_time")
    },
    "sequence_overflow": _not(
        "numbers never begin again (RFC 4303 section 3.3.3); want a proposal with -esn"
    ),
}
_TOKEN = _not("keys on tokens (PKCS#11) are not supported; want files")
_NAMES = _not("clients are told of no such server; want dns")
CERTIFICATE: Mapping[str, Unsupported] = dict.fromkeys(("handle", "slot", "module"), _TOKEN)
AUTHORITY: Mapping[str, Unsupported] = {
    **CERTIFICATE,
    "cacert": _not("the CA's certificate has another key here; want certificate"),
    "file": _not("the CA's certificate has another key here; want certificate"),
    "crl_uris": _not("these have another key here; want crl_urls"),
    **dict.fromkeys(
        ("ocsp_uris", "ocsp_urls"), _not("OCSP (RFC 6960) is not supported; want crls or crl_urls", "")
    ),
    "cert_uri_base": _not(
        "certificates by hash and URL (RFC 7296 section 3.6) are not supported; want it left out"
    ),
}
POOL: Mapping[str, Unsupported] = {
    "nbns": _NAMES,
    "dhcp": _NAMES,
    "netmask": _not("clients have one address each; want it left out"),
    "split_exclude": _not("what is not in split_include stays out; want split_include"),
    "subnet": _not("it has another key here; want split_include"),
}
#: `type` of a secret.
SECRETS: Mapping[str, str] = {
    "xauth": "and XAuth is of IKEv1, which is not supported",
    "ntlm": "and NT hashes in place of passwords are not supported",
    **dict.fromkeys(
        ("private", "rsa", "ecdsa", "pkcs8", "pkcs12", "token"),
        "and a private key's password stands beside the key, in [certificates.NAME]",
    ),
}
POLICY: Mapping[str, Unsupported] = {
    "direction": _not("a policy is of both directions (RFC 4301 section 4.4.1); want local and remote"),
    "priority": _PRIORITY,
    "level": _not(
        'an SA is always required, never made use of as one comes (setkey\'s "use"); want it left out',
        "require",
    ),
    "mark": _MARK,
    "if_id": _XFRM_INTERFACE,
    "label": _LABEL,
    **{
        key: _not(
            "selectors by name (RFC 4301 section 4.4.1.1) are not supported; want addresses, protocol and ports"
        )
        for key in ("user", "local_name", "remote_name")
    },
    "mobility": _not("Mobility Header types cannot be selected; want protocol = 135 for all of them"),
    "populate_from_packet": _not(
        "PFP flags (RFC 4301 section 4.4.1) are not supported: an SA is for all that its policy names; "
        "want a policy for each"
    ),
}

#: `encap`: what follows "got 'tcp', ".
OVER_TCP = "and IKE and ESP over TCP (RFC 9329) are not supported; want true, for UDP"
#: `mode` of a child or an SA: what follows "got 'beet', ".
MODES: Mapping[str, str] = {
    "beet": "and BEET mode (draft-nikander-esp-beet-mode) is not supported",
    "iptfs": "and IP-TFS (RFC 9347) is not supported",
    "ro": "and route optimization (RFC 4877) is not supported",
    "transport_proxy": "and transport mode for others (Mobile IPv6) is not supported",
    "in_trigger": "and route optimization (RFC 4877) is not supported",
    **dict.fromkeys(
        ("pass", "drop"), 'which is no mode here; a [[policy]] with action = "bypass" or "discard" does that'
    ),
}
#: `protocol` of an SA.
PROTOCOLS: Mapping[str, str] = {
    **dict.fromkeys(("ipcomp", "comp"), "and IPComp (RFC 3173) is not supported"),
    **dict.fromkeys(("esp-udp", "espinudp"), "which is ESP with encap = true"),
    "esp-tcp": "and ESP over TCP (RFC 9329) is not supported",
    "ah-esp": "and an SA has one protocol",
}
#: `auth` of a side, where it begins so.
AUTHENTICATION: Mapping[str, str] = {
    "xauth": "and XAuth is of IKEv1, which is not supported",
    **{
        f"eap-{method}": f"and EAP-{method.upper()} is not supported"
        for method in (
            *(
                "aka",
                "sim",
                "md5",
                "gtc",
                "ttls",
                "peap",
                "radius",
                "tnc",
                "pwd",
                "otp",
                "ikev2",
                "fast",
                "teap",
            ),
        )
    },
    "rsa": 'which has no hash; want "pubkey", or "pubkey-sha256-..."',
    "ecdsa": 'which has no hash; want "pubkey", or "pubkey-sha256-..."',
}
