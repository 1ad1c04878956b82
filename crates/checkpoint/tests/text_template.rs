//! Chat templates: renderings compared with Python's jinja2 set up as transformers sets it up (data/text/templates.py
//! wrote the expectations), the published prompt forms, and templates that mean harm.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;

use marlin_checkpoint::text::{ChatOptions, ChatTemplate, Message, TokenizerConfig, starts_in_thinking};
use serde_json::{Map, Value, json};

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::find(Some(("chat_template.jinja", source)), None).unwrap().unwrap()
}

fn data(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/text").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn options(variables: &Map<String, Value>) -> ChatOptions {
    let mut extra = variables.clone();
    let mut switch = |name: &str| extra.remove(name).map(|v| v.as_bool().unwrap());
    ChatOptions {
        add_generation_prompt: switch("add_generation_prompt").unwrap_or(true),
        enable_thinking: switch("enable_thinking"),
        clear_thinking: switch("clear_thinking"),
        tools: extra.remove("tools").map(|t| t.as_array().unwrap().clone()).unwrap_or_default(),
        extra,
    }
}

#[test]
fn prompts_agree_with_python() {
    let cases: Value = serde_json::from_str(&data("templates.json")).unwrap();
    let mut wrong = Vec::new();
    for case in cases.as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let file = format!("templates/{}.jinja", case["template"].as_str().unwrap());
        let config = TokenizerConfig::parse("tokenizer_config.json", &case["special"].to_string()).unwrap();
        let now = case["now"].as_str().unwrap().parse().unwrap();
        let template = ChatTemplate::find(Some((&file, &data(&file))), Some(("tokenizer_config.json", &config)))
            .unwrap_or_else(|e| panic!("{name}: {e}"))
            .unwrap()
            .with_clock(move || now);
        let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
        match (template.render(&messages, &options(case["variables"].as_object().unwrap())), case["expected"].as_str())
        {
            (Ok(found), Some(expected)) => {
                let differ = found.lines().zip(expected.lines()).filter(|(a, b)| a != b);
                for (ours, python) in differ.take(20) {
                    wrong.push(format!("{name}:\n  ours   {ours:?}\n  python {python:?}"));
                }
                if found.len() != expected.len() {
                    wrong.push(format!("{name}: {} bytes, Python {}", found.len(), expected.len()));
                }
            }
            (Err(error), None) => {
                let message = case["error"].as_str().unwrap();
                assert!(error.to_string().contains(message), "{name}: {error}");
            }
            (found, expected) => wrong.push(format!("{name}: {found:?}\n  python {expected:?}")),
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

/// The exact strings of the published prompt forms.
#[test]
fn published_forms() {
    let render = |name: &str, messages: &[Message], options: &ChatOptions| {
        template(&data(&format!("templates/{name}.jinja"))).render(messages, options).unwrap()
    };
    let off = ChatOptions { enable_thinking: Some(false), ..ChatOptions::default() };
    let hi = [Message::user("Hi")];
    let glm = render("glm", &hi, &ChatOptions::default());
    assert_eq!(glm, "[gMASK]<sop><|user|>Hi<|assistant|><think>");
    assert!(starts_in_thinking(&glm));
    let glm = render("glm", &hi, &off);
    assert_eq!(glm, "[gMASK]<sop><|user|>Hi<|assistant|></think>");
    assert!(!starts_in_thinking(&glm));
    let history = [
        Message::system("S"),
        Message::user("Q1"),
        Message { reasoning_content: Some("R1".into()), ..Message::assistant("A1") },
        Message::user("Q2"),
    ];
    assert_eq!(
        render("glm", &history, &ChatOptions::default()),
        "[gMASK]<sop><|system|>S<|user|>Q1<|assistant|></think>A1<|user|>Q2<|assistant|><think>"
    );
    assert_eq!(
        render("qwen", &hi, &off),
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    );
    assert!(!starts_in_thinking(&render("qwen", &hi, &off)));
    assert!(starts_in_thinking("<|im_start|>assistant\n<think>\n"));
}

#[test]
fn fable_reference_prompt() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/fable-glm4-moe-lite");
    let reference = std::fs::read_to_string(folder.join("reference.json")).unwrap();
    let reference: Value = serde_json::from_str(&reference).unwrap();
    let source = std::fs::read_to_string(folder.join("chat_template.jinja")).unwrap();
    let messages =
        [Message::system("You tell short tales."), Message::user("Tell me a story. A fox met a crow by the river.")];
    let prompt = template(&source).render(&messages, &ChatOptions::default()).unwrap();
    assert_eq!(prompt, reference["prompt_text"]["chat"].as_str().unwrap());
}

#[test]
fn templates_from_the_config() {
    let config = |value: Value| TokenizerConfig::parse("tokenizer_config.json", &value.to_string()).unwrap();
    let find = |c: &TokenizerConfig| ChatTemplate::find(None, Some(("tokenizer_config.json", c)));
    let hi = [Message::user("Hi")];
    let tools = ChatOptions { tools: vec![json!({"name": "f"})], ..ChatOptions::default() };

    let one = config(json!({"chat_template": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}",
        "bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": false}, "unk_token": null, "add_bos_token": true}));
    let one = find(&one).unwrap().unwrap();
    assert_eq!(one.render(&hi, &ChatOptions::default()).unwrap(), "<s>Hi</s>");

    let two =
        config(json!({"chat_template": [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]}));
    let two = find(&two).unwrap().unwrap();
    assert_eq!(two.render(&hi, &ChatOptions::default()).unwrap(), "D");
    assert_eq!(two.render(&hi, &tools).unwrap(), "T");

    assert!(find(&config(json!({}))).unwrap().is_none());
    assert!(ChatTemplate::find(None, None).unwrap().is_none());
    assert!(ChatTemplate::missing("some/base").to_string().contains("has no chat template"));
    let error = TokenizerConfig::parse("f/tokenizer_config.json", r#"{"chat_template": 3}"#).unwrap_err().to_string();
    assert!(error.contains("f/tokenizer_config.json") && error.contains("found a number"), "{error}");
    let error = TokenizerConfig::parse("f/tokenizer_config.json", "{").unwrap_err().to_string();
    assert!(error.contains("f/tokenizer_config.json") && error.contains("not valid JSON"), "{error}");
}

