"""Consequential calls that the user has not confirmed.

The policies of airline and retail want every change of the database described to the user and confirmed with a yes
before the call; that of telecom wants it for data that the user has to pay for. Reference actions skip the question:

    user        I want to return the lamp.
    assistant   return_delivered_order_items(...)                      unconfirmed

    user        I want to return the lamp.
    assistant   I will return the lamp of order #W1 to PayPal. Shall I?
    user        Yes, please.
    assistant   return_delivered_order_items(...)                      confirmed
"""

import re


# Tools that need a confirmation, by domain. The mock domain's policy asks for none.
_CONFIRMED_TOOLS = {
    "airline": {
        "book_reservation",
        "cancel_reservation",
        "send_certificate",
        "update_reservation_baggages",
        "update_reservation_flights",
        "update_reservation_passengers",
    },
    "retail": {
        "cancel_pending_order",
        "exchange_delivered_order_items",
        "modify_pending_order_address",
        "modify_pending_order_items",
        "modify_pending_order_payment",
        "modify_user_address",
        "return_delivered_order_items",
    },
    "telecom": {"refuel_data"},
}

_YES = re.compile(
    r"\b(?:yes|yeah|yep|yup|sure|ok|okay|confirm|confirmed|proceed|go ahead|please do|do it|correct|sounds good|"
    r"agreed?)\b(?!\s+not\b)",
    re.IGNORECASE,
)
# With one of these, only an answer that begins with its yes is one: "I'm not sure", "Before I confirm, what is due?"
_NO = re.compile(r"\b(?:no|not|never|before|\w+n['\u2019]t)\b", re.IGNORECASE)
_BUT = re.compile(r"\bbut\b", re.IGNORECASE)


def unconfirmed_calls(messages: list[dict], domain: str) -> list[int]:
    """Indices of the messages with a call that the policy wants confirmed and the user has not confirmed.

    A confirmation is a yes in the user's last message, if that answers a message of the assistant. It holds for all
    calls up to the next message of the user. In doubt there is none, which costs a row and not its truth.
    """
    tools = _CONFIRMED_TOOLS.get(domain, set())
    unconfirmed, is_confirmed, previous = [], False, None
    for index, message in enumerate(messages):
        if message["role"] == "user":
            was_asked = previous is not None and previous["role"] == "assistant" and not previous["tool_calls"]
            is_confirmed = was_asked and _is_yes(message["content"] or "")
        elif not is_confirmed and tools.intersection(call["function"]["name"] for call in message["tool_calls"]):
            unconfirmed.append(index)
        previous = message
    return unconfirmed


def _is_yes(text: str) -> bool:
    if _NO.search(text) is None:
        return _YES.search(text) is not None
    return _YES.match(text.lstrip()) is not None and _BUT.search(text) is None
