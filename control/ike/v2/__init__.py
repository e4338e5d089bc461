"""IKEv2 (RFC 7296): one IKE SA, its states, its message window, and its acts (`tasks`)."""
