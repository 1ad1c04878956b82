//! Tells what a model thinks from what it says.

use marlin_checkpoint::text::{Message, Tokenizer};

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";
const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

/// An answer as it arrives.
pub struct Thinking {
    open: Option<u32>,
    close: Option<u32>,
    inside: bool,
    /// Whether anything but blanks has been shown since the answer, or the part after the thoughts, began.
    begun: bool,
    thoughts: String,
    said: String,
}

impl Thinking {
    /// An answer by a model with this tokenizer; `inside` if the prompt ends in an open thought.
    pub fn new(tokenizer: &Tokenizer, inside: bool) -> Self {
        let (open, close) = (tokenizer.token_to_id(OPEN), tokenizer.token_to_id(CLOSE));
        Self { open, close, inside, begun: false, thoughts: String::new(), said: String::new() }
    }

    /// The next token and text that is certain now: what to show. Thoughts are dim on a terminal (`styled`), and stand
    /// between tags elsewhere.
    pub fn push(&mut self, token: Option<u32>, text: &str, styled: bool) -> String {
        let mut shown = String::new();
        let turns = |tag: Option<u32>| token.is_some() && token == tag;
        if turns(self.open) || turns(self.close) {
            // A tag may come with text that was held back before it.
            let tag = if turns(self.open) { OPEN } else { CLOSE };
            let (before, after) = text.split_once(tag).unwrap_or((text, ""));
            self.add(before, styled, &mut shown);
            let inside = tag == OPEN;
            if self.inside != inside {
                self.inside = inside;
                self.begun = false;
                shown.push_str(match (styled, inside) {
                    (true, true) => "",
                    (true, false) => "\n\n",
                    (false, true) => OPEN,
                    (false, false) => "</think>\n",
                });
            }
            self.add(after, styled, &mut shown);
        } else {
            self.add(text, styled, &mut shown);
        }
        shown
    }

    fn add(&mut self, text: &str, styled: bool, shown: &mut String) {
        let part = if self.inside { &mut self.thoughts } else { &mut self.said };
        part.push_str(text);
        // Templates put blank lines around; nobody needs to see them.
        let text = if self.begun { text } else { text.trim_start() };
        if text.is_empty() {
            return;
        }
        self.begun = true;
        if self.inside && styled {
            // Each piece by itself, so that the terminal is never left dim.
            shown.push_str(&format!("{DIM}{text}{PLAIN}"));
        } else {
            shown.push_str(text);
        }
    }

    /// The answer is over: what to show last.
    pub fn end(&self, styled: bool) -> String {
        let last = if self.inside { &self.thoughts } else { &self.said };
        let closing = if self.inside && !styled { CLOSE } else { "" };
        let line = if last.ends_with('\n') && closing.is_empty() { "" } else { "\n" };
        format!("{closing}{line}")
    }

    /// The answer for the conversation, without the blanks that templates put around it themselves.
    pub fn message(self) -> Message {
        let mut message = Message::assistant(self.said.trim());
        let thoughts = self.thoughts.trim();
        message.reasoning_content = (!thoughts.is_empty()).then(|| thoughts.to_owned());
        message
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use marlin_checkpoint::text::Content;

    fn answer(inside: bool) -> Thinking {
        let (thoughts, said) = (String::new(), String::new());
        Thinking { open: Some(1), close: Some(2), inside, begun: false, thoughts, said }
    }

    fn shown(mut answer: Thinking, styled: bool, pieces: &[(u32, &str)]) -> (String, Message) {
        let mut all: String = pieces.iter().map(|(token, text)| answer.push(Some(*token), text, styled)).collect();
        all.push_str(&answer.end(styled));
        (all, answer.message())
    }

    #[test]
    fn thoughts_are_told_apart() {
        let pieces = [(1, "<think>"), (5, "\nhm"), (6, " so"), (2, ".</think>"), (7, "\n\nYes"), (8, ".")];
        let (text, message) = shown(answer(false), false, &pieces);
        assert_eq!(text, "<think>hm so.</think>\nYes.\n");
        assert_eq!(message.content, Some(Content::Text("Yes.".into())));
        assert_eq!(message.reasoning_content.as_deref(), Some("hm so."));
        let (text, _) = shown(answer(false), true, &pieces);
        assert_eq!(text, "\x1b[2mhm\x1b[0m\x1b[2m so\x1b[0m\x1b[2m.\x1b[0m\n\nYes.\n");
        // The prompt has opened the thought, and the tags are special tokens without text.
        let (text, message) = shown(answer(true), false, &[(5, "hm"), (2, ""), (7, "Yes")]);
        assert_eq!((text.as_str(), message.reasoning_content.as_deref()), ("hm</think>\nYes\n", Some("hm")));
        let (text, message) = shown(answer(false), false, &[(7, "\n Yes\n")]);
        assert_eq!((text.as_str(), message.reasoning_content), ("Yes\n", None));
    }
}
