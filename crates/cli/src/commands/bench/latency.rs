//! `bench latency`: how fast a model runs here.

use super::super::doctor;
use crate::args::{ContextArgs, EngineArgs};
use crate::device::{self, Runs, on_device};
use crate::error::Result;
use crate::metrics::Steps;
use crate::model::{self, Loaded, Prompt};
use crate::progress::Bar;
use crate::sampling::SamplingArgs;
use crate::{builtin, interrupt, output, synthetic};
use marlin_backend::fallback::Snapshot;
use marlin_checkpoint::GenerationConfig;
use marlin_engine::EngineOptions;
use marlin_eval::{Footprint, Latency, LatencyOptions, Summary, latency, machine};
use marlin_gpu::KernelTime;
use output::{bytes, rate};
use serde::Serialize;
use std::path::PathBuf;
use std::time::Instant;

/// One request at a time: prefill and decode tokens a second
///
/// Prefill is timed on a prompt of its own; decode on tokens generated after --depth tokens of context. With --synthetic
/// the weights are random and nothing is downloaded, so that a model's speed can be known before the model is there.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model
    #[arg(default_value = builtin::NAME, conflicts_with = "synthetic")]
    model: String,
    /// A published model's sizes with random weights, such as qwen3-8b (bf16) or glm-4.7-flash@fp4:layers=6 (a
    /// quantisation scheme, and the first layers only)
    #[arg(long, value_name = "NAME[@SCHEME][:layers=N]")]
    synthetic: Option<String>,
    /// Tokens of the prompt; 0 to skip prefill
    #[arg(long, value_name = "N", default_value = "512", value_parser = crate::values::tokens)]
    prompt: usize,
    /// Tokens to generate; 0 to skip decode
    #[arg(long, value_name = "N", default_value = "32", value_parser = crate::values::tokens)]
    generate: usize,
    /// Tokens of context before those generated
    #[arg(long, value_name = "N", default_value = "0", value_parser = crate::values::tokens)]
    depth: usize,
    /// Rounds that are not counted
    #[arg(long, value_name = "N", default_value_t = 1)]
    warmup: usize,
    /// Rounds that are
    #[arg(long, value_name = "N", default_value_t = 5)]
    repeats: usize,
    /// Then decode once more and say where the time goes, kernel by kernel (GPUs only; times include what a launch costs)
    #[arg(long)]
    kernels: bool,
    /// Write what is launched in the counted rounds for Xcode (Metal, with MTL_CAPTURE_ENABLED=1 set)
    #[arg(long, value_name = "FILE.gputrace")]
    capture: Option<PathBuf>,
    /// Start and stop the profiler around the counted rounds (CUDA, under nsys profile --capture-range=cudaProfilerApi or ncu)
    #[arg(long, conflicts_with = "capture")]
    cuda_profiler: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

/// Share of the memory bandwidth that decode should reach, and below which the report says so.
const EXPECTED_SHARE: f64 = 0.8;
/// Weights smaller than this may stay in the caches, so that memory is not what limits.
const CACHED: u64 = 256 << 20;

#[derive(Serialize)]
struct Report {
    model: String,
    exact: bool,
    threads: usize,
    #[serde(flatten)]
    latency: Latency,
    weight_bytes: u64,
    /// Weights read to generate one token; of a mixture, only the experts chosen for it.
    weight_bytes_per_token: u64,
    /// KV memory read to generate one token, on average.
    kv_bytes_per_token: u64,
    /// Bytes of both read a second at the median decode speed.
    decode_bytes_per_second: Option<f64>,
    memory_read_bytes_per_second: f64,
    /// One through the other.
    bandwidth_share: Option<f64>,
    load_seconds: f64,
    /// Kernels that were compiled, or read from disk, after the model was ready; nothing on the CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    compiled_since_ready: Option<u64>,
    peak_memory_bytes: Option<u64>,
    #[serde(flatten)]
    steps: Steps,
    /// Products that took a slower path in the counted rounds and those for warming up.
    fallbacks: Snapshot,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
    /// With --kernels: what each kernel took in one round of decoding and its prefill.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    kernels: Vec<KernelTime>,
}

