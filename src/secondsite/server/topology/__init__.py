"""Sites and clouds: which hosts and machines there are together, and which gateway is near a machine."""
