"""The codec: chat messages and tool schemas to token ids, and generated ids back to messages.

It is incremental. An episode's ids are ``prompt + generated + extend + generated + ...``: what was generated is
never rendered or tokenised again, and nothing appended changes an earlier id. For a conversation whose assistant
messages are written by :meth:`Codec.assistant`, the whole equals ``tokenizer.apply_chat_template``, with these
exceptions, all of them the template's:

- Qwen3 (thinking or not) drops the ``<think>`` block of an answer once a later message follows; the template does
  not preserve prefixes. The codec keeps every block. Its ids are the template's with each block put back.
- Text of control tokens inside messages and tool schemas becomes ordinary words here, control tokens there. Let
  through is one: the reward goal that :func:`rcgrpo.conditioning.condition` puts at the end of the first user message.
- Assistant text that starts with a line break: tokenised after the generation prompt here, together with it there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, get_args

from transformers import PreTrainedTokenizerFast

from rcgrpo.codec.calls import Parsed, parse_llama, parse_qwen
from rcgrpo.codec.formats import CUT, EMPTY_THINKING, Chat, Format, Llama, Qwen, dumps, guard
from rcgrpo.codec.schemas import Detail, names, signatures
from rcgrpo.conditioning import condition
from rcgrpo.environments.protocol import Schema
from rcgrpo.episodes.types import Call, Message, RewardToken
from rcgrpo.errors import UserError

_GOALS = tuple(condition([Message(role="user")], token)[0].content for token in RewardToken)


class Codec:
    """Chat and tool format of one tokenizer (Qwen2.5, Qwen3 or Llama 3.1, told from its chat template).

    ``detail`` is how tools are described: ``full`` is the template's own rendering of the JSON schemas,
    ``compact`` one signature per tool in the system message, ``names`` only their names there. ``thinking`` lets a
    Qwen3 policy open its answers with a ``<think>`` block. Raises :class:`UserError` if the chat template is not in
    one of the known formats. Build it after :func:`rcgrpo.codec.tokenizer.add_reward_tokens`: which texts are
    control tokens is read once.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        *,
        detail: Detail = "full",
        thinking: bool = False,
    ) -> None:
        if detail not in get_args(Detail):
            raise UserError(f"detail is {detail!r}; it can be one of {', '.join(get_args(Detail))}")
        self.tokenizer = tokenizer
        self.detail = detail
        self.thinking = thinking
        texts = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)
        self._reserved = re.compile(f"(?={'|'.join(map(re.escape, texts))}).", re.DOTALL)
        self.format: Format = self._detect()
        self._generation = self._generation_prompt()
        added = tokenizer.get_added_vocab()
        if self.format.end not in added:
            raise UserError(f"the tokenizer has no token {self.format.end}, which its chat template ends messages with")
        self.stop_ids = frozenset(added[stop] for stop in self.format.stops if stop in added)
        self._check_format()

    @property
    def family(self) -> Literal["qwen", "llama"]:
        return "qwen" if isinstance(self.format, Qwen) else "llama"

    @property
    def calls_per_message(self) -> int | None:
        """How many calls one assistant message may hold; None is any number."""
        return self.format.calls_per_message

    def prompt(self, messages: Sequence[Message], tools: Sequence[Schema]) -> list[int]:
        """Ids of the conversation so far and the generation prompt."""
        return self._encode(self._prompt_text(messages, tools))

    def assistant(self, message: Message) -> list[int]:
        """The ids that a policy would generate for ``message``, the end-of-message id included (for experts).

        Raises ValueError if the message has more than :attr:`calls_per_message` calls.
        """
        return self._encode(self._answer_text(message))

    def extend(self, messages: Sequence[Message], *, closed: bool = True) -> list[int]:
        """Ids to append after an assistant message: tool results, user turns, then the generation prompt.

        ``closed=False``: the assistant message was truncated, so its end-of-message id comes first.
        """
        return self._encode(("" if closed else self.format.end) + self._given_text(messages))

    def parse(self, ids: Sequence[int]) -> Parsed:
        """What was generated, up to the first end-of-message id, as text and calls. Never raises."""
        end = next((i for i, token in enumerate(ids) if token in self.stop_ids), len(ids))
        text = self.tokenizer.decode(list(ids[:end]), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return parse_qwen(str(text)) if self.family == "qwen" else parse_llama(str(text))

    def announce(self, tools: Sequence[Schema]) -> str:
        """Documentation of tools that become callable in mid-episode, to stand in front of the user's message."""
        if self.detail == "full":
            documents = "\n".join(dumps(tool, indent=self.format.schema_indent) for tool in tools)
        else:
            documents = self._summary(tools)
        return f"From now on you can also call these functions:\n{documents}"

    def _summary(self, tools: Sequence[Schema]) -> str:
        return names(tools) if self.detail == "names" else signatures(tools)

    def _prompt_text(self, messages: Sequence[Message], tools: Sequence[Schema]) -> str:
        roles = [message.role for message in messages]
        answers = [i for i, role in enumerate(roles) if role == "assistant"]
        text = self._opening_text(messages[: answers[0] if answers else None], tools)
        for answer, following in zip(answers, [*answers, len(messages)][1:], strict=True):
            text += self._answer_text(messages[answer]) + self._given_text(messages[answer + 1 : following])
        return text

    def _opening_text(self, messages: Sequence[Message], tools: Sequence[Schema]) -> str:
        chats: list[Chat] = [guard(message.as_chat(), self._reserved) for message in messages]
        first_user = next((i for i, message in enumerate(messages) if message.role == "user"), None)
        if first_user is not None:
            chats[first_user]["content"] = self._guard_all_but_goal(messages[first_user].content)
        schemas: list[Schema] = guard(list(tools), self._reserved)
        if schemas and self.detail != "full":
            block = f"You can call these functions:\n{self._summary(schemas)}\n\n{self.format.how_to_call}"
            if chats[0]["role"] == "system":
                chats[0]["content"] += f"\n\n{block}"
            else:
                chats.insert(0, {"role": "system", "content": block})
            schemas = []
        return self._render(chats, schemas)

    def _guard_all_but_goal(self, content: str) -> str:
        goal = next((goal for goal in _GOALS if content.endswith(goal)), "")
        return guard(content.removesuffix(goal), self._reserved) + goal

    def _answer_text(self, message: Message) -> str:
        chat = message.as_chat()
        if self.thinking:
            before, closed, after = message.content.partition("</think>")
            chat["reasoning_content"] = before.removeprefix("<think>").strip("\n") if closed else ""
            chat["content"] = after.lstrip("\n") if closed else message.content
        return self.format.answer(guard(chat, self._reserved))

    def _given_text(self, messages: Sequence[Message]) -> str:
        chats = [guard(message.as_chat(), self._reserved) for message in messages]
        return self.format.after_end + self.format.given(chats) + self._generation

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for piece in text.split(CUT):
            ids += self.tokenizer.encode(piece, add_special_tokens=False, verbose=False)
        return ids

    def _render(self, chats: Sequence[Chat], tools: Sequence[Schema] = (), **options: Any) -> str:
        options = {"add_generation_prompt": True, "enable_thinking": self.thinking, **options}
        documents: list[Any] | None = list(tools) if tools else None
        return str(self.tokenizer.apply_chat_template(list(chats), tools=documents, tokenize=False, **options))

    def _detect(self) -> Format:
        if not self.tokenizer.chat_template:
            raise UserError(
                "the tokenizer has no chat template: use an instruction-tuned checkpoint or set tokenizer.chat_template"
            )
        text = self._render([{"role": "user", "content": "x"}])
        for known in (Qwen(), Llama()):
            if known.generation in text:
                return known
        raise UserError(_unknown("its generation prompt belongs to neither", text[-80:]))

    def _generation_prompt(self) -> str:
        """Probed, since Qwen3 closes an empty ``<think>`` block in it when thinking is off and Qwen2.5 does not."""
        chats = [{"role": "user", "content": "x"}]
        if self.thinking and self._render(chats) == self._render(chats, enable_thinking=False):
            raise UserError("thinking is true, but the tokenizer's chat template cannot switch it: set it to false")
        suffix = self._render(chats).removeprefix(self._render(chats, add_generation_prompt=False))
        if suffix not in (self.format.generation, self.format.generation + EMPTY_THINKING):
            raise UserError(_unknown("its generation prompt is another", suffix))
        return suffix

    def _check_format(self) -> None:
        """One fixed conversation, by the codec piece by piece and by the tokenizer at once: they must agree."""
        head, *tail = _FIXED
        ours, ids = self._prompt_text(head, []), self.prompt(head, [])
        for answer, *given in tail:
            ours += self._answer_text(answer) + self._given_text(given)
            ids += self.assistant(answer) + self.extend(given)
        theirs = self._render([message.as_chat() for part in _FIXED for message in part])
        # Qwen3's template removes the thinking block of earlier answers: compare without any.
        a, b = (text.replace(EMPTY_THINKING, "") for text in (ours, theirs))
        if a != b:
            at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            raise UserError(
                _unknown("it writes a conversation with tools in another way", b[max(0, at - 20) : at + 60])
            )
        if ids != self._encode(ours):
            raise UserError(
                "the tokenizer gives other ids for a conversation than for its messages: use another checkpoint"
            )


def _unknown(what: str, text: str) -> str:
    return (
        f"the tokenizer's chat template is not in the tool format of Qwen2.5, Qwen3 or Llama 3.1: {what} ({text!r}). "
        "Use a checkpoint of these families, or set tokenizer.chat_template to rcgrpo.codec.tokenizer.chat_template()"
    )


_FIXED = (
    [Message(role="system", content="Be brief."), Message(role="user", content="Weigh a and b.")],
    [
        Message(role="assistant", calls=[Call(name="weigh", arguments={"item": "a", "unit": {"name": "g", "n": 1.5}})]),
        Message(role="tool", content='{"g": 3}'),
        Message(role="tool", content="none"),
    ],
    [Message(role="assistant", content="3 g."), Message(role="user", content="Thanks.\nAnd c?")],
)
