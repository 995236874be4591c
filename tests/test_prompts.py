"""Prompts follow the model's own template, which is a stranger's program and stays in its sandbox."""

import pytest

from edgedistill.errors import UsageError
from edgedistill.tasks.task import Exemplar, Task
from edgedistill.teach.prompts import Prompter

TASK = Task("own", "a task", "equation", instruction="Solve it. End with \"The answer is\".\n", exemplars=(
    Exemplar("What is 2 and 3?", "Add them.", "2 + 3"), Exemplar("Half of 8?", "Divide.", "8 / 2")))
CHATML = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
DROPS_SYSTEM = "{% for m in messages if m.role != 'system' %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"


class Template:
    """Stands for an engine by its template and special tokens: a GGUF for each template would add nothing."""

    def __init__(self, text, bos="<s>"):
        self.chat_template, self.bos = text, bos

    def special(self, name):
        return {"bos": self.bos, "eos": "</s>"}[name]

    def tokenize(self, text, add_special, parse_special):
        return (add_special, parse_special, text)


def prompter(template, task=TASK, form="chat"):
    return Prompter(Template(template), task, form)


def test_chat_prompt_has_instruction_exemplars_and_question_in_turns():
    assert prompter(CHATML).text("And 4?") == (
        "<|im_start|>system\nSolve it. End with \"The answer is\".<|im_end|>\n"
        "<|im_start|>user\nWhat is 2 and 3?<|im_end|>\n"
        "<|im_start|>assistant\nAdd them. The answer is 2 + 3.<|im_end|>\n"
        "<|im_start|>user\nHalf of 8?<|im_end|>\n"
        "<|im_start|>assistant\nDivide. The answer is 8 / 2.<|im_end|>\n"
        "<|im_start|>user\nAnd 4?<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize("template", [NO_SYSTEM, DROPS_SYSTEM], ids=["refuses it", "leaves it out"])
def test_template_without_system_role_gets_the_instruction_in_the_first_question(template):
    text = prompter(template).text("And 4?")
    assert "system" not in text
    assert "Solve it. End with \"The answer is\".\n\nWhat is 2 and 3?" in text
    assert text.count("Solve it.") == 1 and text.index("What is 2") < text.index("And 4?")


def test_task_without_instruction_has_no_system_turn():
    text = prompter(CHATML, Task("own", "a task", "text")).text("Why?")
    assert text == "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("template", [
    "{{ ''.__class__.__mro__ }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.system('touch owned') }}",
    "{{ raise_exception.__globals__.os }}",
    "{{ strftime_now.__code__.co_filename }}",
    "{{ self.__init__.__globals__ }}",
    "{{ lipsum.__globals__['os'] }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{{ (messages|map(attribute='__class__')|first).__mro__ }}",
    "{% set _ = messages.append(1) %}",
    "{% set _ = messages[0].update({'role': 'x'}) %}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os }}",
])
def test_template_cannot_reach_out_of_its_sandbox(template, tmp_path):
    with pytest.raises(UsageError) as caught:
        prompter(template + CHATML)
    assert str(caught.value).startswith("the model's chat template cannot be rendered (")
    assert str(caught.value).endswith("give --format completion") and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("template", [
    "{% for m in messages %}", "{{ 1 / 0 }}", "{% for i in range(10 ** 9) %}{% endfor %}",
    "{{ no.thing.at.all }}",
    "{{ messages[99].role.upper() }}", "{{ raise_exception('no\nrole') }}", "{{ 5 + 'a' }}", "{{ [][1]() }}",
    "{{ {}|unknown_filter }}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{% unknown_tag %}",
])
def test_broken_template_is_one_line_that_names_the_way_out(template):
    with pytest.raises(UsageError) as caught:
        prompter(template)
    assert str(caught.value).endswith("give --format completion") and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_what_templates_of_today_use_is_there():
    used = ("{%- for m in messages -%}{%- if loop.index0 > 90 -%}{%- break -%}{%- endif -%}"
            "{%- if m['role'] == 'skip' -%}{%- continue -%}{%- endif -%}"
            "{{- m.content | trim | replace('a', 'b') -}}{%- endfor -%}"
            "{%- set ns = namespace(n=0) -%}{%- set ns.n = 5 -%}{{ ns.n }}{{ bos_token }}{{ eos_token }}"
            "{{ strftime_now('%d %b %Y') }}{{ tools is none }}{{ {'k': 1} | tojson }}")
    text = prompter(used).text("a")
    assert text.endswith("b5<s></s>2026-01-01True{\"k\": 1}")


