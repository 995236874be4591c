"""Prompts follow the model's own template, which is a stranger's program and stays in its sandbox."""

from dataclasses import replace

import pytest

from edgedistill.errors import UsageError
from edgedistill.tasks.data import Row
from edgedistill.tasks.task import Exemplar, Style, Task
from edgedistill.teach.prompts import Prompter, Template, Turns

TASK = Task("own", "a task", "equation", instruction="Solve it. End with \"The answer is\".\n", exemplars=(
    Exemplar("What is 2 and 3?", "Add them.", "2 + 3"), Exemplar("Half of 8?", "Divide.", "8 / 2", "Half: 8 / 2 = 4.")))
BARE = Task("own", "a task", "text")
CHATML = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
DROPS_SYSTEM = "{% for m in messages if m.role != 'system' %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"


class Model:
    """Stands for an engine by its template and special tokens: a GGUF for each template would add nothing."""

    def __init__(self, text, bos="<s>"):
        self.chat_template, self.bos = text, bos

    def special(self, name):
        return {"bos": self.bos, "eos": "</s>"}[name]

    def tokenize(self, text, add_special, parse_special):
        return (add_special, parse_special, text)


def turns(question="And 4?", task=TASK, pool=None, hint=False, label=None, **style):
    return Prompter(task, Style(**style), pool).turns(Row("1", question, label), hint)


def template(text, form="chat"):
    return Template(Model(text), form)


def text(chat_template, question="And 4?", task=TASK):
    return template(chat_template).text(turns(question, task))


# A model's template


