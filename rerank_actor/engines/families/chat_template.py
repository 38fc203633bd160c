"""A chat template as segments: rendered once with marks for the texts, cut at them, and rendered again to prove it right.

Takes the text of a Jinja template that gives messages of the roles query and document a prompt; gives a `Template`, or
refuses where the prompt is not the texts with fixed text between them. Knows nothing of models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, Literal

from rerank_actor.engines.instructions import DEFAULT_INSTRUCTION
from rerank_actor.engines.template import QWEN3_RERANKER, Template, cut_prefix, fill
from rerank_actor.errors import ModelError, describe_cause

_MARKS = {"instruction": "Mark0Instruction", "query": "Mark1Query", "document": "Mark2Document"}
# What templates may treat in ways of their own: nothing, blanks, newlines, length, another script, their own syntax.
_FILLERS = ("", " lead and trail \n", "\n\nlines\n", "word " * 3000, "\u4f60\u597d\u3002", "{{ x }} {% y %} <b>", "0")
_OTHER_DAY = {"strftime_now": lambda form: "another day"}  # what Transformers lets templates call
_STRIPS: tuple[tuple[Literal["query", "document"], ...], ...] = ((), ("query",), ("document",), ("query", "document"))


class ChatTemplate:
    """One Jinja template and how sentence-transformers would call it.

    Args:
        name: of the model, for messages.
        source: the template's text.
        variables: what it reads besides the messages, such as `bos_token`.
        is_structured: whether the content of a message is a list of typed parts.
    """

    def __init__(self, name: str, source: str, variables: Mapping[str, Any], *, is_structured: bool = False) -> None:
        self._name, self._source, self._variables, self._is_structured = name, source, dict(variables), is_structured

    def render(self, instruction: str | None, query: str, document: str) -> str:
        """Return the prompt of one pair; the instruction is a message of the role system.

        Raises:
            ModelError: the template cannot be rendered.
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        texts = {"system": instruction, "query": query, "document": document}
        messages = [
            {"role": role, "content": [{"type": "text", "text": text}] if self._is_structured else text}
            for role, text in texts.items()
            if text is not None
        ]
        try:
            rendered, _ = render_jinja_template(conversations=[messages], chat_template=self._source, **self._variables)
        except Exception as error:  # Jinja's, and whatever the template raises
            raise ModelError(
                f"{self._name}: its chat template cannot be rendered for a query and a document "
                f"({describe_cause(error)})",
                model=self._name,
            ) from error
        return str(rendered[0])

    def to_template(self, family: str, controls: Sequence[str], default_instruction: str | None) -> Template:
        """Return the template as segments.

        Args:
            family: name of the result.
            controls: tokens that a tokenizer finds in a text before anything else.
            default_instruction: of the model, where it has one.

        Raises:
            ModelError: the prompt is not the texts with fixed text between them.
        """
        bare = self.render(None, _MARKS["query"], _MARKS["document"])
        asked = self.render(*_MARKS.values())
        own = _find_default(bare, asked)
        takes_instruction = own is not None or (default_instruction is not None and _MARKS["instruction"] in asked)
        other_day = ChatTemplate(
            self._name, self._source, self._variables | _OTHER_DAY, is_structured=self._is_structured
        )
        for today, instruction in ((bare, None), (asked, _MARKS["instruction"]))[: 1 + takes_instruction]:
            if other_day.render(instruction, _MARKS["query"], _MARKS["document"]) != today:
                self._refuse("the day's date stands in it, so that scores would be others tomorrow")
        text = asked if takes_instruction else bare
        for role in ("query", "document", *["instruction"] * takes_instruction):
            if text.count(_MARKS[role]) != 1:
                self._refuse(f"the {role} stands in it {text.count(_MARKS[role])} times")
        if any(field in text for field in ("{query}", "{instruction}", "{document}", "{cut}")):
            self._refuse("it holds a name of a field in braces")
        instruction = default_instruction if default_instruction is not None else own
        template = self._cut(family, text, controls, instruction)
        return self._canonical(self._prove(template))

    def _cut(self, family: str, text: str, controls: Sequence[str], instruction: str | None) -> Template:
        before, _, after = text.partition(_MARKS["document"])
        for role in ("instruction", "query"):
            before = before.replace(_MARKS[role], f"{{{role}}}")
            after = after.replace(_MARKS[role], f"{{{role}}}")
        prefix, head = cut_prefix(before, controls)
        separator = " " if head.endswith(" ") else ""
        return Template(
            name=family,
            prefix=prefix,
            head=head.removesuffix(" ") if separator else head,
            suffix=after,
            document_separator=separator,
            instruction=instruction,
        )

    def _prove(self, template: Template) -> Template:
        """Return the template with the fields that it strips, once other texts come out as they should."""
        instructions = [None] if not template.takes_instruction else ["do it", " blank "]
        stripped = self.render(instructions[0], " q ", " d ")
        for strips in _STRIPS:
            if stripped == _format(replace(template, strips=strips), instructions[0], " q ", " d "):
                template = replace(template, strips=strips)
                break
        for instruction, (query, document) in product(instructions, product(_FILLERS, _FILLERS)):
            if self.render(instruction, query, document) != _format(template, instruction, query, document):
                self._refuse(
                    "it does more with the texts than to put them in their places, as a query of "
                    f"{query[:20]!r} with a document of {document[:20]!r} shows"
                )
        return template

    def _canonical(self, template: Template) -> Template:
        """Return Qwen3-Reranker's own template where this is the same text."""
        same = all(
            _format(template, task, "q", "d") == _format(QWEN3_RERANKER, task, "q", "d") for task in ("i", "other")
        )
        if not same or template.strips:
            return template
        own = template.instruction
        return replace(QWEN3_RERANKER, instruction=own if own != DEFAULT_INSTRUCTION else None)

    def _refuse(self, why: str) -> None:
        raise ModelError(
            f"{self._name}: its chat template cannot be cut into fixed text and the two texts ({why}); say what the prompt is "
            "with --model-description FILE",
            model=self._name,
        )


def _format(template: Template, instruction: str | None, query: str, document: str) -> str:
    query = query.strip() if "query" in template.strips else query
    document = document.strip() if "document" in template.strips else document
    before = template.prefix + fill(template.head, instruction or "", query) + template.document_separator
    return before + document + fill(template.suffix, instruction or "", query)


def _find_default(bare: str, asked: str) -> str | None:
    """Return the instruction that a template has of its own, where one given takes its place; None where it has none."""
    before, found, after = asked.partition(_MARKS["instruction"])
    if not found or _MARKS["instruction"] in after or len(bare) < len(before) + len(after):
        return None
    if not bare.startswith(before) or not bare.endswith(after):
        return None
    own = bare[len(before) : len(bare) - len(after)]
    return None if any(mark in own for mark in _MARKS.values()) else own
