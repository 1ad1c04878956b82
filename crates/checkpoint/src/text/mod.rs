//! Text to token ids and back, and conversations to prompts.
//!
//! * [`Tokenizer`] reads `tokenizer.json` and gives the ids that Hugging Face's fast tokenizers give.
//! * [`StreamDecoder`] turns ids into text as they arrive, never splitting a character.
//! * [`ChatTemplate`] renders [`Message`]s with the checkpoint's own Jinja template.
//!
//! Everything takes the contents of files, not paths; the file name given along with them appears in the errors.

mod config;
mod guard;
mod json;
mod limits;
mod message;
mod python;
mod stream;
mod tags;
mod template;
mod tokenizer;

pub use config::TokenizerConfig;
pub use jiff::civil::DateTime;
pub use message::{Content, FunctionCall, Message, ToolCall};
pub use stream::StreamDecoder;
pub use template::{ChatOptions, ChatTemplate, starts_in_thinking};
pub use tokenizer::Tokenizer;

#[cfg(test)]
mod tests;
