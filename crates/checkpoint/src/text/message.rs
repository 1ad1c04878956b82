//! A conversation, as templates see it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One turn of a conversation.
///
/// Serialises to the dictionary that chat templates expect: `content` is always there (null when `None`), the other
/// optional fields only when set, unknown fields as they were read.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`; templates may know others.
    pub role: String,
    /// What was said.
    #[serde(default)]
    pub content: Option<Content>,
    /// What the model thought before it answered, without the thinking tags.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// Tools that the assistant called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Vec<ToolCall>>,
    /// Name of the speaker, or of the tool that answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The call that a tool message answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// Fields that only some templates know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// The content of a message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Content {
    /// Plain text.
    Text(String),
    /// OpenAI-style parts such as `{"type": "text", "text": "..."}`, handed to the template as they are.
    Parts(Vec<Value>),
}

/// A tool call made by the assistant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ToolCall {
    /// Identifier that the tool's answer refers to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Always `function` so far.
    #[serde(default = "function", rename = "type")]
    pub kind: String,
    /// Which function, with what arguments.
    pub function: FunctionCall,
}

fn function() -> String {
    "function".into()
}

/// A function and its arguments.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FunctionCall {
    /// The function's name.
    pub name: String,
    /// An object, or (as the OpenAI API has it) a string holding the JSON of one. Templates iterate over arguments, so
    /// such a string is parsed before rendering; one that is not a JSON object is handed over as it is.
    pub arguments: Value,
}

impl Message {
    /// A message with plain text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: Some(Content::Text(content.into())), ..Self::default() }
    }

    /// Instructions that stand before the conversation.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new("system", content)
    }

    /// What the user says.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new("user", content)
    }

    /// What the model said.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new("assistant", content)
    }

    /// The message with tool arguments as objects (see [`FunctionCall::arguments`]).
    pub(super) fn with_parsed_arguments(&self) -> Self {
        let mut message = self.clone();
        for call in message.tool_calls.iter_mut().flatten() {
            if let Value::String(text) = &call.function.arguments
                && let Ok(parsed @ Value::Object(_)) = serde_json::from_str(text)
            {
                call.function.arguments = parsed;
            }
        }
        message
    }
}
