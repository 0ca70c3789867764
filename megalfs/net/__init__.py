"""Adapters to the network: HTTP routes, the peer protocol's sockets, web seeds, trackers."""