#[test]
fn tool_arguments_may_be_a_json_string() {
    let message: Message = serde_json::from_value(json!({"role": "assistant", "content": null, "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"b\": 1, \"a\": \"x\"}"}}]}))
    .unwrap();
    let t =
        template("{% for k, v in messages[0].tool_calls[0].function.arguments.items() %}{{ k }}={{ v }};{% endfor %}");
    assert_eq!(t.render(&[message], &ChatOptions::default()).unwrap(), "b=1;a=x;");
}

#[test]
fn a_broken_template_names_file_and_line() {
    let find = |source: &str| ChatTemplate::find(Some(("m/chat_template.jinja", source)), None).map(|_| ());
    for (source, line) in [("a\nb\n{% if %}", "line 3"), ("{% for x in y %}", "line 1"), ("x\n{{ 'open", "line 2")] {
        let error = find(source).unwrap_err().to_string();
        assert!(error.contains("m/chat_template.jinja") && error.contains(line), "{error}");
    }
    let t = template("one\ntwo {{ nothing.at.all }}");
    let error = t.render(&[], &ChatOptions::default()).unwrap_err().to_string();
    assert!(error.contains("chat_template.jinja line 2"), "{error}");
    let error = template("{{ messages | nosuchfilter }}").render(&[], &ChatOptions::default()).unwrap_err().to_string();
    assert!(error.contains("nosuchfilter"), "{error}");
    let error = find("{% include 'other' %}").unwrap_err().to_string();
    assert!(error.contains("not possible in a chat template"), "{error}");
    let error = find(&"x".repeat(2 << 20)).unwrap_err().to_string();
    assert!(error.contains("expected a template of at most"), "{error}");
}

