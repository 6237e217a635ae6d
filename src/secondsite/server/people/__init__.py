"""People: users, what proves who they are, what they may do alone or together, the log of what they did."""
