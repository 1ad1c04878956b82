//! Bits for each module: plans made, and plans applied.

use super::apply::{Inputs, make};
use super::{ApplyArgs, PlanArgs, RecipeArgs, Work};
use crate::args::EngineArgs;
use crate::error::{Failure, Result};
use crate::progress::Bar;
use crate::{device, interrupt, model, output};
use marlin_checkpoint::Checkpoint;
use marlin_quantize::planner::{Limits, Module, Plan, Series, Summary, chart, pareto, plan};
use marlin_quantize::{Bits, Probe, Progress, Recipe, Stats, Target, probe};
use serde_json::json;
use std::path::Path;

/// Budgets of a sweep.
const SWEEP: usize = 17;

pub fn run(args: &PlanArgs) -> Result<()> {
    let checkpoint = model::open(&args.model)?;
    let stats = Stats::open(&args.stats)?;
    if args.output.exists() {
        let path = args.output.display();
        return Err(Failure::text(format!("{path}: is there already and will not be overwritten; name another file")));
    }
    let recipe = args.recipe.recipe(&Inputs::Stats(stats.clone()))?;
    let bits = whole(&recipe)?;
    let least = args.min_bits.unwrap_or_else(|| around(bits).0);
    let most = args.max_bits.unwrap_or_else(|| around(bits).1);
    let tried = Probe { min_bits: least, max_bits: most, rows: args.probe_rows };
    let modules = tries(&checkpoint, &stats, &recipe, tried, &args.engine)?;
    let limits = Limits {
        budget: budget(&modules, bits)?,
        max_tuples: args.max_tuples,
        equal_gate_up: args.equal_gate_up,
        ..Limits::default()
    };
    let (plan, summary) = solve(&modules, &limits, &args.recipe)?;
    write(&args.output, &plan.text(&summary.to_string()))?;
    if let Some(path) = &args.pareto {
        let budgets: Vec<f64> = (0..SWEEP)
            .map(|i| f64::from(least) + f64::from(most - least) * i as f64 / (SWEEP - 1) as f64)
            .map(|bits| Ok(budget(&modules, bits)? as f64 / weights(&modules) as f64))
            .collect::<Result<_>>()?;
        let points = pareto(&modules, &limits, &budgets)?;
        let series = [
            Series { name: "mixed".to_owned(), points: points.iter().map(|p| (p.bits_per_weight, p.damage)).collect() },
            Series {
                name: "uniform".to_owned(),
                points: points.iter().filter_map(|p| Some((p.bits_per_weight, p.uniform?))).collect(),
            },
        ];
        let title = format!("{} as {}", checkpoint.name, recipe.target.name());
        write(path, &chart(&title, "stored bits of a weight", "predicted damage", &series))?;
    }
    output::print(&format!("{}: for {}\n{summary}", args.output.display(), checkpoint.name))
}

pub fn apply(args: &ApplyArgs) -> Result<()> {
    let checkpoint = model::open(&args.model)?;
    let name = args.plan.display().to_string();
    let text = std::fs::read_to_string(&args.plan).map_err(|e| Failure::text(format!("{name}: {e}")))?;
    let plan = Plan::parse(&name, &text)?;
    let inputs = Inputs::read(&args.work, &checkpoint)?;
    let recipe = settings(&plan, &name)?.recipe(&inputs)?;
    follow(&checkpoint, &plan, &recipe, &inputs, &args.work, &name)
}

/// Quantises as a plan says.
fn follow(
    checkpoint: &Checkpoint,
    plan: &Plan,
    recipe: &Recipe,
    inputs: &Inputs,
    work: &Work,
    name: &str,
) -> Result<()> {
    let of: std::collections::BTreeMap<&str, u32> =
        plan.bits.iter().map(|(module, bits)| (module.as_str(), *bits)).collect();
    let choice = recipe.choose(checkpoint, &|module| of.get(module).map(|bits| f64::from(*bits)))?;
    let chosen = choice.bits();
    // A plan may leave a module as it is, by 16 bits.
    if let Some((module, bits)) = plan.bits.iter().find(|(m, bits)| *bits < 16 && !chosen.contains_key(m.as_str())) {
        return Err(Failure::text(format!(
            "{name}: {module} is to have {bits} bits, but {} has no such module that can be quantised",
            checkpoint.name
        )));
    }
    let how = json!({ "format": recipe.target.name(), "plan": plan.text("").lines().collect::<Vec<_>>() });
    make(checkpoint, &choice, inputs, work, how)
}

