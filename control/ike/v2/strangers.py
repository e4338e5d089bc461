"""Datagrams that belong to no IKE SA: a peer's first message, another version, or of an IKE SA that is gone.

    begin    1 known, and repeated 2 limits 3 cookie 4 the responder's half of IKE_SA_INIT 5 an IKE SA, or a refusal
    version  a higher one is told ours
    unknown  an IKE SA that is gone repeats its last answer; else it is said that there is none

However many come, they cost microseconds and no memory: until the peer has shown by a cookie that it receives where it
says it is, nothing is kept but what v2/contacts.py limits, and answers in clear are few (RFC 7296 section 2.6).
"""

from __future__ import annotations

from control.ike.errors import PeerError
from control.ike.events import Datagram, IkeFailed, Noted, PeerPath
from control.ike.numbers import Exchange, NotifyType
from control.ike.v2 import codec, send
from control.ike.v2.contacts import INITIATOR, MAX_INIT, RESPONSE, Contacts, InitKey, in_clear
from control.ike.v2.host import Host
from control.ike.v2.parts import Timer
from control.ike.v2.registry import Registry
from control.ike.v2.sa import IkeSa
from control.ike.v2.task import Incoming, Outgoing
from control.ike.v2.tasks.init import IkeInit
from control.ike.wire.message import parse_message


class Strangers:
    """Answers what belongs to no IKE SA of an endpoint; `data` is a whole header at least."""

    def __init__(self, host: Host, registry: Registry, contacts: Contacts) -> None:
        self._host = host
        self._registry = registry
        self._contacts = contacts

    # A new peer

    def begin(self, data: bytes, path: PeerPath, now: float) -> None:
        """A request of IKE_SA_INIT."""
        contacts, settings = self._contacts, self._host.settings
        key = (data[:8], path.remote_text, path.remote_port, hash(data))
        known = contacts.get(key)
        if known is not None:
            # RFC 7296 section 2.1: the identical response, as long as it is the last one.
            if known.window.expected == 1:
                self._send(known.window.response, path)
            return
        if len(data) > MAX_INIT:
            contacts.counters["long"] += 1
            return
        if contacts.crowded(key[1], settings, now) or contacts.under_load(settings, now):
            answer = contacts.cookie(data, key[1:3], now)
            if answer is not None:
                self._send([answer], path)
                return
        if not contacts.full(key[1], settings):
            self._respond(data, key, path, now)

    def _respond(self, data: bytes, key: InitKey, path: PeerPath, now: float) -> None:
        """Run the responder's half of IKE_SA_INIT; only if it succeeds there is an IKE SA."""
        connection = ""
        try:
            parsed = parse_message(data)
            if parsed.header.message_id != 0:
                self._contacts.counters["malformed"] += 1
                return
            candidates = self._host.candidates(path)
            if not candidates:
                raise PeerError(
                    NotifyType.NO_PROPOSAL_CHOSEN,
                    f"no connection is configured for {path.local} (us) and {path.remote} (the peer)",
                    advice="check local_addrs and remote_addrs of the connections",
                )
            connection = candidates[0].name
            sa = IkeSa(self._host, candidates[0], path, initiator=False)
            sa.created = now
            task = IkeInit(initiator=False, candidates=candidates)
            request = Incoming(
                parsed.header, parsed.payloads, path=path, data=data, opened=codec.Opened(0, b"", hash(data))
            )
            response = Outgoing(Exchange.IKE_SA_INIT)
            task.process(sa, request, now)
            task.build(sa, response, now)
            datagrams = send.seal(sa, response, 0, response=True)
        except PeerError as error:
            self._refuse(data, error, connection, path, now)
            return
        except Exception as error:
            text = f"internal error: {error!r}"
            self._host.emit(Noted(ike=0, connection=connection, level="warning", text=text))
            return
        task.built(sa, response, datagrams, now)
        sa.window.answer(hash(data), datagrams)
        sa.timers[Timer.HALF_OPEN] = now + self._host.settings.half_open_timeout
        self._contacts.add(key, sa)
        self._host.register(sa)
        self._send(datagrams, path)
        self._host.schedule(sa)

    def _refuse(self, data: bytes, error: PeerError, connection: str, path: PeerPath, now: float) -> None:
        """Answer in clear, and keep nothing. Another group is no failure."""
        self._contacts.counters["refused_init"] += 1
        told = error.notify is NotifyType.INVALID_KE_PAYLOAD
        if told:
            self._contacts.other_groups.take(
                now
            )  # answered in any case, but if there are many, to cookies alone
        elif not self._contacts.quota.take(now):
            return
        self._send([in_clear(data, error.notify, error.data)], path)
        if not told:
            failure = codec.failure_of(error)
            ike = self._host.new_id()
            self._host.emit(IkeFailed(ike=ike, connection=connection, path=path, failure=failure))

    # Nobody's

    def version(self, data: bytes, path: PeerPath, now: float) -> None:
        """RFC 7296 section 2.5: a higher major version is told ours, in clear; a lower one (IKEv1) is dropped."""
        self._contacts.counters["version"] += 1
        if data[17] >> 4 > 2 and not data[19] & RESPONSE and self._contacts.quota.take(now):
            self._send([in_clear(data, NotifyType.INVALID_MAJOR_VERSION, b"\x02")], path)

    def unknown(self, data: bytes, path: PeerPath, now: float) -> None:
        """No IKE SA of ours: one that is gone may have to repeat its last answer."""
        spi = data[8:16] if data[19] & INITIATOR else data[:8]
        answer = self._registry.last_answer(spi, data, now)
        if answer is not None:
            self._send(answer, path)
            return
        self._contacts.counters["unknown_spi"] += 1
        # RFC 7296 section 2.21.4: told in clear, seldom; who gets it must take it for a hint only.
        if not data[19] & RESPONSE and data[18] != Exchange.IKE_SA_INIT and self._contacts.quota.take(now):
            self._send([in_clear(data, NotifyType.INVALID_IKE_SPI, b"")], path)

    def _send(self, datagrams: list[bytes], path: PeerPath) -> None:
        for data in datagrams:
            self._host.send(Datagram(path=path, data=data))
