"""What happened, at the server and at its gateways: kept, listed, counted; and how each item did."""
