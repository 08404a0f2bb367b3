"""The loss: terms, the tokens they read, their values, and the forward passes behind them."""
