"""Commands that need no gateway: stores, segments, keys, certificates, and rescue with nothing else left."""
