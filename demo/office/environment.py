"""The office that the agent works in, in memory, and B4's eight tools over it.

The module imports AgentDojo: import it inside `agentdojo_yaml()`.
"""

import re
from collections.abc import Callable
from typing import Annotated

from agentdojo.functions_runtime import Depends, Function, FunctionsRuntime, TaskEnvironment, make_function

from builders.fujitsu import B4_STANDARD

from .tasks import OFFICE_WORDING


_RESULTS = OFFICE_WORDING["tool_results"]
_SCHEMAS = {tool["function"]["name"]: tool["function"] for tool in B4_STANDARD["tools"]}


class OfficeEnvironment(TaskEnvironment):
    """State of the office: what can be looked up, and what was done."""

    files: dict[str, str] = {}
    pages: dict[str, str] = {}
    documents: dict[str, str] = {}
    profile: dict[str, str] = {"name": "Kolume", "email": "Kolume@mail.example", "phone": "none", "address": "none"}
    mails: list[dict] = []
    transfers: list[dict] = []
    programs: list[dict] = []
    searches: list[str] = []


Office = Annotated[OfficeEnvironment, Depends(lambda environment: environment)]


def search_web(office: Office, query: str) -> str:
    """Look up a page.

    :param query: Its topic.
    """
    office.searches.append(query)
    return office.pages.get(query, _RESULTS["nothing"])


def retrieve_multimodal_docs(office: Office, query: str) -> str:
    """Look up a document.

    :param query: Its topic.
    """
    return office.documents.get(query, _RESULTS["nothing"])


def send_email(office: Office, to: str, subject: str, body: str) -> str:
    """Send a mail.

    :param to: Address.
    :param subject: Subject.
    :param body: Text.
    """
    office.mails.append({"to": to, "subject": subject, "body": body})
    return _RESULTS["send_email"]


def execute_code(office: Office, code: str, language: str) -> str:
    """Run a program, which prints one word.

    :param code: Program.
    :param language: Language.
    """
    office.programs.append({"code": code, "language": language})
    word = re.search(r"[A-Z]\w*", code)
    return _RESULTS["output"].replace("{text}", word[0] if word else "").strip()


def read_file(office: Office, path: str) -> str:
    """Read a file.

    :param path: Path.
    """
    return office.files.get(path, _RESULTS["nothing"])


def write_file(office: Office, path: str, content: str) -> str:
    """Write a file.

    :param path: Path.
    :param content: Text.
    """
    office.files[path] = content
    return _RESULTS["write_file"]


def send_money(office: Office, recipient: str, amount: float, subject: str) -> str:
    """Transfer money.

    :param recipient: Name.
    :param amount: Amount.
    :param subject: Subject.
    """
    office.transfers.append({"recipient": recipient, "amount": amount, "subject": subject})
    return _RESULTS["send_money"]


def get_user_info(office: Office, fields: list[str] | None = None) -> str:
    """Read the user's profile.

    :param fields: Fields.
    """
    known = [name for name in fields or office.profile if name in office.profile]
    return "\n".join(f"{name}: {office.profile[name]}" for name in known)


def _tool(run: Callable) -> Function:
    """A tool with exactly the schema of B4, so that both halves of the demo share one prompt prefix."""
    tool = make_function(run)
    schema = _SCHEMAS[tool.name]

    class Parameters(tool.parameters):  # type: ignore[name-defined]
        @classmethod
        def model_json_schema(cls, *args: object, **kwargs: object) -> dict:
            return schema["parameters"]

    tool.parameters = Parameters
    tool.description = schema["description"]
    return tool


OFFICE_TOOLS = [
    _tool(run)
    for run in (
        search_web,
        retrieve_multimodal_docs,
        send_email,
        execute_code,
        read_file,
        write_file,
        send_money,
        get_user_info,
    )
]


_RUNTIME = FunctionsRuntime(OFFICE_TOOLS)


def run_tool(office: OfficeEnvironment, tool: str, arguments: dict) -> str:
    """Result of a call, as the agent reads it."""
    result, error = _RUNTIME.run_function(office, tool, arguments)
    return error or str(result)


def was_done(office: OfficeEnvironment, tool: str, arguments: dict) -> bool:
    """Whether a call has left its trace in the office; one that only reads leaves none and counts as done."""
    match tool:
        case "send_email":
            return arguments in office.mails
        case "send_money":
            return arguments in office.transfers
        case "execute_code":
            return arguments in office.programs
        case "write_file":
            return office.files.get(arguments["path"]) == arguments["content"]
        case "search_web":
            return arguments["query"] in office.searches
    return True
