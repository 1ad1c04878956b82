//! What the user says: lines of a terminal with editing and history, or of a pipe.

use crate::error::{Failure, Result};
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{Config, Editor};
use std::io::{BufRead, IsTerminal};
use std::path::PathBuf;

/// A turn, or why there is none.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// What was said, lines joined.
    Text(String),
    /// Ctrl-C at the prompt.
    Interrupted,
    /// Ctrl-D, or the end of the pipe.
    End,
}

/// Where lines come from.
pub enum Input {
    /// A person.
    Terminal(Box<Editor<(), FileHistory>>, Option<PathBuf>),
    /// A script.
    Pipe,
}

const TEXT_QUOTES: &str = "\"\"\"";

impl Input {
    /// Standard input.
    pub fn open() -> Self {
        if !std::io::stdin().is_terminal() {
            return Self::Pipe;
        }
        let config = Config::builder().max_history_size(1000).map(|b| b.auto_add_history(false).build());
        let Ok(mut editor) = config.and_then(Editor::with_config) else { return Self::Pipe };
        let file = history_file();
        if let Some(file) = &file {
            // There is none before the first conversation.
            let _ = editor.load_history(file);
        }
        Self::Terminal(Box::new(editor), file)
    }

    /// Whether a person is there.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal(..))
    }

    /// The next turn.
    pub fn read(&mut self) -> Result<Line> {
        let turn = join(&mut |first| self.line(if first { "> " } else { ". " }))?;
        if let (Self::Terminal(editor, file), Line::Text(text)) = (&mut *self, &turn) {
            // Only history is lost if it cannot be kept.
            let _ = editor.add_history_entry(text.as_str());
            // At once: however the program ends, what was typed is there next time.
            if let Some(file) = file
                && matches!(file.parent().map(std::fs::create_dir_all), Some(Ok(())))
            {
                // A conversation should not be disturbed by a complaint about its history.
                let _ = editor.append_history(file);
            }
        }
        Ok(turn)
    }

    fn line(&mut self, prompt: &str) -> Result<Line> {
        match self {
            Self::Terminal(editor, _) => match editor.readline(prompt) {
                Ok(line) => Ok(Line::Text(line)),
                Err(ReadlineError::Eof) => Ok(Line::End),
                Err(ReadlineError::Interrupted) => Ok(Line::Interrupted),
                Err(other) => Err(Failure::text(format!("standard input: {other}"))),
            },
            Self::Pipe => {
                let mut line = String::new();
                match std::io::stdin().lock().read_line(&mut line) {
                    Ok(0) => Ok(Line::End),
                    Ok(_) => Ok(Line::Text(line.trim_end_matches(['\n', '\r']).to_owned())),
                    Err(e) => Err(Failure::text(format!("standard input: {e}"))),
                }
            }
        }
    }
}

/// Joins the lines of a turn: one that ends with a backslash goes on, and so does one that begins with three quotes until
/// three quotes end a line. `line(first)` gives the next line.
fn join(line: &mut dyn FnMut(bool) -> Result<Line>) -> Result<Line> {
    let mut text = match line(true)? {
        Line::Text(text) => text,
        other => return Ok(other),
    };
    if let Some(rest) = text.trim_start().strip_prefix(TEXT_QUOTES) {
        let mut text = rest.to_owned();
        loop {
            if let Some(whole) = text.trim_end().strip_suffix(TEXT_QUOTES) {
                return Ok(Line::Text(whole.trim_matches('\n').to_owned()));
            }
            match line(false)? {
                Line::Text(more) => text = text + "\n" + &more,
                Line::End => return Ok(Line::Text(text)),
                Line::Interrupted => return Ok(Line::Interrupted),
            }
        }
    }
    while let Some(before) = text.strip_suffix('\\') {
        match line(false)? {
            Line::Text(more) => text = format!("{before}\n{more}"),
            Line::End => return Ok(Line::Text(before.to_owned())),
            Line::Interrupted => return Ok(Line::Interrupted),
        }
    }
    Ok(Line::Text(text))
}

/// `$XDG_STATE_HOME/metal-marlin/history`, `~/.local/state/...`, or on macOS in `~/Library/Application Support`.
fn history_file() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").filter(|v| !v.is_empty()).map(PathBuf::from);
    let below = if cfg!(target_os = "macos") { "Library/Application Support" } else { ".local/state" };
    let folder = state.or_else(|| std::env::home_dir().map(|home| home.join(below)))?;
    Some(folder.join("metal-marlin/history"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(lines: &[&str]) -> Line {
        let mut lines = lines.iter();
        join(&mut |_| Ok(lines.next().map_or(Line::End, |l| Line::Text((*l).to_owned())))).unwrap()
    }

    #[test]
    fn lines_go_on() {
        assert_eq!(joined(&["one", "two"]), Line::Text("one".into()));
        assert_eq!(joined(&["one\\", "two\\", "three", "four"]), Line::Text("one\ntwo\nthree".into()));
        assert_eq!(joined(&["\"\"\"", "a", "", "b\"\"\"", "c"]), Line::Text("a\n\nb".into()));
        assert_eq!(joined(&["\"\"\"a\"\"\""]), Line::Text("a".into()));
        assert_eq!(joined(&["\"\"\"a"]), Line::Text("a".into()));
        assert_eq!(joined(&[]), Line::End);
    }
}
