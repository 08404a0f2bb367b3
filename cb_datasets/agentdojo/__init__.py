"""AgentDojo's own benchmark on a served model: servers for a while, the agent that asks, and what its runs say."""
