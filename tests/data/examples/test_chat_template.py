"""Chat templates render as transformers renders them, in a sandbox that does not outlast its time."""

import json
import subprocess
import sys
import time

import pytest

from megatrain.base.errors import DataError
from megatrain.data.examples import chat_template
from megatrain.data.examples.chat_template import ChatTemplate
from tests.tokenizer_kinds import CHAT_TEMPLATE

CHAT = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "who 'is' <that>?"},
    {"role": "assistant", "content": "me ☃"},
]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"b": 1, "a": "é"}}}]
TEMPLATES = [
    CHAT_TEMPLATE,
    "{%- for m in messages -%}\n  {%- if loop.first %}{% continue %}{% endif %}\n{{- m.content | tojson }}{% endfor %}",
    "{{ tools | tojson(indent=2) }}{% for m in messages %}[{{ m.role | upper }}]{{ m.content | trim }}{% endfor %}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}\n{% endfor %}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ ns.n }}{% endfor %}",
    "{% macro turn(m) %}{{ m.role ~ ': ' ~ m.content }}{% endmacro %}{% for m in messages %}{{ turn(m) }}{% endfor %}",
    "{% for m in messages[1:] %}\n    {% if m.role == 'user' %}\n U{{ m.content.split()[0] }}\n{% endif %}{% endfor %}",
]


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, name="t", tokens={"bos_token": "<s>", "eos_token": "</s>"})


@pytest.mark.parametrize("source", TEMPLATES)
@pytest.mark.parametrize("begun", [True, False])
def test_as_transformers_renders_it(source, begun) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    (expected,), _ = render_jinja_template(
        [CHAT], tools=TOOLS, chat_template=source, add_generation_prompt=begun, bos_token="<s>", eos_token="</s>"
    )
    assert template(source).render(CHAT, tools=TOOLS, add_generation_prompt=begun) == expected


@pytest.mark.parametrize("where", ["file", "config", "named", "map"])
def test_where_it_lies(tmp_path, where) -> None:
    config: dict[str, object] = {"bos_token": {"content": "<s>"}, "eos_token": "</s>"}
    source = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"
    if where in ("file", "map"):
        (tmp_path / "chat_template.jinja").write_text(source)
        config["chat_template"] = "another"
    else:
        several = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": source}]
        config["chat_template"] = source if where == "config" else several
    if where == "map":
        (tmp_path / "special_tokens_map.json").write_text(json.dumps({"bos_token": config.pop("bos_token")}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        found = ChatTemplate.load(path)
        assert found is not None
        assert found.render(CHAT) == "<s>be brief</s>"


def test_where_there_is_none(tmp_path) -> None:
    assert ChatTemplate.load(tmp_path) is None


def test_prompt_and_answer() -> None:
    prompt, answer = template(CHAT_TEMPLATE).pair(CHAT)
    assert prompt.endswith("<that>?<|im_end|>\n<|im_start|>assistant\n")
    assert answer == "me ☃<|im_end|>\n"


def test_a_template_without_a_beginning_for_an_answer() -> None:
    prompt, answer = template("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}").pair(CHAT)
    assert (prompt.splitlines()[-1], answer) == ("user: who 'is' <that>?", "assistant: me ☃\n")


def test_an_answer_that_changes_what_comes_before_it() -> None:
    with pytest.raises(DataError, match="otherwise than behind the text of those before it"):
        template("{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}").pair(CHAT)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages.x.y }}", "has no attribute"),
        ("{{ strftime_now('%d') }}", "strftime_now"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe|not safely"),
        ("{{ 'a' * 10 ** 9 }}", "too much"),
        ("{{ 9 ** 9 ** 9 }}", "too much"),
        ("{{ [1] * 10000000 }}", "too much"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "takes longer than 0.2 s"),
    ],
)
def test_a_template_that_fails(monkeypatch, source, says) -> None:
    monkeypatch.setattr(chat_template, "_SECONDS", 0.2)
    with pytest.raises(DataError, match=rf"^t: .*({says})"):
        template(source).render(CHAT)


DOUBLING = "{% set n = namespace(t='ab') %}{% for i in range(40) %}{% set n.t = n.t + n.t %}{% endfor %}{{ n.t }}"


FILLING = ["{{ '%999999999d'|format(1) }}", DOUBLING, "{{ 'a'|center(10 ** 9) }}"]


def test_templates_that_fill_the_memory() -> None:
    """In a process of its own: what earlier tests have freed may be taken again without asking the system."""
    code = (
        "import json, resource, sys\n"
        "from megatrain.base.errors import DataError\n"
        "from megatrain.data.examples.chat_template import ChatTemplate\n"
        "for source in json.loads(sys.argv[1]):\n"
        "    try: ChatTemplate(source, name='t', tokens={}).render([])\n"
        "    except DataError as error: print(error)\n"
        "    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY, 'as it was before'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(FILLING)], capture_output=True, text=True, timeout=120
    )
    assert (done.stdout, done.stderr) == ("t: takes more than 256 MiB to render\n" * len(FILLING), "")


@pytest.mark.parametrize("source", ["{% for %}", "{{ a", "{% unknown %}"])
def test_what_is_no_template(source) -> None:
    with pytest.raises(DataError, match="t: is not a chat template"):
        template(source)


def test_one_that_does_not_end_takes_its_time_once(monkeypatch) -> None:
    monkeypatch.setattr(chat_template, "_SECONDS", 0.1)
    endless = template("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}")
    began = time.process_time()
    for _ in range(20):
        with pytest.raises(DataError, match="takes longer than"):
            endless.render(CHAT)
    assert time.process_time() - began < 1
