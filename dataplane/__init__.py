"""Python that owns workers and shared memory, and touches no packet; control sees `api` and `model` of it."""
