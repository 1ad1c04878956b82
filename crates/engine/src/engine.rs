//! The engine: requests in, events out.

use crate::options::available_memory;
use crate::{
    BlockPool, EngineOptions, Error, Event, FinishReason, Finished, Generation, KvSizing, Limits, Plan, PoolStats,
    Request, RequestId, Result, Scheduler, Usage,
};
use marlin_backend::{Backend, Observer, Sample, SampleRow, SequenceStep, Step, Token};
use marlin_checkpoint::text::Tokenizer;
use marlin_models::{Model, NanGuard};
use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::time::Instant;

/// What the engine is doing and has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Requests that hold KV blocks.
    pub running: usize,
    /// Requests that do not yet, or no longer, run.
    pub waiting: usize,
    /// KV blocks and prefix cache.
    pub pool: PoolStats,
    /// Times a request gave its blocks up for older ones.
    pub preemptions: u64,
    /// Steps carried out.
    pub steps: u64,
    /// Tokens computed, those computed again included.
    pub computed_tokens: u64,
    /// Tokens of all prompts accepted.
    pub prompt_tokens: u64,
    /// Tokens chosen.
    pub generated_tokens: u64,
    /// Requests that ended by a stop token or string.
    pub stopped: u64,
    /// Requests that ended by their length.
    pub full: u64,
    /// Requests that were cancelled.
    pub cancelled: u64,
    /// Requests that failed.
    pub failed: u64,
}

/// A whole answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// The tokens, one that ended the answer included.
    pub tokens: Vec<u32>,
    /// The text, if the engine has a tokenizer.
    pub text: String,
    /// The tokens' log-probabilities.
    pub logprobs: Vec<f32>,
    /// Each choice's distance from another one, in logits.
    pub margins: Vec<f32>,
    /// How it ended.
    pub finished: Finished,
}

/// A request under way.
struct Active {
    generation: Generation,
    usage: Usage,
    submitted: Instant,
    scheduled: Option<Instant>,
    first_token: Option<Instant>,
}

/// Runs requests on a model: call [`Engine::step`] as long as it is not [idle](Engine::is_idle).
pub struct Engine<B: Backend> {
    pub(crate) backend: Arc<B>,
    pub(crate) model: Arc<Model<B>>,
    pub(crate) kv: B::Kv,
    pub(crate) scheduler: Scheduler,
    pub(crate) options: EngineOptions,
    /// Tokens of a step.
    pub(crate) chunk: usize,
    sizing: KvSizing,
    tokenizer: Option<Tokenizer>,
    eos: Vec<u32>,
    active: HashMap<RequestId, Active>,
    events: Vec<Event>,
    next_id: u64,
    counts: Stats,
}

impl<B: Backend> Engine<B> {
    /// An engine for `model`, whose answers end with any of `eos`. Without a tokenizer there are ids but no text.
    pub fn new(
        backend: Arc<B>,
        model: Arc<Model<B>>,
        tokenizer: Option<Tokenizer>,
        eos: Vec<u32>,
        options: EngineOptions,
    ) -> Result<Self> {
        options.check()?;
        let block_bytes = backend.kv_bytes(&model.kv_spec(options.block_size, 1));
        let sizing = options.size_kv(
            model.info().max_positions,
            block_bytes,
            backend.free_memory().or_else(available_memory),
        )?;
        let kv = backend.kv(model.kv_spec(sizing.block_size, sizing.blocks as usize))?;
        let pool = BlockPool::new(sizing.blocks, sizing.block_size, options.prefix_cache);
        let chunk = options.prefill_chunk.unwrap_or_else(|| backend.prefill_chunk());
        let limits = Limits { max_batch: options.max_batch, chunk, context: sizing.wanted };
        Ok(Self {
            backend,
            model,
            kv,
            chunk,
            scheduler: Scheduler::new(limits, pool),
            options,
            sizing,
            tokenizer,
            eos,
            active: HashMap::new(),
            events: Vec::new(),
            next_id: 0,
            counts: Stats::default(),
        })
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model<B>> {
        &self.model
    }

    /// The backend.
    pub fn backend(&self) -> &Arc<B> {
        &self.backend
    }

    /// The tokenizer, if there is one.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
    }

    /// The KV memory that was chosen.
    pub fn sizing(&self) -> &KvSizing {
        &self.sizing
    }

    /// Tokens of the longest sequence, prompt and answer together.
    pub fn context(&self) -> usize {
        self.sizing.context
    }

    /// Whether there is nothing to do and nothing to tell.
    pub fn is_idle(&self) -> bool {
        self.scheduler.is_idle() && self.events.is_empty()
    }

