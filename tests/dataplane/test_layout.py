"""The numpy dtypes of dataplane.layout are the C structs of ext/*.pxd, byte for byte."""

import numpy as np
import pytest

from dataplane import layout
from ext.layout import layout as compiled_layout

COMPILED = compiled_layout()


def test_every_shared_struct_has_a_dtype() -> None:
    assert set(COMPILED) == set(layout.DTYPES)


@pytest.mark.parametrize("name", sorted(COMPILED))
def test_dtype_is_the_struct(name: str) -> None:
    size, fields = COMPILED[name]
    dtype = layout.DTYPES[name]
    assert dtype.itemsize == size
    assert dtype.names is not None
    assert list(dtype.names) == list(fields)
    for field, (offset, width, kind) in fields.items():
        seen, where = dtype.fields[field][:2]
        assert (where, seen.itemsize) == (offset, width), field
        base = seen.base
        if base.names is not None:
            assert layout.DTYPES[kind] == base, field
        elif base.kind == "V":
            assert kind.startswith("u"), field  # bytes as on the wire, or spare
        else:
            assert base == np.dtype(f"<{kind}"), field


@pytest.mark.parametrize("name", sorted(COMPILED))
def test_fields_leave_no_hole(name: str) -> None:
    """A field that ext/layout.pyx forgets would be a hole; padding stays below an alignment."""
    size, fields = COMPILED[name]
    end = 0
    for field, (offset, width, _) in fields.items():
        assert offset - end < 8, f"{name}: {offset - end} bytes before {field}"
        end = offset + width
    assert size - end < 8, f"{name}: {size - end} bytes at its end"
