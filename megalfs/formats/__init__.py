"""Pure byte formats: file headers to tensor extents, and the small encodings the records are made of."""
