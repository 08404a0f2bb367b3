"""The loss: its terms, the tokens they are computed on, their values, and the forward passes that they need."""