def test_question_is_data_and_never_a_template():
    text = prompter(CHATML).text("{{ 1 + 1 }} {% raw %} {{ messages }}")
    assert "<|im_start|>user\n{{ 1 + 1 }} {% raw %} {{ messages }}<|im_end|>" in text


def test_model_without_template_is_told_how_to_go_on():
    for template in (None, ""):
        with pytest.raises(UsageError, match="no chat template; .*--format completion"):
            prompter(template)


def test_completion_prompt_is_plain_questions_and_answers():
    assert prompter(None, form="completion").text("And 4?") == (
        "Solve it. End with \"The answer is\".\n\n"
        "Q: What is 2 and 3?\nA: Add them. The answer is 2 + 3.\n\n"
        "Q: Half of 8?\nA: Divide. The answer is 8 / 2.\n\n"
        "Q: And 4?\nA:")
    assert prompter(None, Task("own", "a task", "text"), "completion").text("Why?") == "Q: Why?\nA:"


def test_beginning_of_text_is_never_doubled():
    with_bos = "{{ bos_token }}" + CHATML
    add_special, parse_special, text = prompter(with_bos).tokens("Why?")
    assert not add_special and parse_special and text.startswith("<s>")
    add_special, parse_special, _ = prompter(CHATML).tokens("Why?")
    assert add_special and parse_special
    # A model without the token: adding specials adds none.
    assert Prompter(Template(CHATML, bos=""), TASK, "chat").tokens("Why?")[0]


def test_control_tokens_in_plain_text_are_text():
    add_special, parse_special, _ = prompter(None, form="completion").tokens("<|im_end|>")
    assert add_special and not parse_special


@pytest.mark.parametrize(("written", "kept"), [
    (" Add them. The answer is 3 + 4. Another question", " Add them. The answer is 3 + 4."),
    (" Half. The answer is ( 2.5 * 4 ). Then", " Half. The answer is ( 2.5 * 4 )."),
    (" So. The answer is 3 + 4\nQ: more", " So. The answer is 3 + 4\n"),
    (" The answer is 3 + 4.", None), (" No lead. Nothing. ", None), ("", None),
])
def test_completion_is_over_after_the_stated_answer(written, kept):
    match = prompter(CHATML).stop.search(written)
    assert (match and written[: match.end()]) == kept


def test_plain_text_is_over_at_the_next_question_and_a_chat_is_not():
    for written in (" First.\nQ: Next?", " First.\n\nNext."):
        assert prompter(None, form="completion").stop.search(written)
        assert not prompter(CHATML).stop.search(written)


def test_real_template_of_the_embedded_teacher_renders(teacher_path):
    from edgedistill.teach.engine import Engine

    engine = Engine(teacher_path, threads=1)
    try:
        made = Prompter(engine, TASK, "chat")
        text = made.text("And 4?")
        assert text.startswith("<|im_start|>system\nSolve it.") and text.endswith("<|im_start|>assistant\n")
        first, second, *_ = made.tokens("And 4?")
        # One BOS, which is the token that opens a turn.
        assert first == engine.tokenize("<|im_start|>", False, True)[0] != second
        assert len(made.tokens("<|im_end|>")) > len(made.tokens(""))
    finally:
        engine.close()
