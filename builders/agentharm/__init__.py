"""AgentHarm: a benchmark of harmful and benign tasks for agents with tools. For evaluation only."""

from .behaviors import AgentHarm


__all__ = ["AgentHarm"]
