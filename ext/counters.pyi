"""Types of ext.counters; what each means is said there."""

VERDICT_NAMES: dict[int, str]
DROP_NAMES: dict[int, str]
SA_VERDICT_COUNT: int
