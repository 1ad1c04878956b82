//! Stop strings in streamed text.

/// Holds text back while it could still be the beginning of a stop string.
///
/// What ends the text is the stop string that is complete first, however the text is cut into pieces.
#[derive(Clone, Debug, Default)]
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
}

impl StopMatcher {
    /// Looks for any of `stops`; empty ones are ignored.
    pub fn new(stops: Vec<String>) -> Self {
        Self { stops: stops.into_iter().filter(|s| !s.is_empty()).collect(), held: String::new() }
    }

    /// More text: gives what is certain to come before any stop string, and the stop string found, if any. After one
    /// was found nothing is held.
    pub fn push(&mut self, piece: &str) -> (String, Option<String>) {
        if self.stops.is_empty() {
            return (piece.to_owned(), None);
        }
        self.held.push_str(piece);
        let ends = |stop: &String| self.held.find(stop.as_str()).map(|start| (start + stop.len(), start));
        let first = self.stops.iter().filter_map(|stop| ends(stop).map(|at| (at, stop))).min_by_key(|(at, _)| *at);
        if let Some(((_, start), stop)) = first {
            let stop = stop.clone();
            let mut text = std::mem::take(&mut self.held);
            text.truncate(start);
            return (text, Some(stop));
        }
        let certain = self.held.len() - self.longest_beginning();
        let rest = self.held.split_off(certain);
        (std::mem::replace(&mut self.held, rest), None)
    }

    /// The text has ended: what was held back.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Bytes of the longest end of the held text that begins a stop string.
    fn longest_beginning(&self) -> usize {
        let longest = self.stops.iter().map(|s| s.len() - 1).max().unwrap_or(0).min(self.held.len());
        (1..=longest)
            .rev()
            .filter(|n| self.held.is_char_boundary(self.held.len() - n))
            .find(|n| self.stops.iter().any(|s| s.starts_with(&self.held[self.held.len() - n..])))
            .unwrap_or(0)
    }
}

#[cfg(test)]
#[path = "tests/stop.rs"]
mod tests;
