"""Cosines of hidden states between breakers and the base model, by layer and by token."""