def test_chat_prompt_has_instruction_exemplars_and_question_in_turns():
    assert text(CHATML) == (
        "<|im_start|>system\nSolve it. End with \"The answer is\".<|im_end|>\n"
        "<|im_start|>user\nWhat is 2 and 3?<|im_end|>\n"
        "<|im_start|>assistant\nAdd them. The answer is 2 + 3.<|im_end|>\n"
        "<|im_start|>user\nHalf of 8?<|im_end|>\n"
        "<|im_start|>assistant\nDivide. The answer is 8 / 2.<|im_end|>\n"
        "<|im_start|>user\nAnd 4?<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize("refusing", [NO_SYSTEM, DROPS_SYSTEM], ids=["refuses it", "leaves it out"])
def test_template_without_system_role_gets_the_instruction_in_the_first_question(refusing):
    prompt = text(refusing)
    assert "system" not in prompt
    assert "Solve it. End with \"The answer is\".\n\nWhat is 2 and 3?" in prompt
    assert prompt.count("Solve it.") == 1 and prompt.index("What is 2") < prompt.index("And 4?")
    alone = template(refusing).text(turns(shots=0))
    assert "Solve it. End with \"The answer is\".\n\nAnd 4?" in alone and "system" not in alone


def test_task_without_instruction_has_no_system_turn():
    assert text(CHATML, "Why?", BARE) == "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("hostile", [
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
def test_template_cannot_reach_out_of_its_sandbox(hostile, tmp_path):
    with pytest.raises(UsageError) as caught:
        template(hostile + CHATML)
    assert str(caught.value).startswith("the model's chat template cannot be rendered (")
    assert str(caught.value).endswith("give --format completion") and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("broken", [
    "{% for m in messages %}", "{{ 1 / 0 }}", "{% for i in range(10 ** 9) %}{% endfor %}",
    "{{ no.thing.at.all }}",
    "{{ messages[99].role.upper() }}", "{{ raise_exception('no\nrole') }}", "{{ 5 + 'a' }}", "{{ [][1]() }}",
    "{{ {}|unknown_filter }}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{% unknown_tag %}",
])
def test_broken_template_is_one_line_that_names_the_way_out(broken):
    with pytest.raises(UsageError) as caught:
        template(broken)
    assert str(caught.value).endswith("give --format completion") and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("other", [
    "Hello!", "{{ messages[0].content }}", "{% for m in messages|reverse %}{{ m.content }}{% endfor %}",
    "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
], ids=["nothing", "the first turn", "in the wrong order", "no answers"])
def test_template_that_leaves_out_what_it_is_told_is_refused(other):
    with pytest.raises(UsageError, match="leaves out what it is told.*--format completion"):
        template(other)


def test_template_with_control_tokens_that_the_model_does_not_have_is_doubted():
    assert "<|im_end|> is no token of this model" in template(CHATML).doubt  # the model here makes three of each
    assert template(DROPS_SYSTEM).doubt is None and template(None, "completion").doubt is None


def test_what_templates_of_today_use_is_there():
    used = ("{%- for m in messages -%}{%- if loop.index0 > 90 -%}{%- break -%}{%- endif -%}"
            "{%- if m['role'] == 'skip' -%}{%- continue -%}{%- endif -%}"
            "{{- m.content | trim | replace('a', 'b') -}}{%- endfor -%}"
            "{%- set ns = namespace(n=0) -%}{%- set ns.n = 5 -%}{{ ns.n }}{{ bos_token }}{{ eos_token }}"
            "{{ strftime_now('%d %b %Y') }}{{ tools is none }}{{ {'k': 1} | tojson }}")
    assert text(used, "a").endswith("b5<s></s>2026-01-01True{\"k\": 1}")


def test_question_is_data_and_never_a_template():
    prompt = text(CHATML, "{{ 1 + 1 }} {% raw %} {{ messages }}")
    assert "<|im_start|>user\n{{ 1 + 1 }} {% raw %} {{ messages }}<|im_end|>" in prompt


def test_model_without_template_is_told_how_to_go_on():
    for absent in (None, ""):
        with pytest.raises(UsageError, match="no chat template; .*--format completion"):
            template(absent)


def test_completion_prompt_is_plain_questions_and_answers():
    assert template(None, "completion").text(turns()) == (
        "Solve it. End with \"The answer is\".\n\n"
        "Q: What is 2 and 3?\nA: Add them. The answer is 2 + 3.\n\n"
        "Q: Half of 8?\nA: Divide. The answer is 8 / 2.\n\n"
        "Q: And 4?\nA:")
    assert template(None, "completion").text(turns("Why?", BARE)) == "Q: Why?\nA:"


def test_beginning_of_text_is_never_doubled():
    with_bos = "{{ bos_token }}" + CHATML
    add_special, parse_special, prompt = template(with_bos).tokens(turns())
    assert not add_special and parse_special and prompt.startswith("<s>")
    add_special, parse_special, _ = template(CHATML).tokens(turns())
    assert add_special and parse_special
    # A model without the token: adding specials adds none.
    assert Template(Model(CHATML, bos=""), "chat").tokens(turns())[0]


def test_control_tokens_in_plain_text_are_text():
    add_special, parse_special, _ = template(None, "completion").tokens(turns("<|im_end|>"))
    assert add_special and not parse_special


# The real one


def test_real_template_of_the_embedded_teacher_renders(teacher_path):
    from edgedistill.teach.engine import Engine

    engine = Engine(teacher_path, threads=1)
    try:
        made = Template(engine, "chat")
        prompt = made.text(turns())
        assert prompt.startswith("<|im_start|>system\nSolve it.") and prompt.endswith("<|im_start|>assistant\n")
        first, second, *_ = made.tokens(turns())
        # One BOS, which is the token that opens a turn.
        assert first == engine.tokenize("<|im_start|>", False, True)[0] != second
        assert len(made.tokens(turns("<|im_end|>"))) > len(made.tokens(turns("")))
        assert made.doubt is None
    finally:
        engine.close()


# Where a completion is over


@pytest.mark.parametrize(("written", "kept"), [
    (" Add them. The answer is 3 + 4. Another question", " Add them. The answer is 3 + 4."),
    (" Half. The answer is ( 2.5 * 4 ). Then", " Half. The answer is ( 2.5 * 4 )."),
    (" A city. The answer is St. Louis. Then", " A city. The answer is St. Louis."),
    (" So. The answer is 3 + 4\nQ: more", " So. The answer is 3 + 4\n"),
    (" The answer is 3 + 4.", None), (" No lead. Nothing. ", None), ("", None),
])
def test_completion_is_over_after_the_stated_answer(written, kept):
    match = Prompter(TASK, Style()).stop("chat").search(written)
    assert (match and written[: match.end()]) == kept


def test_answer_that_comes_first_ends_nothing():
    stop = Prompter(TASK, Style(order="answer-first")).stop
    written = " The answer is 3 + 4. Add them.\n"
    assert not stop("chat").search(written) and not stop("completion").search(written)
    assert stop("completion").search(f"{written}Q: Next?").end() == len(written) + 2


def test_thoughts_of_a_reasoning_model_end_nothing():
    stop = Prompter(TASK, Style()).stop("chat")
    thoughts = "<think>Maybe the answer is 2. The answer is 3.\n\nNo.</think> Add. "
    assert not stop.search(thoughts) and not stop.search(thoughts[:40])
    assert stop.search(f"{thoughts}The answer is 5.\nMore").end() == len(f"{thoughts}The answer is 5.")


def test_plain_text_is_over_at_the_next_question_and_a_chat_is_not():
    stop = Prompter(TASK, Style()).stop
    for written in (" First.\nQ: Next?", " First.\n\nNext."):
        assert stop("completion").search(written) and not stop("chat").search(written)


# Ways to ask


def test_prompt_shows_as_many_examples_as_it_is_told_and_there_are():
    shown = {shots: [question for question, _ in turns(shots=shots).examples] for shots in (0, 1, 2, 6)}
    both = ["What is 2 and 3?", "Half of 8?"]
    assert shown == {0: [], 1: both[:1], 2: both, 6: both}
    assert turns(shots=0).messages() == (
        {"role": "system", "content": TASK.instruction.strip()}, {"role": "user", "content": "And 4?"})


def test_answer_comes_first_where_it_is_asked_first():
    assert turns(order="answer-first").examples[0] == ("What is 2 and 3?", "The answer is 2 + 3. Add them.")
    assert TASK.split(turns(order="answer-first").examples[0][1]) == ("Add them.", "2 + 3.")


def test_style_may_bring_its_own_instruction():
    assert turns(instruction="Only code.\n").instruction == "Only code."
    assert turns().instruction == "Solve it. End with \"The answer is\"."


def test_executable_prompt_shows_steps_and_no_example_without_an_equation():
    worked = (*TASK.exemplars, Exemplar("Twice 6?", "It is 2 * 6 = 12.", "12"))
    assert [answer for _, answer in turns(task=replace(TASK, exemplars=worked), executable=True).examples] == [
        "Half: 8 / 2 = 4. The answer is 8 / 2.", "It is 2 * 6 = 12. The answer is 12."]


def test_executable_prompt_without_any_steps_is_one_line():
    plain = replace(TASK, exemplars=TASK.exemplars[:1])
    with pytest.raises(UsageError, match="has no exemplar with steps.*--prompt few-shot") as caught:
        turns(task=plain, executable=True)
    assert "\n" not in str(caught.value)
    assert turns(task=plain, executable=True, shots=0).examples == ()  # it shows none


def test_most_similar_example_is_next_to_the_question_and_is_never_the_row_itself():
    pool = tuple(Exemplar(f"{what}?", "So.", "1") for what in (
        "How far do ships sail", "Who milks cows", "How many eggs do ships carry", "How many ships sail"))
    questions = {asked: [question for question, _ in turns(asked, pool=pool, pick="similar", shots=2).examples] for asked in (
        "How many ships sail now?", "How many ships sail?")}
    assert questions["How many ships sail now?"][-1] == "How many ships sail?"
    assert questions["How many ships sail?"] == ["How many eggs do ships carry?", "How far do ships sail?"]
    assert turns("Half of 8?", pick="similar").examples == turns(shots=1).examples  # of the card's own two


def test_similar_examples_come_from_the_pool_that_is_given_and_others_never_do():
    pool = (Exemplar("One and one?", "Count.", "2"),)
    assert turns(pool=pool, pick="similar").examples == (("One and one?", "Count. The answer is 2."),)
    assert turns(pool=(), pick="similar").examples == ()
    assert turns(pool=pool).examples == turns().examples  # the first ones could be the row itself


def test_hint_tells_the_label_in_the_last_question_alone():
    plain, told = turns(label="3 + 4"), turns(label="3 + 4", hint=True)
    assert told.question == "And 4?\n(It is known that the answer is 3 + 4. Show why.)"
    assert plain == Turns(told.instruction, told.examples, "And 4?")
