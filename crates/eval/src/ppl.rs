//! Perplexity of a text under a model.

use crate::{Error, Result};
use marlin_backend::Backend;
use marlin_engine::{Engine, Window, log_probability};
use serde::Serialize;
use std::fmt;

/// How a text is cut into windows, and which tokens of each are scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// A window starts every `stride` tokens and has `context` of them. The first scores all but its first token, each
    /// later one the tokens beyond the window before it. So every token but the first is scored once.
    Sliding {
        /// Tokens of a window.
        context: usize,
        /// Tokens between the starts of windows.
        stride: usize,
    },
    /// llama.cpp's: windows of `context` tokens side by side, the first token replaced by BOS where the model has one,
    /// the second half scored (`context / 2 - 1` tokens).
    LlamaCpp {
        /// Tokens of a window.
        context: usize,
    },
    /// exllamav3's: windows of `context` (there 2048) tokens side by side, all scored but the first.
    Exl3 {
        /// Tokens of a window.
        context: usize,
    },
}

/// A window: tokens `start .. end` are given, tokens `scored .. end` rated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First token of the window.
    pub start: usize,
    /// One after the last.
    pub end: usize,
    /// First token that is scored, after `start`.
    pub scored: usize,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sliding { .. } => "sliding",
            Self::LlamaCpp { .. } => "llama.cpp",
            Self::Exl3 { .. } => "exl3",
        })
    }
}

impl Protocol {
    /// Tokens of a window.
    pub fn context(&self) -> usize {
        match *self {
            Self::Sliding { context, .. } | Self::LlamaCpp { context } | Self::Exl3 { context } => context,
        }
    }

    /// Tokens between the starts of windows.
    pub fn stride(&self) -> usize {
        match *self {
            Self::Sliding { stride, .. } => stride,
            Self::LlamaCpp { context } | Self::Exl3 { context } => context,
        }
    }

    /// The windows of a text of `tokens` tokens.
    pub fn windows(&self, tokens: usize) -> Result<Vec<Span>> {
        let (context, stride) = (self.context(), self.stride());
        let least = if matches!(self, Self::LlamaCpp { .. }) { 4 } else { 2 };
        if context < least {
            return Err(Error::setting("context", format!("at least {least} tokens"), context));
        }
        if stride == 0 || stride > context {
            return Err(Error::setting("stride", format!("1 to {context} tokens (the context)"), stride));
        }
        let sliding = matches!(self, Self::Sliding { .. });
        let needed = if sliding { 2 } else { context };
        if tokens < needed {
            return Err(Error::TooShort { protocol: self.to_string(), needed, found: tokens });
        }
        let mut spans: Vec<Span> = Vec::new();
        let mut start = 0;
        loop {
            let end = (start + context).min(tokens);
            let scored = match self {
                Self::Sliding { .. } => spans.last().map_or(start + 1, |before| before.end.max(start + 1)),
                Self::LlamaCpp { .. } => start + context / 2 + 1,
                Self::Exl3 { .. } => start + 1,
            };
            if scored < end {
                spans.push(Span { start, end, scored });
            }
            start += stride;
            let more = if sliding { end < tokens } else { start + context <= tokens };
            if !more {
                return Ok(spans);
            }
        }
    }
}

/// The result, with everything it depends on.
#[derive(Clone, Debug, Serialize)]
pub struct Perplexity {
    /// exp(nll_sum / tokens_scored)
    pub perplexity: f64,
    /// Its standard error.
    pub stderr: f64,
    /// Sum of the scored tokens' negative log-probabilities (natural logarithm), in f64.
    pub nll_sum: f64,
    /// How many tokens were scored.
    pub tokens_scored: usize,
    /// Tokens of the text.
    pub tokens: usize,
    /// Windows.
    pub windows: usize,
    /// `sliding`, `llama.cpp` or `exl3`.
    pub protocol: String,
    /// Tokens of a window.
    pub context: usize,
    /// Tokens between the starts of windows.
    pub stride: usize,
    /// The token that replaced the first of every window, if any.
    pub bos: Option<u32>,
}

/// Sums over one window; added up in order at the end, so that they do not depend on how windows shared steps.
#[derive(Clone, Copy, Default)]
struct Sums {
    nll: f64,
    squares: f64,
    count: usize,
}

