"""LLMail-Inject: e-mails that people wrote to hijack an e-mail assistant, and honest e-mails. For evaluation only."""

from .source import LLMail


__all__ = ["LLMail"]
