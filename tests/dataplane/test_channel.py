"""The channel keeps messages whole, carries descriptors, and says when the other side is gone."""

from __future__ import annotations

import os

import pytest

from dataplane.channel import MESSAGE_MAX, Channel, ChannelClosedError


def test_messages_and_descriptors() -> None:
    one, other = Channel.pair()
    read, write = os.pipe()
    one.send({"a": 1}, [write])
    one.send({"b": [2]})
    os.close(write)
    message, descriptors = other.receive() or ({}, [])
    assert message == {"a": 1}
    os.write(descriptors[0], b"x")
    os.close(descriptors[0])
    assert os.read(read, 2) == b"x"
    os.close(read)
    assert other.receive() == ({"b": [2]}, [])
    other.set_blocking(False)
    assert other.receive() is None
    one.close()
    with pytest.raises(ChannelClosedError):
        other.receive()
    with pytest.raises(ChannelClosedError):
        other.send({})
    other.close()


def test_too_long_is_refused() -> None:
    one, other = Channel.pair()
    with pytest.raises(ValueError, match="the channel takes 65536"):
        one.send({"x": "y" * MESSAGE_MAX})
    one.close()
    other.close()