/// Each of these would hang, exhaust memory or overflow the stack if it were let.
#[test]
fn hostile_templates_end_in_an_error() {
    let started = std::time::Instant::now();
    let doubling =
        "{% set ns = namespace(x='xxxxxxxxxxxxxxxx') %}{% for i in range(60) %}{% set ns.x = OP %}{% endfor %}";
    let mut hostile: Vec<String> = [
        "ns.x ~ ns.x",
        "ns.x + ns.x",
        "ns.x * 2",
        "ns.x.replace('x', ns.x)",
        "ns.x | replace('x', ns.x)",
        "ns.x.join(ns.x)",
        "[ns.x, ns.x] | join",
        "ns.x | list + ns.x | list",
        "[ns.x] * 1000 | string",
        "([ns.x] * 100000) ~ ''",
        "'%s%s' | format(ns.x, ns.x)",
        "'{}{}'.format(ns.x, ns.x)",
        "{'a': ns.x, 'b': ns.x} | tojson",
        "(ns.x ~ '\n') * 2 | indent(1000000)",
    ]
    .iter()
    .map(|op| doubling.replace("OP", op))
    .collect();
    hostile.extend(
        [
            "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
            "{% macro f(x) %}{{ f(x ~ x) }}{% endmacro %}{{ f('xxxx') }}",
            "{% for a in range(1000000000) %}{% endfor %}",
            "{{ 'x' * 1000000000 }}",
            "{{ ('x' * 99999999) ~ ('y' * 99999999) }}",
            "{{ [1] * 99999999 | list | length }}",
            "{{ ([('x' * 9999999)] * 999999) | map('upper') | list | length }}",
            "{{ '%99999999999d' | format(1) }}",
            "{{ '{:99999999999}'.format(1) }}",
            "{{ range(100000) | list | batch(1000000000) }}{{ [1] | slice(1000000000) }}",
            "{% set ns = namespace(x=[]) %}{% for i in range(100000) %}{% for j in range(100000) %}{% set ns.x = [[[[ns.x]]]] %}{% endfor %}{% endfor %}",
            "{% set ns = namespace(x=[]) %}{% for i in range(30000) %}{% set ns.x = [[[[ns.x]]]] %}{% endfor %}{{ ns.x | tojson }}",
        ]
        .map(str::to_owned),
    );
    let big = "long text ".repeat(5000);
    hostile.push(format!("{{% for a in range(100000) %}}{big}{{% endfor %}}"));
    hostile.push(format!("{{% set x %}}{{% for a in range(100000) %}}{big}{{% endfor %}}{{% endset %}}"));
    hostile.push(format!(
        "{{% macro f() %}}{big}{{% endmacro %}}{{% for a in range(100000) %}}{{% set x = f() ~ f() %}}{{% endfor %}}"
    ));
    hostile.push(format!("{}{}", "{{ ".to_owned() + &"(".repeat(100_000), ")".repeat(100_000) + " }}"));
    hostile.push("{% if 1 %}".repeat(50_000));
    for source in &hostile {
        let outcome = ChatTemplate::find(Some(("chat_template.jinja", source)), None)
            .and_then(|t| t.unwrap().render(&[Message::user("Hi")], &ChatOptions::default()));
        let shown = &source[..source.len().min(150)];
        let error = outcome.map(|text| text.len()).expect_err(shown).to_string();
        assert!(error.starts_with("chat_template.jinja"), "{shown}: {error}");
    }
    // Deep values that are only built and dropped are fine.
    let deep = template(
        "{% set ns = namespace(x=[]) %}{% for i in range(20000) %}{% set ns.x = [[[[ns.x]]]] %}{% endfor %}ok",
    );
    assert_eq!(deep.render(&[], &ChatOptions::default()).unwrap(), "ok");
    assert!(started.elapsed().as_secs() < 60, "took {:?}", started.elapsed());
}

/// minijinja's own backward slices panic over these.
#[test]
fn backward_slices() {
    let render = |source: &str| template(source).render(&[], &ChatOptions::default());
    for (source, expected) in [
        ("{{ messages[::-1] | length }}", "0"),
        ("{% for m in messages[::-1] %}x{% else %}none{% endfor %}", "none"),
        ("{{ [1, 2, 3][::-1] }}{{ ([1] + [2])[::-1] }}{{ [1, 2, 3, 4][ : : -2] }}", "[3, 2, 1][2, 1][4, 2]"),
        ("{{ 'abc'[::-1] }}{{ 'abc' [::-1][::-1] }}{{ nothing[::-1] }}", "cbaabc[]"),
        ("{{ ([3, 1] | sort)[::-1][0] }}{{ {'a': [1, 2]}.a[::-1] }}{{ range(0)[::-1] }}", "3[2, 1][]"),
    ] {
        assert_eq!(render(source).unwrap(), expected, "{source}");
    }
    let text = |source: &str| match ChatTemplate::find(Some(("t.jinja", source)), None) {
        Ok(template) => template.unwrap().render(&[], &ChatOptions::default()).unwrap_err().to_string(),
        Err(error) => error.to_string(),
    };
    assert!(text("{{ ''[::-1] }}").contains("an empty text cannot be sliced backwards"));
    assert!(text("{{ [1, 2][:2:-1] }}").contains("a backward slice between bounds"));
    assert!(text("{{ [1, 2][::messages] }}").contains("a slice whose step is not a plain number"));
    assert!(text("{{ [1, 2][::-9223372036854775808] }}").contains("a slice whose step is not a plain number"));
}
