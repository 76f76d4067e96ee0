"""Predicted bytes against autograd, architecture by architecture."""
