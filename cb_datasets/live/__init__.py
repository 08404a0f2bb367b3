"""A served model in AgentDojo's own benchmark: servers for a while, the agent that asks them, and what its runs say."""
