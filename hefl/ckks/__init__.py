"""Arithmetic of CKKS: rings, transforms, packing, authentication, contexts."""
