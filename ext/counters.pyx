"""Names of the verdicts, taken from the enumerators themselves so that the two cannot drift apart."""

_NOT_NAMES = ("DROPS_END",)

#: verdict number -> name: {0: "pass", 9: "replay", ...}; the name the metric, the log and the tests use.
VERDICT_NAMES = {
    int(member): member.name.removeprefix("DROP_").lower()
    for member in Verdict
    if member.name not in _NOT_NAMES
}

#: verdicts that are drops, by number
DROP_NAMES = {
    int(member): member.name.removeprefix("DROP_").lower()
    for member in Verdict
    if member.name.startswith("DROP_")
}

#: verdicts below this one are counted per SA as well
SA_VERDICT_COUNT = SA_VERDICTS


cdef void _assert_sizes() noexcept nogil:
    assert_size(sizeof(PortCounters), 64)
    assert_size(sizeof(SaCounters), 256)
    assert_size(sizeof(WorkerCounters), 2048)


cdef extern from *:
    """
    #define ASSERT_SIZE(size, want) _Static_assert((size) == (want), #size " is not " #want)
    """
    void assert_size "ASSERT_SIZE"(size_t size, size_t want) noexcept nogil


_assert_sizes()
