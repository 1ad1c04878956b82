//! Any text as a chat template: renders a conversation with tools, or refuses; never crashes, hangs or swells.
#![no_main]

use libfuzzer_sys::fuzz_target;
use marlin_checkpoint::text::{ChatOptions, ChatTemplate, DateTime, Message, starts_in_thinking};
use serde_json::json;

fuzz_target!(|input: &str| {
    let Ok(Some(template)) = ChatTemplate::find(Some(("chat_template.jinja", input)), None) else { return };
    let template = template.with_clock(|| DateTime::constant(2024, 7, 26, 12, 0, 0, 0));
    let messages = [
        Message::system("Be brief."),
        Message::user("What is 2 + 2?"),
        Message::assistant("<think>Easy.</think>4"),
        Message::user("And 3 + 3?"),
    ];
    let tool = json!({"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}});
    for tools in [vec![], vec![tool]] {
        let options = ChatOptions { tools, enable_thinking: Some(false), ..ChatOptions::default() };
        if let Ok(prompt) = template.render(&messages, &options) {
            let _ = starts_in_thinking(&prompt);
        }
    }
});
