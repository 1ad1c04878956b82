"""Expected prompts for the chat templates beside this file, rendered as transformers' apply_chat_template does.

Run with `python3 templates.py` (needs jinja2; 3.1.6 was used). Writes templates.json: a list of
{"name", "template", "special", "now", "messages", "variables", "expected" or "error"}.
"""

import datetime
import json
import os

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = os.path.dirname(os.path.abspath(__file__))
NOW = datetime.datetime(2026, 3, 4, 5, 6, 7)


class Generation(jinja2.ext.Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    @jinja2.pass_eval_context
    def _body(self, context, caller):
        return caller()


def environment():
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda format: NOW.strftime(format)
    return env


SYSTEM = {"role": "system", "content": "You tell short tales."}
USER = {"role": "user", "content": "Tell me a story. A fox met a crow by the river."}
HI = {"role": "user", "content": "Hi"}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "Wetter in \u00d6sterreich <b>&'\"", "parameters": {
        "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "array", "items": {"type": "integer"}}},
        "required": ["city"]}}},
    {"type": "function", "function": {"name": "noop", "parameters": {}}},
]


def call(name, arguments):
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


HISTORY = [
    {"role": "system", "content": "S"}, {"role": "user", "content": "Q1"},
    {"role": "assistant", "content": "<think>\nR1\n</think>\n\nA1"}, {"role": "user", "content": "Q2"},
]
AGENT = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": "I look.", "reasoning_content": "Need a tool.", "tool_calls": [
        call("weather", {"city": "Z\u00fcrich", "days": [1, 2], "deep": {"items": [None, True, 1.5]}}), call("noop", {})]},
    {"role": "tool", "content": "sunny"}, {"role": "tool", "content": "{\"ok\": true}"},
    {"role": "assistant", "content": "Sunny.", "reasoning_content": "\nGood.\n"}, {"role": "user", "content": "Thanks"},
]
ONE_CALL = [USER, {"role": "assistant", "content": None, "tool_calls": [call("weather", {"city": "Bern"})]}, {"role": "tool", "content": "rain \"heavy\""}]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "one "}, {"type": "image"}, {"type": "text", "text": "two"}]}]
PENDING = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A", "reasoning_content": "R"}]

CASES = [
    ("fable", "fable", [SYSTEM, USER], {}),
    ("fable: no generation prompt", "fable", [USER, {"role": "assistant", "content": "No."}], {"add_generation_prompt": False}),
    *[(f"{t}: hi", t, [HI], {}) for t in ("glm", "qwen", "llama")],
    *[(f"{t}: thinking off", t, [HI], {"enable_thinking": False}) for t in ("glm", "qwen")],
    *[(f"{t}: thinking on", t, [HI], {"enable_thinking": True}) for t in ("glm", "qwen")],
    *[(f"{t}: history", t, HISTORY, {}) for t in ("glm", "qwen", "llama")],
    ("glm: history kept", "glm", HISTORY, {"clear_thinking": False}),
    *[(f"{t}: pending answer", t, PENDING, {"add_generation_prompt": False}) for t in ("glm", "qwen")],
    *[(f"{t}: agent", t, AGENT, {"tools": TOOLS}) for t in ("glm", "qwen", "llama")],
    ("glm: open agent turn", "glm", AGENT[:4], {"tools": TOOLS}), ("qwen: open agent turn", "qwen", AGENT[:4], {"tools": TOOLS}),
    ("glm: parts", "glm", PARTS, {}),
    ("glm: soft switch", "glm", [HI], {"enable_thinking": False, "soft_switch": True}),
    ("llama: system", "llama", [SYSTEM, USER], {}),
    ("llama: date given", "llama", [{"role": "user", "content": "  trimmed \n"}], {"date_string": "26 Jul 2024"}),
    ("llama: one call", "llama", ONE_CALL, {"tools": TOOLS}),
    ("llama: tools in system", "llama", ONE_CALL, {"tools": TOOLS, "tools_in_user_message": False}),
    ("llama: builtin tools", "llama", [USER], {"builtin_tools": ["brave_search", "code_interpreter", "wolfram_alpha"]}),
    ("llama: nobody asks", "llama", [SYSTEM], {"tools": TOOLS}),
]


def main():
    env = environment()
    special = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    cases = list(CASES)
    with open(f"{HERE}/templates/features.jinja", encoding="utf-8") as f:
        features = f.read()
    out = []
    for name, template, messages, variables in cases + [("features", "features", [HI], {})]:
        with open(f"{HERE}/templates/{template}.jinja", encoding="utf-8") as f:
            source = f.read()
        context = {"tools": None, "documents": None, "add_generation_prompt": True, **special, "messages": messages, **variables}
        case = {"name": name, "template": template, "special": special, "now": NOW.isoformat(), "messages": messages, "variables": variables}
        try:
            case["expected"] = env.from_string(source).render(**context)
        except jinja2.exceptions.TemplateError as e:
            if type(e) is not jinja2.exceptions.TemplateError:
                raise
            case["error"] = e.message
        out.append(case)
    with open(f"{HERE}/templates.json", "w", encoding="utf-8") as f:
        json.dump(out, f, ensure_ascii=False, indent=1)
        f.write("\n")


main()