    /// Counts.
    pub fn stats(&self) -> Stats {
        Stats {
            running: self.scheduler.running().len(),
            waiting: self.scheduler.waiting(),
            pool: self.scheduler.pool().stats(),
            preemptions: self.scheduler.preemptions(),
            ..self.counts
        }
    }

    /// Forgets all prefixes that no request uses.
    pub fn clear_prefix_cache(&mut self) {
        self.scheduler.pool_mut().clear_cache();
    }

    /// Accepts a request, or says why it can never be carried out.
    pub fn submit(&mut self, request: Request) -> Result<RequestId> {
        let vocab = self.vocab();
        request.sampling.check(vocab)?;
        self.check_tokens(&request.prompt)?;
        let rows = self.model.info().vocab;
        if let Some(token) = request.stop_tokens.iter().find(|t| **t as usize >= rows) {
            return Err(Error::setting("stop_tokens", format!("tokens below {rows}"), token));
        }
        if !request.stop.is_empty() && self.tokenizer.is_none() {
            return Err(Error::setting("stop", "no stop strings, for there is no tokenizer", request.stop.len()));
        }
        if request.stop.iter().any(String::is_empty) {
            return Err(Error::setting("stop", "strings of at least one character", "an empty one"));
        }
        let room = self.sizing.context.saturating_sub(request.prompt.len());
        let max_tokens = request.max_tokens.unwrap_or(room.max(1));
        if max_tokens == 0 {
            return Err(Error::setting("max_tokens", "at least 1", max_tokens));
        }
        let id = RequestId(self.next_id);
        let seed = request.sampling.seed.unwrap_or_else(fresh_seed);
        let generation = Generation::new(id, &request, max_tokens, &self.eos, vocab, seed, self.tokenizer.as_ref());
        let usage = Usage { prompt_tokens: request.prompt.len(), ..Usage::default() };
        self.scheduler.add(id, request.prompt, max_tokens)?;
        self.next_id += 1;
        self.counts.prompt_tokens += usage.prompt_tokens as u64;
        let active = Active { generation, usage, submitted: Instant::now(), scheduled: None, first_token: None };
        self.active.insert(id, active);
        Ok(id)
    }

    /// Ends a request and frees its blocks; false if it has ended already. The next step tells.
    pub fn cancel(&mut self, id: RequestId) -> bool {
        self.finish(id, FinishReason::Cancelled)
    }

    /// Carries out one step: at most one token for every running request.
    ///
    /// After an error, every request that took part has ended; later steps tell so. Others go on.
    pub fn step(&mut self) -> Result<Vec<Event>> {
        let plan = self.scheduler.schedule();
        self.note(&plan);
        if !plan.items.is_empty() {
            let done = self.run(&plan).and_then(|samples| self.accept(&plan, samples));
            if let Err(error) = done {
                for item in &plan.items {
                    self.finish(item.id, FinishReason::Error(error.to_string()));
                }
                return Err(error);
            }
        }
        Ok(std::mem::take(&mut self.events))
    }

    /// Carries out one request to its end; other requests go on meanwhile, and their events come with later steps.
    pub fn complete(&mut self, request: Request) -> Result<Completion> {
        let id = self.submit(request)?;
        let (mut tokens, mut text, mut logprobs, mut margins) = (Vec::new(), String::new(), Vec::new(), Vec::new());
        let mut others = Vec::new();
        loop {
            let mut finished = None;
            for event in self.step()? {
                match event {
                    Event::Token(t) if t.id == id => {
                        tokens.push(t.token);
                        text.push_str(&t.text);
                        logprobs.push(t.logprob);
                        margins.push(t.margin);
                    }
                    Event::Finished(f) if f.id == id => finished = Some(f),
                    other => others.push(other),
                }
            }
            if let Some(finished) = finished {
                self.events = others;
                text.push_str(&finished.text);
                return Ok(Completion { tokens, text, logprobs, margins, finished });
            }
        }
    }

    /// Tokens that can be chosen: those of the tokenizer, or of the model without one.
    pub fn vocab(&self) -> usize {
        let rows = self.model.info().vocab;
        self.tokenizer.as_ref().map_or(rows, |t| t.vocab_size().min(rows))
    }

    pub(crate) fn check_tokens(&self, tokens: &[u32]) -> Result<()> {
        let vocab = self.model.info().vocab;
        match tokens.iter().position(|t| *t as usize >= vocab) {
            Some(index) => Err(Error::UnknownToken { index, token: tokens[index], vocab }),
            None => Ok(()),
        }
    }