/// Perplexity of `tokens`. Windows that fit into one step together are computed together. `bos` is used by
/// [`Protocol::LlamaCpp`] only. `progress` hears how many of how many tokens have been scored and may stop the work by
/// answering false.
pub fn perplexity<B: Backend>(
    engine: &mut Engine<B>,
    tokens: &[u32],
    protocol: Protocol,
    bos: Option<u32>,
    progress: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<Perplexity> {
    let spans = protocol.windows(tokens.len())?;
    let bos = bos.filter(|_| matches!(protocol, Protocol::LlamaCpp { .. }));
    let vocab = engine.vocab();
    if let Some(index) = tokens.iter().position(|t| *t as usize >= vocab) {
        return Err(marlin_engine::Error::UnknownToken { index, token: tokens[index], vocab }.into());
    }
    // The last token of a window is only predicted, never an input.
    let texts: Vec<Vec<u32>> = spans
        .iter()
        .map(|span| {
            let mut text = tokens[span.start..span.end - 1].to_vec();
            if let (Some(bos), Some(first)) = (bos, text.first_mut()) {
                *first = bos;
            }
            text
        })
        .collect();
    let windows: Vec<Window<'_>> = spans
        .iter()
        .zip(&texts)
        .map(|(span, text)| Window { tokens: text, from: span.scored - 1 - span.start })
        .collect();
    let total: usize = spans.iter().map(|s| s.end - s.scored).sum();
    let mut sums = vec![Sums::default(); spans.len()];
    let mut done = 0;
    engine
        .score(&windows, &mut |rows| {
            let sums = &mut sums[rows.window];
            for (position, logits) in rows.rows() {
                let target = spans[rows.window].start + position + 1;
                let nll = -log_probability(&logits[..vocab.min(logits.len())], tokens[target]);
                if !nll.is_finite() {
                    return Err(Error::NotFinite { position: target, value: nll }.carried());
                }
                sums.nll += nll;
                sums.squares += nll * nll;
                sums.count += 1;
                done += 1;
            }
            if progress(done, total) { Ok(()) } else { Err(Error::Stopped.carried()) }
        })
        .map_err(Error::uncarried)?;
    let all = sums.iter().fold(Sums::default(), |a, b| Sums {
        nll: a.nll + b.nll,
        squares: a.squares + b.squares,
        count: a.count + b.count,
    });
    let count = all.count as f64;
    let mean = all.nll / count;
    let variance = (all.squares / count - mean * mean).max(0.0);
    let perplexity = mean.exp();
    Ok(Perplexity {
        perplexity,
        stderr: perplexity * (variance / (count - 1.0).max(1.0)).sqrt(),
        nll_sum: all.nll,
        tokens_scored: all.count,
        tokens: tokens.len(),
        windows: spans.len(),
        protocol: protocol.to_string(),
        context: protocol.context(),
        stride: protocol.stride(),
        bos,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scored(spans: &[Span]) -> usize {
        spans.iter().map(|s| s.end - s.scored).sum()
    }

    #[test]
    fn sliding_windows_score_every_token_but_the_first_once() {
        let spans = Protocol::Sliding { context: 512, stride: 256 }.windows(8000).unwrap();
        assert_eq!(spans[0], Span { start: 0, end: 512, scored: 1 });
        assert_eq!(spans[1], Span { start: 256, end: 768, scored: 512 });
        assert_eq!(spans.last(), Some(&Span { start: 7680, end: 8000, scored: 7936 }));
        assert_eq!((spans.len(), scored(&spans)), (31, 7999));
        for (tokens, context, stride) in [(2, 512, 256), (511, 512, 256), (513, 512, 256), (768, 512, 256), (50, 7, 3)]
        {
            let spans = Protocol::Sliding { context, stride }.windows(tokens).unwrap();
            assert_eq!(scored(&spans), tokens - 1, "{tokens} {context} {stride}");
            assert!(spans.windows(2).all(|w| w[0].end == w[1].scored));
        }
    }

    #[test]
    fn side_by_side_windows_are_whole() {
        let spans = Protocol::LlamaCpp { context: 512 }.windows(8000).unwrap();
        assert_eq!((spans.len(), scored(&spans)), (15, 15 * 255));
        assert_eq!(spans[1], Span { start: 512, end: 1024, scored: 769 });
        let spans = Protocol::Exl3 { context: 2048 }.windows(8000).unwrap();
        assert_eq!((spans.len(), scored(&spans)), (3, 3 * 2047));
    }

    #[test]
    fn nonsense_is_refused() {
        let text = |protocol: Protocol, tokens| protocol.windows(tokens).unwrap_err().to_string();
        assert_eq!(
            text(Protocol::Sliding { context: 512, stride: 513 }, 9),
            "stride: expected 1 to 512 tokens (the context), found 513"
        );
        assert_eq!(text(Protocol::Exl3 { context: 2048 }, 2000), "the text has 2000 tokens; exl3 needs at least 2048");
        assert!(text(Protocol::LlamaCpp { context: 3 }, 9).starts_with("context: expected at least 4"));
    }
}
