//! What one request makes of its tokens: text, stop strings, the end.

use crate::{FinishReason, Request, RequestId, Sampling, StopMatcher, TokenEvent};
use marlin_backend::sampling::Seen;
use marlin_backend::{Sample, SampleRow};
use marlin_checkpoint::text::{StreamDecoder, Tokenizer};
use std::collections::HashMap;

/// Prompt tokens a decoder sees before the answer's first: enough for a character that began in the prompt and for
/// decoders that treat the first token of a text differently.
const CONTEXT: usize = 6;

/// The state of one answer.
#[derive(Clone, Debug)]
pub struct Generation {
    id: RequestId,
    sampling: Sampling,
    seed: u64,
    /// Tokens that are not padding of the vocabulary.
    vocab: usize,
    max_tokens: usize,
    ends: Vec<u32>,
    generated: usize,
    decoder: Option<StreamDecoder>,
    /// The prompt's text that the decoder still holds: not part of the answer unless the answer's bytes change it.
    inherited: String,
    stops: StopMatcher,
    /// Counts of tokens for penalties, and where each token's are.
    seen: Vec<Seen>,
    places: HashMap<u32, usize>,
}

impl Generation {
    /// The answer to `request`, at most `max_tokens` long; `eos` are the model's own end tokens.
    pub fn new(
        id: RequestId,
        request: &Request,
        max_tokens: usize,
        eos: &[u32],
        vocab: usize,
        seed: u64,
        tokenizer: Option<&Tokenizer>,
    ) -> Self {
        let mut ends = request.stop_tokens.clone();
        if !request.ignore_eos {
            ends.extend_from_slice(eos);
        }
        let decoder = tokenizer.map(|tokenizer| {
            let mut decoder = tokenizer.stream_decoder(request.skip_special);
            for &token in &request.prompt[request.prompt.len().saturating_sub(CONTEXT)..] {
                decoder.push(token);
            }
            decoder
        });
        let inherited = decoder.clone().and_then(|mut d| d.finish()).unwrap_or_default();
        let mut new = Self {
            id,
            sampling: request.sampling.clone(),
            seed,
            vocab,
            max_tokens,
            ends,
            generated: 0,
            decoder,
            inherited,
            stops: StopMatcher::new(request.stop.clone()),
            seen: Vec::new(),
            places: HashMap::new(),
        };
        if new.sampling.needs_history() {
            request.prompt.iter().for_each(|&token| new.seen(token).prompt += 1);
        }
        new
    }

    /// Seed of the draws.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Tokens chosen so far.
    pub fn generated(&self) -> usize {
        self.generated
    }

    /// Whether the tokens before it change the choice of the next one.
    pub fn needs_history(&self) -> bool {
        self.sampling.needs_history()
    }

    /// How the next token but `pending` is to be chosen. If [the tokens before it change that](Self::needs_history), none may
    /// be pending.
    pub fn sample_row(&self, pending: usize) -> SampleRow {
        let s = &self.sampling;
        SampleRow {
            temperature: s.temperature,
            top_k: s.top_k,
            top_p: s.top_p,
            min_p: s.min_p,
            repetition_penalty: s.repetition_penalty,
            presence_penalty: s.presence_penalty,
            frequency_penalty: s.frequency_penalty,
            logit_bias: s.logit_bias.clone(),
            seed: self.seed,
            draw: (self.generated + pending) as u64,
            seen: self.seen.clone(),
            top_logprobs: s.top_logprobs,
            vocab: self.vocab,
        }
    }

    /// Takes a chosen token: what to tell, and why the answer ends if it does.
    pub fn accept(&mut self, sample: Sample) -> (TokenEvent, Option<FinishReason>) {
        let token = sample.token;
        self.generated += 1;
        if self.sampling.needs_history() {
            self.seen(token).answer += 1;
        }
        let (text, reason) = self.text_of(token);
        let full = (self.generated >= self.max_tokens).then_some(FinishReason::Length);
        let Sample { logprob, top, margin, .. } = sample;
        (TokenEvent { id: self.id, token, text, logprob, top, margin }, reason.or(full))
    }

    /// The answer has ended: text that was held back. Nothing once a stop string was found.
    pub fn finish(&mut self) -> String {
        let rest = self.decoder.as_mut().and_then(StreamDecoder::finish).unwrap_or_default();
        let rest = self.own(rest);
        let (mut text, stop) = self.stops.push(&rest);
        if stop.is_none() {
            text.push_str(&self.stops.finish());
        }
        text
    }

    fn text_of(&mut self, token: u32) -> (String, Option<FinishReason>) {
        if self.ends.contains(&token) {
            return (String::new(), Some(FinishReason::StopToken(token)));
        }
        let Some(piece) = self.decoder.as_mut().and_then(|d| d.push(token)) else { return (String::new(), None) };
        let piece = self.own(piece);
        let (text, stop) = self.stops.push(&piece);
        if stop.is_some() {
            // Bytes of a character after the stop string are not part of the answer.
            self.decoder = None;
        }
        (text, stop.map(FinishReason::StopString))
    }

    /// The part of a piece that is the answer's.
    fn own(&mut self, piece: String) -> String {
        let inherited = std::mem::take(&mut self.inherited);
        piece.strip_prefix(&inherited).map(str::to_owned).unwrap_or(piece)
    }

    fn seen(&mut self, token: u32) -> &mut Seen {
        let place = *self.places.entry(token).or_insert_with(|| {
            self.seen.push(Seen { token, prompt: 0, answer: 0 });
            self.seen.len() - 1
        });
        &mut self.seen[place]
    }
}

#[cfg(test)]
#[path = "tests/generation.rs"]
mod tests;
