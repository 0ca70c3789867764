"""Adapters to the disk: blobs, partials, the index, keys."""