    /// Remembers who began to run and who had to stop.
    fn note(&mut self, plan: &Plan) {
        for (id, cached) in &plan.admitted {
            if let Some(active) = self.active.get_mut(id)
                && active.scheduled.is_none()
            {
                active.scheduled = Some(Instant::now());
                active.usage.cached_tokens = *cached;
            }
        }
        for id in &plan.preempted {
            if let Some(active) = self.active.get_mut(id) {
                active.usage.preemptions += 1;
            }
        }
    }

    /// The step that a plan means: a function of what the scheduler and the requests hold, and of nothing on the
    /// device.
    fn build(&self, plan: &Plan) -> (Step, Vec<SampleRow>) {
        let (mut step, mut rows) = (Step::default(), Vec::new());
        for item in &plan.items {
            let Some(sequence) = self.scheduler.sequence(item.id) else { continue };
            let end = item.cached + item.len;
            step.tokens.extend(sequence.tokens()[item.cached..end].iter().map(|t| Token::Id(*t)));
            let blocks = sequence.blocks().to_vec();
            step.sequences.push(SequenceStep { cached: item.cached, len: item.len, blocks });
            if item.sample
                && let Some(active) = self.active.get(&item.id)
            {
                step.outputs.push(step.tokens.len() as u32 - 1);
                rows.push(active.generation.sample_row());
            }
        }
        (step, rows)
    }

    /// Enqueues a whole step, then waits for the chosen tokens.
    fn run(&mut self, plan: &Plan) -> Result<Vec<Sample>> {
        let (step, rows) = self.build(plan);
        let b = self.backend.as_ref();
        let batch = b.begin(&step, &self.kv, None)?;
        let guard: Option<&dyn Observer<B>> = if self.options.guard { Some(&NanGuard) } else { None };
        let logits = self.model.forward(b, &batch, &self.kv, guard)?;
        let samples = if rows.is_empty() { None } else { Some(b.sample(&logits, &rows)?) };
        b.submit()?;
        self.counts.steps += 1;
        self.counts.computed_tokens += step.tokens.len() as u64;
        let samples = samples.map(|s| b.read_samples(&s)).transpose()?.unwrap_or_default();
        if samples.len() != rows.len() {
            return Err(Error::Results { what: "samples", expected: rows.len(), found: samples.len() });
        }
        Ok(samples)
    }

    /// Gives every sequence its token.
    fn accept(&mut self, plan: &Plan, samples: Vec<Sample>) -> Result<()> {
        let chosen = plan.items.iter().filter(|item| item.sample);
        let (good, bad): (Vec<_>, Vec<_>) = chosen.zip(samples).partition(|(_, s)| s.logprob.is_finite());
        for (item, _) in &bad {
            let error = Error::NotFinite { id: item.id, position: item.cached + item.len };
            self.finish(item.id, FinishReason::Error(error.to_string()));
        }
        if !bad.is_empty() {
            // What they computed is not to be found by others.
            self.scheduler.pool_mut().clear_cache();
        }
        self.scheduler.advance(plan);
        for (item, sample) in good {
            self.scheduler.push(item.id, sample.token);
            let Some(active) = self.active.get_mut(&item.id) else { continue };
            active.first_token.get_or_insert_with(Instant::now);
            self.counts.generated_tokens += 1;
            let (event, end) = active.generation.accept(sample);
            self.events.push(Event::Token(event));
            if let Some(reason) = end {
                self.finish(item.id, reason);
            }
        }
        Ok(())
    }

    fn finish(&mut self, id: RequestId, reason: FinishReason) -> bool {
        self.scheduler.remove(id);
        let Some(mut active) = self.active.remove(&id) else { return false };
        let count = match reason {
            FinishReason::StopToken(_) | FinishReason::StopString(_) => &mut self.counts.stopped,
            FinishReason::Length => &mut self.counts.full,
            FinishReason::Cancelled => &mut self.counts.cancelled,
            FinishReason::Error(_) => &mut self.counts.failed,
        };
        *count += 1;
        let text = active.generation.finish();
        let seed = active.generation.seed();
        self.events.push(Event::Finished(Finished { id, text, reason, seed, usage: active.usage() }));
        true
    }
}

impl Active {
    fn usage(&self) -> Usage {
        let now = Instant::now();
        let mut usage = self.usage;
        usage.generated_tokens = self.generation.generated();
        usage.queue = self.scheduled.unwrap_or(now) - self.submitted;
        if let (Some(scheduled), Some(first)) = (self.scheduled, self.first_token) {
            usage.prefill = first - scheduled;
            usage.time_to_first_token = first - self.submitted;
            usage.decode = now - first;
        }
        usage
    }
}

/// A seed that no one chose, small enough to be exact in JSON.
fn fresh_seed() -> u64 {
    std::collections::hash_map::RandomState::new().build_hasher().finish() >> 11
}

#[cfg(test)]
#[path = "tests/engine.rs"]
mod tests;
