"""What the sites have: hosts, machines, networks and pools, as their gateways last told."""
