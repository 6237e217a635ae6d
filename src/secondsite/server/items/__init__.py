"""Protected items: what is wanted of each machine, what its gateways say of it, and what both come to."""
