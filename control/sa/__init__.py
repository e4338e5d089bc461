"""Child SAs on their way into the dataplane: SPIs, policies from selectors, install, move and retire, counters."""
