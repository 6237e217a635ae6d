"""Moving sealed bytes between sites: certificates, the wire, the cache, sender and ingest listener."""
