"""Ds and Dr -> one dataset with a train and an eval split, and a named reason for every row that is dropped."""
