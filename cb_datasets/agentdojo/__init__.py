"""AgentDojo's benchmark on a served model: temporary servers, the agent that queries them, and the results."""