/// One command for bits that are no whole number: calibrates, plans, and quantises. What was calibrated is kept beside the
/// output until it is complete.
pub fn mixed(checkpoint: &Checkpoint, args: &RecipeArgs, inputs: Inputs, work: &Work) -> Result<()> {
    let (folder, stats) = match inputs {
        Inputs::None => {
            return Err(Failure::text(
                "bits that are no whole number are planned by what a text shows: give --text or --stats",
            ));
        }
        Inputs::Stats(stats) => (None, stats),
        Inputs::Text(samples) => {
            let name = work.output.file_name().unwrap_or_default().to_string_lossy();
            let folder = work.output.with_file_name(format!("{name}.stats"));
            let backend = device::open(&work.engine);
            let watch = interrupt::watch();
            let mut bar = Bar::items("calibrating");
            let mut hear = |step: &Progress| {
                bar.say(&step.what);
                bar.set(step.done, step.total);
                !watch.pressed()
            };
            let experts = work.windows.experts();
            let compute = backend.cpu();
            let stats = marlin_quantize::calibrate(
                &backend,
                compute,
                checkpoint,
                &samples,
                experts,
                &folder,
                work.resume,
                &mut hear,
            )?;
            (Some(folder), stats)
        }
    };
    let inputs = Inputs::Stats(stats.clone());
    let recipe = args.recipe(&inputs)?;
    let bits = whole(&recipe)?;
    let (least, most) = around(bits);
    let tried = Probe { min_bits: least, max_bits: most, rows: 128 };
    let modules = tries(checkpoint, &stats, &recipe, tried, &work.engine)?;
    let limits = Limits { budget: budget(&modules, bits)?, ..Limits::default() };
    let (plan, summary) = solve(&modules, &limits, args)?;
    output::note(summary.to_string().trim_end());
    follow(checkpoint, &plan, &recipe, &inputs, work, "the plan")?;
    if let Some(folder) = folder {
        std::fs::remove_dir_all(&folder).map_err(|e| Failure::text(format!("{}: {e}", folder.display())))?;
    }
    Ok(())
}

/// The one number of bits that is asked for.
fn whole(recipe: &Recipe) -> Result<f64> {
    match recipe.bits.all() {
        Some(bits) if bits <= 8.0 => Ok(bits),
        Some(bits) => Err(Failure::text(format!("--bits: expected at most 8 for a plan, found {bits}"))),
        None => Err(Failure::text("--bits: a plan needs one number of bits for all modules, such as 3.5")),
    }
}

/// Bits that are tried for an average of `bits` unless others are named.
fn around(bits: f64) -> (u32, u32) {
    ((bits.floor() as u32).saturating_sub(1).clamp(2, 7), (bits.ceil() as u32 + 2).clamp(3, 8))
}

fn tries(
    checkpoint: &Checkpoint,
    stats: &Stats,
    recipe: &Recipe,
    tried: Probe,
    engine: &EngineArgs,
) -> Result<Vec<Module>> {
    let backend = device::open(engine);
    let watch = interrupt::watch();
    let mut bar = Bar::items("trying");
    Ok(probe(checkpoint, stats, recipe, tried, backend.cpu(), &mut |step: &Progress| {
        bar.say(&step.what);
        bar.set(step.done, step.total);
        !watch.pressed()
    })?)
}

fn weights(modules: &[Module]) -> u64 {
    modules.iter().map(|m| m.weights).sum()
}

/// What all modules take at `bits`, between whole bits in proportion: the size of uniform bits.
fn budget(modules: &[Module], bits: f64) -> Result<u64> {
    let mut sum = 0.0;
    for module in modules {
        let at = |bits: u32| module.choices.iter().find(|c| c.bits == bits).map(|c| c.stored as f64);
        let only = module.choices.first().filter(|_| module.is_protected()).map(|c| c.stored as f64);
        let between = at(bits.floor() as u32).zip(at(bits.ceil() as u32)).map(|(a, b)| a + bits.fract() * (b - a));
        sum += only.or(between).ok_or_else(|| {
            let of: Vec<u32> = module.choices.iter().map(|c| c.bits).collect();
            Failure::text(format!(
                "--bits {bits}: {} is tried at {of:?} bits only (--min-bits, --max-bits)",
                module.name
            ))
        })?;
    }
    Ok(sum.floor() as u64)
}

fn solve(modules: &[Module], limits: &Limits, args: &RecipeArgs) -> Result<(Plan, Summary)> {
    let planned = plan(modules, limits)?;
    let summary = Summary::new(modules, &planned.bits, Some(planned.bound));
    let mut made = Plan::new(modules.iter().map(|m| m.name.clone()).zip(planned.bits).collect());
    made.settings.insert("format".to_owned(), args.format.name().to_owned());
    if let Some(group) = args.group {
        made.settings.insert("group".to_owned(), group.to_string());
    }
    if args.asymmetric {
        made.settings.insert("asymmetric".to_owned(), "true".to_owned());
    }
    Ok((made, summary))
}

/// The recipe that a plan's settings make.
fn settings(plan: &Plan, name: &str) -> Result<RecipeArgs> {
    let wrong = |key: &str, value: &str| Failure::text(format!("{name}: set {key}: {value:?} makes no sense"));
    let mut args = RecipeArgs::usual(Target::Exl3, Some(Bits::default()));
    for (key, value) in &plan.settings {
        match key.as_str() {
            "format" => {
                let found = Target::ALL.into_iter().find(|t| t.name() == value);
                args.format = found.ok_or_else(|| wrong(key, value))?;
            }
            "group" => args.group = Some(value.parse().map_err(|_| wrong(key, value))?),
            "asymmetric" => args.asymmetric = value.parse().map_err(|_| wrong(key, value))?,
            _ => return Err(Failure::text(format!("{name}: there is no setting {key:?}"))),
        }
    }
    Ok(args)
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(|e| Failure::text(format!("{}: {e}", path.display())))
}