pub fn run(args: &Args) -> Result<()> {
    on_device!(&args.engine, |backend| run_on(args, backend))
}

fn run_on<B: Runs>(args: &Args, backend: B) -> Result<()> {
    let longest = args.prompt.max(args.depth.max(1) + args.generate) + 1;
    let context = ContextArgs { context: None, kv_tokens: Some(longest) };
    let options = EngineOptions { max_batch: 1, prefix_cache: false, ..EngineOptions::default() };
    let started = Instant::now();
    let checkpoint = match &args.synthetic {
        Some(name) => synthetic::Model::parse("--synthetic", name)?.checkpoint()?,
        None => model::open(&args.model)?,
    };
    let loaded = model::load_checkpoint(backend, checkpoint, &args.engine, &context, options, Prompt::Ids, started)?;
    let Loaded { mut engine, checkpoint, load, .. } = loaded;
    let sizing = *engine.sizing();
    let footprint = Footprint::of(&checkpoint.config, checkpoint.store.as_ref(), engine.model().report());
    let backend = engine.backend().clone();
    let kernels = || backend.warmth().map(|w| w.compiled + w.found);
    let (ready, mut now) = (kernels(), kernels());
    let watch = interrupt::watch();
    let mut bar = Bar::items(format!("timing {}", checkpoint.name));
    let options = LatencyOptions {
        prompt: args.prompt,
        generate: args.generate,
        depth: args.depth,
        warmup: args.warmup,
        repeats: args.repeats,
        experts: true,
        // Whatever the checkpoint says: greedy, unless it is asked for.
        sampling: args.sampling.resolve(&GenerationConfig::default()),
    };
    let (wanted, mut captures) = (args.capture.is_some() || args.cuda_profiler, false);
    let latency_found = latency(&mut engine, &options, &mut |done, total| {
        bar.set(done as u64, total as u64);
        if wanted && !captures && done >= args.warmup && done < total {
            captures = true;
            // What cannot be captured is told, and measured all the same.
            if let Err(error) = backend.begin_capture(args.capture.as_deref()) {
                output::note(&format!("note: {error}"));
            }
        }
        // What comes after the last round looks at experts, which is no part of it.
        if done < total {
            now = kernels();
        }
        !watch.pressed()
    });
    drop(bar);
    if captures {
        backend.end_capture()?;
    }
    let latency = latency_found?;
    let steps = Steps::of(&engine.stats());
    let compiled_since_ready = now.zip(ready).map(|(now, ready)| now - ready);
    let mut kernels = Vec::new();
    if args.kernels && backend.start_timing() {
        let once = LatencyOptions { prompt: 0, warmup: 0, repeats: 1, experts: false, ..options };
        marlin_eval::latency(&mut engine, &once, &mut |_, _| !watch.pressed())?;
        kernels = backend.stop_timing()?;
    }
    // Measuring the memory takes memory itself: only now, and without the model.
    let peak = machine::peak_memory();
    let fallbacks = engine.backend().slower();
    let name = checkpoint.name.clone();
    drop((engine, checkpoint));
    let read = backend.bytes_per_second(doctor::region())?;
    watch.check()?;
    let kv = (args.depth + args.generate / 2) * sizing.block_bytes / sizing.block_size;
    let per_token = footprint.bytes_per_token + kv as u64;
    let achieved = latency.decode_tokens_per_second.map(|s| s.p50 * per_token as f64);
    let share = achieved.filter(|_| read > 0.0).map(|a| a / read);
    let report = Report {
        model: name,
        exact: args.engine.exact,
        threads: device::threads(&args.engine),
        latency,
        weight_bytes: footprint.bytes,
        weight_bytes_per_token: footprint.bytes_per_token,
        kv_bytes_per_token: kv as u64,
        decode_bytes_per_second: achieved,
        memory_read_bytes_per_second: read,
        bandwidth_share: share,
        load_seconds: load.as_secs_f64(),
        compiled_since_ready,
        peak_memory_bytes: peak,
        steps,
        fallbacks,
        note: share.and_then(|share| remark(share, per_token)),
        kernels,
    };
    if args.json { output::print_json(&report) } else { output::print(&report.text()) }
}

