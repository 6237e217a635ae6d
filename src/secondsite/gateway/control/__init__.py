"""The control API of one gateway: routes, their server and its typed client, metrics."""
