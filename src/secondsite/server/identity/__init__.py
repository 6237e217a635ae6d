"""Who belongs to whom: vaults, registration keys, the authority, gateways and their certificates."""