/// What to say about a decode that reads so many bytes a token and reaches this share of the memory bandwidth.
fn remark(share: f64, bytes_per_token: u64) -> Option<String> {
    if bytes_per_token < CACHED {
        return Some("what this model reads stays in the caches, so memory does not limit it".to_owned());
    }
    (share < EXPECTED_SHARE).then(|| {
        format!(
            "decode reaches {:.0} % of the memory bandwidth, where {:.0} % and more are expected; is the machine busy, or --threads too low?",
            100.0 * share,
            100.0 * EXPECTED_SHARE
        )
    })
}

impl Report {
    fn text(&self) -> String {
        let l = &self.latency;
        let mut out = format!(
            "{}, {}, {} threads, {} rounds after {} for warming up\n",
            self.model,
            if self.exact { "exact (f32)" } else { "fast" },
            self.threads,
            l.repeats,
            l.warmup
        );
        out += &format!("{:<34}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}\n", "", "mean", "std", "2 sigma", "p50", "p95", "p99");
        let mut row = |name: String, summary: &Option<Summary>| {
            if let Some(s) = summary {
                out += &format!("{name:<34}");
                for value in [s.mean, s.std, s.two_sigma, s.p50, s.p95, s.p99] {
                    out += &format!("{:>9}", rate(value));
                }
                out.push('\n');
            }
        };
        row(format!("prefill {} tokens, tok/s", l.prompt_tokens), &l.prefill_tokens_per_second);
        row("time to first token, ms".to_owned(), &l.time_to_first_token_ms);
        let after = if l.depth > 0 { format!(" after {}", l.depth) } else { String::new() };
        row(format!("decode {} tokens{after}, tok/s", l.generated_tokens), &l.decode_tokens_per_second);
        row("between tokens, ms".to_owned(), &l.inter_token_ms);
        if let (Some(least), Some(most)) = (l.distinct_experts.iter().min(), l.distinct_experts.iter().max()) {
            out += &format!("different experts of a layer in {} tokens: {least} to {most}\n", l.generated_tokens);
        }
        let (all, weights, kv) = (self.weight_bytes, self.weight_bytes_per_token, self.kv_bytes_per_token);
        out += &format!("weights {}; read per token: {} of them and {} of KV", bytes(all), bytes(weights), bytes(kv));
        if let (Some(achieved), Some(share)) = (self.decode_bytes_per_second, self.bandwidth_share) {
            out += &format!(
                ": {:.1} GB/s, {:.0} % of the {:.1} GB/s that this machine's memory gives",
                achieved / 1e9,
                100.0 * share,
                self.memory_read_bytes_per_second / 1e9
            );
        }
        out += &format!("\nloaded in {}", output::seconds(self.load_seconds));
        if let Some(peak) = self.peak_memory_bytes {
            out += &format!(", peak memory {}", bytes(peak));
        }
        if let Some(n) = self.compiled_since_ready {
            out += &format!(", {n} kernels compiled since then");
        }
        out.push('\n');
        let all: f64 = self.kernels.iter().map(|k| k.seconds).sum();
        for k in &self.kernels {
            let speed = k.bytes as f64 / k.seconds;
            // A kernel that reads a part of what it is bound to has no speed that could be told from that.
            let speed = if speed <= 2.0 * self.memory_read_bytes_per_second {
                format!("{:.0}", speed / 1e9)
            } else {
                "-".into()
            };
            out += &format!(
                "{:<58}{:>7} times{:>10.3} ms{:>6.1} %{:>9.2} us each{:>7} GB/s\n",
                k.kernel,
                k.launches,
                1e3 * k.seconds,
                100.0 * k.seconds / all,
                1e6 * k.seconds / k.launches as f64,
                speed
            );
        }
        out += &format!("{}\n", self.steps.line());
        if let Some(text) = output::fallbacks(&self.fallbacks) {
            out += &format!("{text}\n");
        }
        if let Some(note) = &self.note {
            out += &format!("note: {note}\n");
        }
        out
    }
}
