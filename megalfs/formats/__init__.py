"""Headers of model files, read for where their tensors lie. Pure."""
