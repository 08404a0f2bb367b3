"""Answers in words, judged by their text alone: whether one refuses, and whether it is text at all."""
