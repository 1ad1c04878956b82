//! The engine: requests in, events out.

use crate::options::available_memory;
use crate::{
    BlockPool, EngineOptions, Error, Event, FinishReason, Finished, Generation, KvSizing, Limits, Plan, Request,
    RequestId, Result, Scheduler, Stats, Usage, Wait,
};
use marlin_backend::{Backend, Observer, Sample, SampleRow, SequenceStep, Step, Token};
use marlin_checkpoint::text::Tokenizer;
use marlin_models::{Model, NanGuard};
use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::time::Instant;

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

/// A step that is under way.
struct Flight<B: Backend> {
    plan: Plan,
    /// Tokens that it chooses.
    samples: Option<B::Samples>,
    /// Whose they are.
    rows: Vec<RequestId>,
    /// Why nobody can name them before they are read.
    wait: Option<Wait>,
}

/// Runs requests on a model: call [`Engine::step`] as long as it is not [idle](Engine::is_idle).
///
/// Where the backend [gains by it](Backend::pipelines), each step is enqueued before the one before it is read, and names its
/// tokens as that one's samples. What it computes for a request that turns out to have ended is thrown away. So there is
/// always work for the device; texts are the same.
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
    /// Whether steps are enqueued ahead.
    pipelined: bool,
    /// The step that has been enqueued and not yet read: someone that it computes for has not ended.
    flight: Option<Flight<B>>,
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
        // A guard reads everything anyway.
        let pipelined = options.pipeline.unwrap_or(backend.pipelines()) && !options.guard;
        Ok(Self {
            backend,
            model,
            kv,
            chunk,
            pipelined,
            flight: None,
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
        let ended = self.finish(id, FinishReason::Cancelled);
        self.prune();
        ended
    }

    /// Carries out one step: at most one token for every running request. Where steps are enqueued ahead, it tells what the
    /// step enqueued by the call before has chosen.
    ///
    /// After an error, every request that took part has ended; later steps tell so. Others go on.
    pub fn step(&mut self) -> Result<Vec<Event>> {
        if let Some(flight) = self.flight.take() {
            let next = self.plan_ahead(&flight);
            let launched = next.as_ref().map(|plan| self.launch(plan, Some(&flight)));
            let landed = self.land(flight);
            if let (Some(plan), Some(launched)) = (next, launched) {
                self.counts.steps_ahead += u64::from(launched.is_ok());
                self.flight = Some(self.launched(plan, launched)?);
            }
            self.prune();
            landed?;
        }
        if self.flight.is_none() {
            let plan = self.scheduler.schedule();
            if !plan.items.is_empty() {
                let launched = self.launch(&plan, None);
                let flight = self.launched(plan, launched)?;
                match self.pipelined {
                    true => self.flight = Some(flight),
                    false => self.land(flight)?,
                }
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

    /// The step after the one under way, if it can be enqueued now.
    fn plan_ahead(&mut self, flight: &Flight<B>) -> Option<Plan> {
        if let Some(wait) = self.must_wait(flight) {
            self.counts.waits.note(wait);
            return None;
        }
        let plan = self.scheduler.schedule_ahead();
        if plan.is_none() {
            self.counts.waits.note(Wait::Blocks);
        }
        plan.filter(|plan| !plan.items.is_empty())
    }

    /// Why the next step cannot be enqueued before `flight` is read.
    fn must_wait(&self, flight: &Flight<B>) -> Option<Wait> {
        let going_on = |id: &&RequestId| self.scheduler.sequence(**id).is_some_and(|s| s.remaining() > 0);
        let mut rows = flight.rows.iter().filter(going_on).peekable();
        rows.peek()?;
        flight.wait.or_else(|| {
            let needs = |id: &RequestId| self.active.get(id).is_some_and(|a| a.generation.needs_history());
            rows.any(needs).then_some(Wait::Penalties)
        })
    }

    /// The step that a plan means, which may name tokens that the step `before` chooses: a function of what the scheduler and
    /// the requests hold, and of nothing on the device.
    fn build(&self, plan: &Plan, before: Option<&Flight<B>>) -> Result<(Step, Vec<SampleRow>, Vec<RequestId>)> {
        let chosen: HashMap<RequestId, u32> = before.iter().flat_map(|f| f.rows.iter().copied().zip(0..)).collect();
        let (mut step, mut rows, mut whose) = (Step::default(), Vec::new(), Vec::new());
        for item in &plan.items {
            let Some(sequence) = self.scheduler.sequence(item.id) else { continue };
            let known = sequence.tokens();
            for position in item.cached..item.cached + item.len {
                step.tokens.push(match (known.get(position), chosen.get(&item.id)) {
                    (Some(token), _) => Token::Id(*token),
                    (None, Some(row)) => Token::Sampled(*row),
                    (None, None) => return Err(Error::Results { what: "pending tokens", expected: 1, found: 0 }),
                });
            }
            let blocks = sequence.blocks().to_vec();
            step.sequences.push(SequenceStep { cached: item.cached, len: item.len, blocks });
            if item.sample
                && let Some(active) = self.active.get(&item.id)
            {
                step.outputs.push(step.tokens.len() as u32 - 1);
                rows.push(active.generation.sample_row(sequence.pending()));
                whose.push(item.id);
            }
        }
        Ok((step, rows, whose))
    }

    /// Enqueues a whole step behind the step `before`, if that has not been read yet.
    fn launch(&mut self, plan: &Plan, before: Option<&Flight<B>>) -> Result<Flight<B>> {
        self.note(plan);
        let (step, rows, whose) = self.build(plan, before)?;
        let b = self.backend.as_ref();
        let batch = b.begin(&step, &self.kv, before.and_then(|f| f.samples.as_ref()))?;
        let guard: Option<&dyn Observer<B>> = if self.options.guard { Some(&NanGuard) } else { None };
        let logits = self.model.forward(b, &batch, &self.kv, guard)?;
        let samples = if rows.is_empty() { None } else { Some(b.sample(&logits, &rows)?) };
        b.submit()?;
        let wait = (!b.keeps(&rows)).then(|| match rows.iter().any(|row| row.top_logprobs > 0) {
            true => Wait::LogProbabilities,
            false => Wait::HostSampling,
        });
        self.scheduler.start(plan);
        self.counts.steps += 1;
        self.counts.computed_tokens += step.tokens.len() as u64;
        Ok(Flight { plan: plan.clone(), samples, rows: whose, wait })
    }

    /// Ends the requests of a step that could not be enqueued.
    fn launched(&mut self, plan: Plan, launched: Result<Flight<B>>) -> Result<Flight<B>> {
        launched.inspect_err(|error| self.fail(&plan, error))
    }

    /// Waits for a step, and gives every sequence its token.
    fn land(&mut self, flight: Flight<B>) -> Result<()> {
        let samples = flight.samples.as_ref().map(|s| self.backend.read_samples(s)).transpose();
        let read = samples.map_err(Error::from).and_then(|samples| {
            let (samples, expected) = (samples.unwrap_or_default(), flight.rows.len());
            match samples.len() == expected {
                true => Ok(samples),
                false => Err(Error::Results { what: "samples", expected, found: samples.len() }),
            }
        });
        match read {
            Ok(samples) => self.accept(&flight.plan, samples),
            Err(error) => {
                self.fail(&flight.plan, &error);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Ends all requests that took part.
    fn fail(&mut self, plan: &Plan, error: &Error) {
        for item in &plan.items {
            self.finish(item.id, FinishReason::Error(error.to_string()));
        }
    }

    /// Gives the step under way up if all its requests have ended meanwhile.
    fn prune(&mut self) {
        if let Some(flight) = &self.flight
            && flight.plan.items.iter().all(|item| !self.active.contains_key(&item.id))
        {
            self.counts.discarded_tokens += flight.plan.items.iter().map(|item| item.len as u64).sum::<u64>();
            self.flight = None;
        }
    }

    /// Gives every sequence its token.
    fn accept(&mut self, plan: &Plan, samples: Vec<Sample>) {
        let ended = plan.items.iter().filter(|item| !self.active.contains_key(&item.id));
        self.counts.discarded_tokens += ended.map(|item| item.len as u64).sum::<u64>();
        let chosen = plan.items.iter().filter(|item| item.sample);
        let (good, bad): (Vec<_>, Vec<_>) = chosen.zip(samples).partition(|(_, s)| s.logprob.is_finite());
        let mut poisoned = false;
        for (item, _) in &bad {
            let error = Error::NotFinite { id: item.id, position: item.cached + item.len };
            poisoned |= self.finish(item.id, FinishReason::Error(error.to_string()));
        }
        if poisoned {
            // What they computed is not to be found by others.
            self.scheduler.pool_mut().clear_cache();
        }
        self.scheduler.advance(plan);
        for (item, sample) in good {
            let Some(active) = self.active.get_mut(&item.id) else { continue };
            self.scheduler.push(item.id, sample.token);
            active.first_token.get_or_insert_with(Instant::now);
            self.counts.generated_tokens += 1;
            let (event, end) = active.generation.accept(sample);
            self.events.push(Event::Token(event));
            if let Some(reason) = end {
                self.finish(item.id, reason);
            }
        }
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
