"""Ds and Dr -> one dataset with a train and an eval split, and a reason for every row that is dropped."""
