"""What the server asks of gateways, over connections that they open (`transfer.calls`)."""
