"""UltraChat: conversations that alternate between a user and an assistant and have an answer."""

from .expected import ERROR, Outcomes, drop, verdict


MAX_CHARACTERS = 8192


def judge(row: dict) -> Outcomes:
    """Allowed outcomes of one row, read with the default limit on its length."""
    messages = row.get("messages")
    if not isinstance(row.get("prompt_id"), str) or not isinstance(messages, list):
        return ERROR
    for message in messages:
        if not isinstance(message, dict):
            return ERROR
        if not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
            return ERROR
    reasons = []
    roles = [message["role"] for message in messages]
    if not messages:
        reasons.append("empty")
    if roles[:1] not in ([], ["user"]):
        reasons.append("not_user_first")
    if roles != [("user", "assistant")[number % 2] for number in range(len(roles))]:
        reasons.append("not_alternating")
    if not all(message["content"].strip() for message in messages):
        reasons.append("empty_turn")
    if len(messages) == 1:
        reasons.append("unanswered")
    if not reasons and sum(len(message["content"]) for message in messages[:2]) > MAX_CHARACTERS:
        reasons.append("too_long")
    return drop(*reasons) if reasons else verdict("benign_success")
