"""Conversations in data, written out as the model's chat template writes them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpcmpq.errors import UserError
from hpcmpq.models.factories import describe

MESSAGES = "messages"
"""The field of a record that holds a conversation."""


@dataclass(frozen=True)
class Chat:
    """A conversation.

    Attributes:
        messages: Each with a ``role`` and a ``content``, as transformers' chat templates read them.
        where: It stands, for messages to people.
        tools: That the template describes to the model, or None.
    """

    messages: tuple[Mapping[str, Any], ...]
    where: str
    tools: tuple[Any, ...] | None = None


def read_chat(record: Mapping[str, Any], where: str) -> Chat:
    """The conversation in a record of JSON lines.

    Raises:
        UserError: If its messages are no list of objects with a role.
    """
    messages, tools = record[MESSAGES], record.get("tools") or None
    fits = isinstance(messages, list) and all(isinstance(each, dict) for each in messages)
    if not fits or not messages or not all(isinstance(each.get("role"), str) for each in messages):
        raise UserError(
            f"{where} has a field '{MESSAGES}' that is no list of objects with 'role' and 'content'; correct it"
        )
    if tools is not None and not isinstance(tools, list):
        raise UserError(f"{where} has a field 'tools' that is no list; correct it")
    return Chat(tuple(messages), where, None if tools is None else tuple(tools))


def written_out(texts: Sequence[str | Chat], tokenizer: Any) -> list[str]:
    """Texts as they are, and conversations as the tokenizer's chat template writes them, special tokens included.

    Raises:
        UserError: If the tokenizer has no such template, or it does not take a conversation.
    """
    return [text if isinstance(text, str) else _written_out(text, tokenizer) for text in texts]


def _written_out(chat: Chat, tokenizer: Any) -> str:
    if getattr(tokenizer, "chat_template", None) is None:
        raise UserError(
            f"{chat.where} holds a conversation, and the model's directory has no chat template "
            "(chat_template.jinja); put the model's there, or give the conversations written out, as 'text'"
        )
    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in chat.messages],
            tools=None if chat.tools is None else list(chat.tools),
            tokenize=False,
        )
    except Exception as error:  # the template is a program of the model's, and may refuse in any way
        raise UserError(
            f"the model's chat template cannot write out the conversation of {chat.where}: {describe(error)}; correct "
            "the messages, or give them written out, as 'text'"
        ) from error
    return str(text)
