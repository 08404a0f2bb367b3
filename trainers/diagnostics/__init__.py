"""Cosines of hidden states between breaker and base, by layer and by token."""
