"""What a site does with the replicas it holds: exports, test failovers, rescue, deletion."""
